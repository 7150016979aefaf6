//! One loaded plugin: its instance, how it is called and how it is replaced.
//!
//! ```text
//!            start ok                 call fails
//!   Vacant ───────────▶ Ready(n) ───────────────▶ Vacant
//!     ▲  │ start fails    │  ▲
//!     └──┘ (Unavailable)  └──┘ call answers
//! ```
//! `n` counts instances: a handle of instance `n` is worthless once it is replaced.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use wasmtime::component::{
    ComponentExportIndex, ComponentNamedList, Func, InstancePre, Lift, Lower, ResourceAny, ResourceType, TypedFunc, Val,
};
use wasmtime::{Store, Trap};

use crate::error::{DispatchError, Failure};
use crate::interface::Interface;
use crate::plugin::{Limits, MakeData};
use crate::runtime::{Runtime, span, ticks};
use crate::signature::Signature;
use crate::state::State;

/// Least time that the first start of a plugin may take, when its tree is loaded.
const START: Duration = Duration::from_secs(1);

/// A plugin that has loaded.
pub(crate) struct Loaded<T: 'static> {
    pub(crate) id: Arc<str>,
    pub(crate) interface: Arc<Interface>,
    runtime: Runtime,
    pre: InstancePre<State<T>>,
    /// Of each function of the interface, in its order.
    functions: Vec<ComponentExportIndex>,
    /// Of each resource of the interface, with the number by which other plugins know it.
    resources: Vec<(ComponentExportIndex, u32)>,
    data: MakeData<T>,
    limits: Limits,
    deadline: u64,
    /// Held up while the plugin runs, for the clock.
    running: Arc<AtomicBool>,
    slot: Mutex<Slot<T>>,
}

/// The plugin to oneself; while this lives the clock ticks.
struct Running<'a, T: 'static> {
    slot: MutexGuard<'a, Slot<T>>,
    flag: &'a AtomicBool,
}

impl<T> Drop for Running<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Before the lock, which goes after this.
        self.flag.store(false, Ordering::Release);
    }
}

impl<T> Deref for Running<'_, T> {
    type Target = Slot<T>;
    #[inline]
    fn deref(&self) -> &Slot<T> {
        &self.slot
    }
}

impl<T> DerefMut for Running<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Slot<T> {
        &mut self.slot
    }
}

struct Slot<T: 'static> {
    generation: u64,
    live: Option<Live<T>>,
}

pub(crate) struct Live<T: 'static> {
    store: Store<State<T>>,
    functions: Vec<Func>,
    /// `TypedFunc`s by function, as far as they were asked for.
    typed: Vec<Option<Box<dyn Any + Send + Sync>>>,
    pub(crate) kinds: Arc<[(ResourceType, u32)]>,
    /// Handles that the host holds.
    pub(crate) lent: Vec<ResourceAny>,
}

/// What a plugin needs to be started.
pub(crate) struct Parts<T: 'static> {
    pub(crate) id: Arc<str>,
    pub(crate) interface: Arc<Interface>,
    pub(crate) runtime: Runtime,
    pub(crate) pre: InstancePre<State<T>>,
    pub(crate) functions: Vec<ComponentExportIndex>,
    pub(crate) resources: Vec<(ComponentExportIndex, u32)>,
    pub(crate) data: MakeData<T>,
    pub(crate) limits: Limits,
}

/// What is known of handles among a call's arguments.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Handed {
    /// There are none.
    None,
    /// They belong to this instance.
    Passed(u64),
    /// They come from the host, which gets those in the answer.
    ByHost,
}

/// An answer that may hold handles.
pub(crate) struct Answer {
    pub(crate) value: Option<Val>,
    pub(crate) generation: u64,
    /// Empty where the result holds no handle.
    pub(crate) kinds: Option<Arc<[(ResourceType, u32)]>>,
}

impl<T: Send + 'static> Loaded<T> {
    /// Starts a plugin for the first time.
    pub(crate) fn start(parts: Parts<T>) -> Result<Self, Failure> {
        let Parts { id, interface, runtime, pre, functions, resources, data, limits } = parts;
        let deadline = ticks(limits.deadline);
        let slot = Mutex::new(Slot { generation: 0, live: None });
        let running = runtime.clock().watch();
        let this = Self { id, interface, runtime, pre, functions, resources, data, limits, deadline, running, slot };
        let mut slot = this.run(this.slot.lock());
        // Nobody waits for an answer yet, and a machine that is busy must not make a good plugin one that does not load.
        let live = this.instantiate(this.runtime.clock().now() + this.deadline.max(ticks(START)) + 1);
        slot.live = Some(live?);
        drop(slot);
        Ok(this)
    }

    /// The tick at which a call that starts now must have ended, and the ticks until then.
    #[inline]
    fn until(&self, caller: u64) -> (u64, u64) {
        let now = self.runtime.clock().now();
        // One more, as the current tick may be about to end.
        let deadline = (now + self.deadline + 1).min(caller);
        (deadline, deadline.saturating_sub(now))
    }

    /// Starts an instance, which has to be done by the tick `deadline`.
    fn instantiate(&self, deadline: u64) -> Result<Live<T>, Failure> {
        let mut store = Store::new(self.runtime.engine(), State::new((self.data)(), self.limits));
        store.limiter(|state| &mut state.memory);
        let left = deadline.saturating_sub(self.runtime.clock().now());
        store.data_mut().deadline = deadline;
        store.set_epoch_deadline(left);
        let instance = self.pre.instantiate(&mut store).map_err(|error| failure(&error, &store))?;
        let missing = || Failure::Exception { trap: None, message: "an export is gone".to_owned() };
        let functions = self
            .functions
            .iter()
            .map(|index| instance.get_func(&mut store, index).ok_or_else(missing))
            .collect::<Result<Vec<_>, _>>()?;
        let kinds = self
            .resources
            .iter()
            .map(|(index, kind)| Ok((instance.get_resource(&mut store, index).ok_or_else(missing)?, *kind)))
            .collect::<Result<Arc<[_]>, Failure>>()?;
        let typed = functions.iter().map(|_| None).collect();
        Ok(Live { store, functions, typed, kinds, lent: Vec::new() })
    }

    fn name(&self, function: usize) -> String {
        self.interface.functions[function].name.clone()
    }

    /// Has the plugin to oneself, with an instance ready and its deadline set.
    #[inline]
    fn occupy(&self, function: usize, caller: u64) -> Result<Running<'_, T>, DispatchError> {
        let (mut deadline, mut left) = self.until(caller);
        if left == 0 {
            return Err(self.failed(function, Failure::Deadline));
        }
        let slot = match self.slot.try_lock() {
            Some(slot) => slot,
            None => {
                let slot = self.slot.try_lock_for(span(left));
                let slot = slot.ok_or_else(|| DispatchError::Busy {
                    plugin: self.id.to_string(),
                    function: self.name(function),
                })?;
                (deadline, left) = self.until(deadline);
                slot
            }
        };
        let mut slot = self.run(slot);
        if slot.live.is_none() {
            self.revive(&mut slot, function, caller)?;
        }
        if let Some(live) = &mut slot.live {
            let state = live.store.data_mut();
            state.deadline = deadline;
            state.memory.refused = false;
            live.store.set_epoch_deadline(left);
        }
        Ok(slot)
    }

    #[cold]
    fn revive(&self, slot: &mut Slot<T>, function: usize, caller: u64) -> Result<(), DispatchError> {
        slot.generation += 1;
        let (deadline, _) = self.until(caller);
        slot.live = Some(self.instantiate(deadline).map_err(|reason| DispatchError::Unavailable {
            plugin: self.id.to_string(),
            function: self.name(function),
            reason,
        })?);
        Ok(())
    }

    #[cold]
    fn failed(&self, function: usize, failure: Failure) -> DispatchError {
        DispatchError::Failed { plugin: self.id.to_string(), function: self.name(function), failure }
    }

    #[cold]
    pub(crate) fn resource_error(&self, function: usize, reason: impl Into<String>) -> DispatchError {
        DispatchError::Resource { plugin: self.id.to_string(), function: self.name(function), reason: reason.into() }
    }

    /// The failed instance goes; the next call makes another.
    #[cold]
    fn retire(&self, slot: &mut Slot<T>, function: usize, error: &wasmtime::Error) -> DispatchError {
        let failure = slot.live.take().map_or_else(
            || Failure::Exception { trap: None, message: format!("{error:#}") },
            |live| failure(error, &live.store),
        );
        self.failed(function, failure)
    }

    /// Calls a function with arguments that fit its signature.
    pub(crate) fn call(
        &self,
        function: usize,
        arguments: &[Val],
        caller: u64,
        handles: Handed,
    ) -> Result<Answer, DispatchError> {
        let mut slot = self.occupy(function, caller)?;
        let generation = slot.generation;
        let Some(live) = &mut slot.live else { unreachable!("occupy leaves an instance") };
        let known = &self.interface.functions[function];
        let signature = &known.signature;
        match handles {
            Handed::None => {}
            Handed::Passed(from) if from == generation => {}
            Handed::Passed(_) => return Err(self.resource_error(function, "its plugin failed and was started anew")),
            Handed::ByHost => live.take_lent(signature, arguments).map_err(|why| self.resource_error(function, why))?,
        }
        let has_result = signature.result.is_some();
        let mut result = [Val::Bool(false)];
        let outcome = live.functions[function].call(&mut live.store, arguments, &mut result[..usize::from(has_result)]);
        if let Err(error) = outcome {
            return Err(self.retire(&mut slot, function, &error));
        }
        let [value] = result;
        if matches!(handles, Handed::ByHost) {
            collect_handles(&value, &mut live.lent);
        }
        Ok(Answer {
            value: has_result.then_some(value),
            generation,
            kinds: known.result_holds.then(|| Arc::clone(&live.kinds)),
        })
    }

    /// Calls a function whose types the host knows.
    #[inline]
    pub(crate) fn call_typed<P, R>(&self, function: usize, arguments: P, caller: u64) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let mut slot = self.occupy(function, caller)?;
        let Some(live) = &mut slot.live else { unreachable!("occupy leaves an instance") };
        let known = live.typed[function].as_ref().and_then(|known| known.downcast_ref::<TypedFunc<P, R>>());
        let typed = match known {
            Some(typed) => *typed,
            None => live.resolve(function).map_err(|error| self.wrong_types(function, &error))?,
        };
        typed.call(&mut live.store, arguments).map_err(|error| self.retire(&mut slot, function, &error))
    }

    #[cold]
    fn wrong_types(&self, function: usize, error: &wasmtime::Error) -> DispatchError {
        let known = &self.interface.functions[function];
        DispatchError::WrongArguments {
            function: known.name.clone(),
            expected: known.signature.to_string(),
            given: format!("{error:#}"),
        }
    }

    /// Whether a function can be called with these types.
    pub(crate) fn check_types<P, R>(&self, function: usize) -> Result<(), DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let mut slot = self.occupy(function, u64::MAX)?;
        let Some(live) = &mut slot.live else { unreachable!("occupy leaves an instance") };
        live.resolve::<P, R>(function).map(|_| ()).map_err(|error| self.wrong_types(function, &error))
    }

    /// Whether the host holds `resource` of this plugin.
    pub(crate) fn has_lent(&self, resource: &ResourceAny) -> bool {
        self.slot.lock().live.as_ref().is_some_and(|live| live.lent.contains(resource))
    }

    /// Drops a resource that the host holds.
    pub(crate) fn drop_lent(&self, resource: ResourceAny) {
        let mut slot = self.slot.lock();
        let generation = slot.generation;
        if let Some(live) = &mut slot.live {
            live.lent.retain(|lent| *lent != resource);
        }
        drop(slot);
        self.drop_resource(generation, resource);
    }
}

impl<T: 'static> Loaded<T> {
    #[inline]
    fn run<'a>(&'a self, slot: MutexGuard<'a, Slot<T>>) -> Running<'a, T> {
        self.runtime.clock().run(&self.running);
        Running { slot, flag: &self.running }
    }

    /// Drops a resource of instance `generation`; its destructor runs under the plugin's own deadline.
    pub(crate) fn drop_resource(&self, generation: u64, resource: ResourceAny) {
        let mut slot = self.run(self.slot.lock());
        if slot.generation != generation {
            return;
        }
        let Some(live) = &mut slot.live else { return };
        live.store.data_mut().deadline = self.runtime.clock().now() + self.deadline + 1;
        live.store.set_epoch_deadline(self.deadline + 1);
        if resource.resource_drop(&mut live.store).is_err() {
            // A destructor that fails leaves the instance as unusable as any other trap does.
            slot.live = None;
        }
    }
}

impl<T> Live<T> {
    /// Checks that handles which the host hands over are this instance's, and forgets those that it gives away.
    #[cold]
    fn take_lent(&mut self, signature: &Signature, arguments: &[Val]) -> Result<(), &'static str> {
        let mut given = Vec::new();
        for (ty, argument) in signature.params.iter().zip(arguments) {
            let mut handles = Vec::new();
            collect_handles(argument, &mut handles);
            if !handles.iter().all(|handle| self.lent.contains(handle)) {
                return Err("it is unknown, or belongs to another plugin");
            }
            if ty.has_owned() {
                given.extend(handles);
            }
        }
        self.lent.retain(|lent| !given.contains(lent));
        Ok(())
    }

    #[cold]
    fn resolve<P, R>(&mut self, function: usize) -> wasmtime::Result<TypedFunc<P, R>>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let typed = self.functions[function].typed::<P, R>(&self.store)?;
        self.typed[function] = Some(Box::new(typed));
        Ok(typed)
    }
}

fn failure<T>(error: &wasmtime::Error, store: &Store<State<T>>) -> Failure {
    let trap = error.downcast_ref::<Trap>().copied();
    if trap == Some(Trap::Interrupt) {
        return Failure::Deadline;
    }
    if store.data().memory.refused {
        return Failure::MemoryLimit;
    }
    // The backtrace is the context, the cause comes last.
    let message = trap.map_or_else(|| error.root_cause().to_string(), |trap| trap.to_string());
    Failure::Exception { trap, message }
}

fn collect_handles(value: &Val, into: &mut Vec<ResourceAny>) {
    match value {
        Val::Resource(any) => into.push(*any),
        Val::List(items) | Val::Tuple(items) => items.iter().for_each(|item| collect_handles(item, into)),
        Val::Record(fields) => fields.iter().for_each(|(_, field)| collect_handles(field, into)),
        Val::Option(Some(inner)) | Val::Variant(_, Some(inner)) | Val::Result(Ok(Some(inner)) | Err(Some(inner))) => {
            collect_handles(inner, into);
        }
        _ => {}
    }
}
