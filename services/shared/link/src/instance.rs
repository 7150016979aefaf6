//! One loaded plugin: its instance, how it is called and how it is replaced.
//!
//! ```text
//!            start ok                 call fails
//!   Vacant ───────────▶ Ready(n) ───────────────▶ Vacant
//!     ▲  │ start fails    │  ▲
//!     └──┘ (Unavailable)  └──┘ call answers
//! ```
//! `n` counts instances: a handle of instance `n` is worthless once it is replaced.
//!
//! A plugin is called either by threads that wait ([`blocking`](crate::blocking)) or by tasks that yield
//! ([`yielding`](crate::yielding)), which its tree decides when it is loaded; what both need is here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::Store;
use wasmtime::component::{ComponentExportIndex, InstancePre, ResourceAny, ResourceType, Val};

use crate::error::{DispatchError, Failure};
use crate::flat::{self, Flat};
use crate::interface::Interface;
use crate::live::{Live, collect_handles};
use crate::plugin::{Limits, MakeData};
use crate::runtime::{Clock, Runtime, ticks};
use crate::state::State;

/// Least time that the first start of a plugin may take, when its tree is loaded: nobody waits for an answer yet, and a
/// machine that is busy must not make a good plugin one that does not load.
pub(crate) const START: Duration = Duration::from_secs(1);

/// A plugin that has loaded.
pub(crate) struct Loaded<T: 'static> {
    pub(crate) parts: Parts<T>,
    pub(crate) deadline: u64,
    clock: Arc<Clock>,
    /// Held up while the plugin runs, for the clock.
    pub(crate) running: Arc<AtomicBool>,
    /// Whose tasks yield, hold the turn for the length of a call and the slot only to take the instance and put it back.
    #[cfg(feature = "async")]
    pub(crate) turn: tokio::sync::Semaphore,
    /// Resources of this plugin that its next turn drops.
    #[cfg(feature = "async")]
    pub(crate) orphans: Mutex<Vec<(u64, ResourceAny)>>,
    pub(crate) slot: Mutex<Slot<T>>,
    /// Of each function that has a quicker way to be called untyped: that way.
    pub(crate) flat: Vec<Option<Flat<T>>>,
    /// Handles that the host holds, with the instance that they belong to.
    lent: Mutex<Vec<(u64, ResourceAny)>>,
}

pub(crate) struct Slot<T: 'static> {
    pub(crate) generation: u64,
    pub(crate) live: Option<Live<T>>,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { generation: 0, live: None }
    }
}

/// The slot of a plugin that one other plugin alone calls. It lies in the caller's store: the caller's turn is its, too, and
/// no call needs its lock. It returns to the plugin when that store goes, for the caller's next instance to take.
pub(crate) struct Exclusive<T: 'static> {
    plugin: Arc<Loaded<T>>,
    pub(crate) slot: Slot<T>,
}

impl<T: 'static> Exclusive<T> {
    fn take(plugin: &Arc<Loaded<T>>) -> Self {
        Self { plugin: Arc::clone(plugin), slot: std::mem::take(&mut plugin.slot.lock()) }
    }
}

impl<T> Drop for Exclusive<T> {
    fn drop(&mut self) {
        *self.plugin.slot.lock() = std::mem::take(&mut self.slot);
    }
}

/// How the plugins of a tree are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// By threads that wait.
    Blocking,
    /// By tasks that yield.
    #[cfg(feature = "async")]
    Yielding,
}

/// What a plugin needs to be started.
pub(crate) struct Parts<T: 'static> {
    /// How it is called.
    pub(crate) mode: Mode,
    pub(crate) id: Arc<str>,
    pub(crate) interface: Arc<Interface>,
    pub(crate) runtime: Runtime,
    pub(crate) pre: InstancePre<State<T>>,
    /// Of each function of the interface, in its order.
    pub(crate) functions: Vec<ComponentExportIndex>,
    /// Of each resource of the interface, with the number by which other plugins know it.
    pub(crate) resources: Vec<(ComponentExportIndex, u32)>,
    pub(crate) data: MakeData<T>,
    pub(crate) limits: Limits,
    /// Plugins that it alone calls, by the place that its sockets know them by.
    pub(crate) exclusive: Vec<Arc<Loaded<T>>>,
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

impl<T: 'static> Loaded<T> {
    /// A plugin without an instance.
    pub(crate) fn vacant(parts: Parts<T>) -> Self {
        let functions = parts.interface.functions.iter().filter(|_| parts.mode == Mode::Blocking);
        Self {
            flat: functions.map(|function| flat::choose(&function.signature)).collect(),
            deadline: ticks(parts.limits.deadline),
            clock: Arc::clone(parts.runtime.clock()),
            running: parts.runtime.clock().watch(),
            #[cfg(feature = "async")]
            turn: tokio::sync::Semaphore::new(1),
            #[cfg(feature = "async")]
            orphans: Mutex::default(),
            slot: Mutex::default(),
            lent: Mutex::default(),
            parts,
        }
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        &self.parts.id
    }

    /// The tick at which a call that starts now must have ended, and the ticks until then.
    #[inline]
    pub(crate) fn until(&self, caller: u64) -> (u64, u64) {
        let now = self.clock.now();
        // One more, as the current tick may be about to end.
        let deadline = (now + self.deadline + 1).min(caller);
        (deadline, deadline.saturating_sub(now))
    }

    /// The tick at which the first instance must be there.
    pub(crate) fn start_deadline(&self) -> u64 {
        self.parts.runtime.clock().now() + self.deadline.max(ticks(START)) + 1
    }

    /// A store for an instance that has to be started by the tick `deadline`, and the ticks until then.
    pub(crate) fn store(&self, deadline: u64) -> (Store<State<T>>, u64) {
        let parts = &self.parts;
        let exclusive = parts.exclusive.iter().map(Exclusive::take).collect();
        let mut store = Store::new(parts.runtime.engine(), State::new((parts.data)(), parts.limits, exclusive));
        store.limiter(|state| &mut state.memory);
        store.data_mut().deadline = deadline;
        (store, deadline.saturating_sub(parts.runtime.clock().now()))
    }

    fn name(&self, function: usize) -> String {
        self.parts.interface.functions[function].name.clone()
    }

    #[cold]
    pub(crate) fn failed(&self, function: usize, failure: Failure) -> DispatchError {
        DispatchError::Failed { plugin: self.id().to_string(), function: self.name(function), failure }
    }

    #[cold]
    pub(crate) fn busy(&self, function: usize) -> DispatchError {
        DispatchError::Busy { plugin: self.id().to_string(), function: self.name(function) }
    }

    #[cold]
    pub(crate) fn unavailable(&self, function: usize, reason: Failure) -> DispatchError {
        DispatchError::Unavailable { plugin: self.id().to_string(), function: self.name(function), reason }
    }

    #[cold]
    pub(crate) fn resource_error(&self, function: usize, reason: impl Into<String>) -> DispatchError {
        DispatchError::Resource { plugin: self.id().to_string(), function: self.name(function), reason: reason.into() }
    }

    #[cold]
    pub(crate) fn wrong_types(&self, function: usize, error: &wasmtime::Error) -> DispatchError {
        let known = &self.parts.interface.functions[function];
        DispatchError::WrongArguments {
            function: known.name.clone(),
            expected: known.signature.to_string(),
            given: format!("{error:#}"),
        }
    }

    /// Whether instance `generation` may be handed these arguments; what the host gives away with them is its no more.
    #[inline]
    pub(crate) fn admit(
        &self,
        function: usize,
        arguments: &[Val],
        handles: Handed,
        generation: u64,
    ) -> Result<(), DispatchError> {
        match handles {
            Handed::None => Ok(()),
            Handed::Passed(from) if from == generation => Ok(()),
            Handed::Passed(_) => Err(self.resource_error(function, "its plugin failed and was started anew")),
            Handed::ByHost => self.take_lent(function, arguments, generation),
        }
    }

    /// Checks that handles which the host hands over are this instance's, and forgets those that it gives away.
    #[cold]
    fn take_lent(&self, function: usize, arguments: &[Val], generation: u64) -> Result<(), DispatchError> {
        let mut lent = self.lent.lock();
        let mut given = Vec::new();
        for (ty, argument) in self.parts.interface.functions[function].signature.params.iter().zip(arguments) {
            let mut handles = Vec::new();
            collect_handles(argument, &mut handles);
            if !handles.iter().all(|handle| lent.contains(&(generation, *handle))) {
                return Err(self.resource_error(function, "it is unknown, or belongs to another plugin"));
            }
            if ty.has_owned() {
                given.extend(handles);
            }
        }
        lent.retain(|(_, known)| !given.contains(known));
        Ok(())
    }

    /// An answer of instance `generation`; the handles in it are the host's from now on, if it called.
    pub(crate) fn answer(
        &self,
        function: usize,
        value: Option<Val>,
        handles: Handed,
        (generation, kinds): (u64, &Arc<[(ResourceType, u32)]>),
    ) -> Answer {
        let known = &self.parts.interface.functions[function];
        if let (Handed::ByHost, Some(value)) = (handles, &value) {
            let mut held = Vec::new();
            collect_handles(value, &mut held);
            self.lent.lock().extend(held.into_iter().map(|handle| (generation, handle)));
        }
        Answer { value, generation, kinds: known.result_holds.then(|| Arc::clone(kinds)) }
    }

    /// Whether the host holds `resource` of this plugin.
    pub(crate) fn has_lent(&self, resource: &ResourceAny) -> bool {
        self.lent.lock().iter().any(|(_, lent)| lent == resource)
    }

    /// Takes a handle back from the host: the instance that it belongs to, if the host held it.
    pub(crate) fn take_back(&self, resource: &ResourceAny) -> Option<u64> {
        let mut lent = self.lent.lock();
        let at = lent.iter().position(|(_, known)| known == resource)?;
        Some(lent.swap_remove(at).0)
    }

    /// Notes that an instance is gone, and its handles with it.
    #[cold]
    pub(crate) fn forget(&self) {
        self.lent.lock().clear();
    }
}
