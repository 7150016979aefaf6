//! Calls by threads that wait for the answer.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::MutexGuard;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, Val};

use crate::error::{DispatchError, Failure};
use crate::instance::{Answer, Handed, Loaded, Parts, Slot};
use crate::live::{Live, failure};
use crate::runtime::span;

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

impl<T: Send + 'static> Loaded<T> {
    /// Starts a plugin for the first time.
    pub(crate) fn start(parts: Parts<T>) -> Result<Self, Failure> {
        let this = Self::vacant(parts);
        let mut slot = this.run(this.slot.lock());
        slot.live = Some(this.instantiate(this.start_deadline())?);
        drop(slot);
        Ok(this)
    }

    /// Starts an instance, which has to be done by the tick `deadline`.
    fn instantiate(&self, deadline: u64) -> Result<Live<T>, Failure> {
        let (mut store, left) = self.store(deadline);
        store.set_epoch_deadline(left);
        let instance = self.parts.pre.instantiate(&mut store).map_err(|error| failure(&error, &store))?;
        Live::new(store, &instance, &self.parts.functions, &self.parts.resources)
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
                let slot = self.slot.try_lock_for(span(left)).ok_or_else(|| self.busy(function))?;
                (deadline, left) = self.until(deadline);
                slot
            }
        };
        let mut slot = self.run(slot);
        self.ready(&mut slot, function, (deadline, left))?;
        Ok(slot)
    }

    /// Has an instance ready in the plugin's slot, with its deadline and the ticks until then.
    #[inline]
    fn ready(
        &self,
        slot: &mut Slot<T>,
        function: usize,
        (deadline, mut left): (u64, u64),
    ) -> Result<(), DispatchError> {
        if slot.live.is_none() {
            left = self.revive(slot, function, deadline)?;
        }
        if let Some(live) = &mut slot.live {
            let state = live.store.data_mut();
            state.deadline = deadline;
            state.memory.refused = false;
            live.store.set_epoch_deadline(left);
        }
        Ok(())
    }

    /// The same where the slot lies with the caller, whose turn it is.
    #[inline]
    fn ready_for_caller(&self, slot: &mut Slot<T>, function: usize, caller: u64) -> Result<(), DispatchError> {
        let (deadline, left) = self.until(caller);
        if left == 0 {
            return Err(self.failed(function, Failure::Deadline));
        }
        self.ready(slot, function, (deadline, left))
    }

    /// Starts another instance, in the time that its first call has: the ticks that this leaves of it.
    #[cold]
    fn revive(&self, slot: &mut Slot<T>, function: usize, deadline: u64) -> Result<u64, DispatchError> {
        slot.generation += 1;
        slot.live = Some(self.instantiate(deadline).map_err(|reason| self.unavailable(function, reason))?);
        Ok(deadline.saturating_sub(self.parts.runtime.clock().now()))
    }

    /// The failed instance goes; the next call makes another.
    #[cold]
    fn retire(&self, slot: &mut Slot<T>, function: usize, error: &wasmtime::Error) -> DispatchError {
        let failure = slot.live.take().map_or_else(
            || Failure::Exception { trap: None, message: format!("{error:#}") },
            |live| failure(error, &live.store),
        );
        self.forget();
        self.failed(function, failure)
    }

    /// Calls a function that has to do with no handle, with arguments that fit its signature.
    #[inline]
    pub(crate) fn call_plain(
        &self,
        function: usize,
        arguments: &[Val],
        caller: u64,
    ) -> Result<Option<Val>, DispatchError> {
        let mut slot = self.occupy(function, caller)?;
        self.plain(&mut slot, function, arguments)
    }

    /// The same where the slot lies with the caller.
    pub(crate) fn call_plain_in(
        &self,
        slot: &mut Slot<T>,
        function: usize,
        arguments: &[Val],
        caller: u64,
    ) -> Result<Option<Val>, DispatchError> {
        self.ready_for_caller(slot, function, caller)?;
        self.plain(slot, function, arguments)
    }

    #[inline]
    fn plain(&self, slot: &mut Slot<T>, function: usize, arguments: &[Val]) -> Result<Option<Val>, DispatchError> {
        let Some(live) = &mut slot.live else { unreachable!("a slot is made ready first") };
        let answer = match self.flat[function] {
            Some(call) => call(live, function, arguments),
            None => live.call(function, arguments, self.parts.interface.functions[function].signature.result.is_some()),
        };
        answer.map_err(|error| self.retire(slot, function, &error))
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
        self.admit(function, arguments, handles, generation)?;
        let Some(live) = &mut slot.live else { unreachable!("occupy leaves an instance") };
        let has_result = self.parts.interface.functions[function].signature.result.is_some();
        match live.call(function, arguments, has_result) {
            Ok(value) => Ok(self.answer(function, value, handles, (generation, &live.kinds))),
            Err(error) => Err(self.retire(&mut slot, function, &error)),
        }
    }

    /// Calls a function whose types the host knows.
    #[inline]
    pub(crate) fn call_typed<P, R>(&self, function: usize, arguments: P, caller: u64) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let mut slot = self.occupy(function, caller)?;
        self.typed(&mut slot, function, arguments)
    }

    /// The same where the slot lies with the caller.
    #[inline]
    pub(crate) fn call_typed_in<P, R>(
        &self,
        slot: &mut Slot<T>,
        function: usize,
        arguments: P,
        caller: u64,
    ) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        self.ready_for_caller(slot, function, caller)?;
        self.typed(slot, function, arguments)
    }

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "a call between plugins goes through here, without a frame of its own")]
    fn typed<P, R>(&self, slot: &mut Slot<T>, function: usize, arguments: P) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let Some(live) = &mut slot.live else { unreachable!("a slot is made ready first") };
        let typed = live.typed::<P, R>(function).map_err(|error| self.wrong_types(function, &error))?;
        typed.call(&mut live.store, arguments).map_err(|error| self.retire(slot, function, &error))
    }

    /// Whether a function can be called with these types.
    pub(crate) fn check_types<P, R>(&self, function: usize) -> Result<(), DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let mut slot = self.occupy(function, u64::MAX)?;
        let Some(live) = &mut slot.live else { unreachable!("occupy leaves an instance") };
        live.typed::<P, R>(function).map(|_| ()).map_err(|error| self.wrong_types(function, &error))
    }
}

impl<T: 'static> Loaded<T> {
    #[inline]
    fn run<'a>(&'a self, slot: MutexGuard<'a, Slot<T>>) -> Running<'a, T> {
        self.parts.runtime.clock().run(&self.running);
        Running { slot, flag: &self.running }
    }

    /// Drops a resource of instance `generation`; its destructor runs under the plugin's own deadline.
    pub(crate) fn drop_resource(&self, generation: u64, resource: ResourceAny) {
        let mut slot = self.run(self.slot.lock());
        if slot.generation != generation {
            return;
        }
        let Some(live) = &mut slot.live else { return };
        live.store.data_mut().deadline = self.parts.runtime.clock().now() + self.deadline + 1;
        live.store.set_epoch_deadline(self.deadline + 1);
        if resource.resource_drop(&mut live.store).is_err() {
            // A destructor that fails leaves the instance as unusable as any other trap does.
            slot.live = None;
            self.forget();
        }
    }
}
