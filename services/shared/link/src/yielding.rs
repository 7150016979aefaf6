//! Calls by tasks that yield: a plugin that computes gives its thread away at each tick, one that waits for the host gives
//! it away for as long.
//!
//! A call that is given up, by its deadline or because nobody waits for it any more, leaves its instance in the middle of
//! something: the instance goes with it, and the next call makes another.

use std::sync::atomic::Ordering;

use tokio::sync::SemaphorePermit;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, Val};
use wasmtime::{Store, UpdateDeadline};

use crate::error::{DispatchError, Failure};
use crate::instance::{Answer, Handed, Loaded, Parts};
use crate::live::{Live, failure};
use crate::runtime::span;
use crate::state::State;

/// Ticks after which a plugin that computes lets others have the thread.
const SLICE: u64 = 1;

/// The plugin to oneself, over as many awaits as it takes. Its instance returns to the plugin when the turn is
/// [kept](Turn::keep), else it is gone.
struct Turn<'a, T: 'static> {
    plugin: &'a Loaded<T>,
    generation: u64,
    live: Option<Live<T>>,
    /// Ticks that are left of the call's time.
    left: u64,
    _permit: SemaphorePermit<'a>,
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        // What is broken off may drop handles of other plugins, so before the flag, by which the clock ticks.
        if self.live.take().is_some() {
            self.plugin.forget();
        }
        self.plugin.running.store(false, Ordering::Release);
    }
}

impl<T> Turn<'_, T> {
    /// The instance is whole and stays.
    fn keep(mut self) {
        self.plugin.slot.lock().live = self.live.take();
    }
}

/// What came of work that was waited for no longer than its deadline.
fn judge<T, A>(outcome: Result<wasmtime::Result<A>, Elapsed>, store: &Store<State<T>>) -> Result<A, Failure> {
    match outcome {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failure(&error, store)),
        Err(_) => Err(Failure::Deadline),
    }
}

impl<T: Send + 'static> Loaded<T> {
    /// Starts a plugin for the first time.
    pub(crate) async fn start_yielding(parts: Parts<T>) -> Result<Self, Failure> {
        let this = Self::vacant(parts);
        this.parts.runtime.clock().run(&this.running);
        let live = this.instantiate_yielding(this.start_deadline()).await;
        this.running.store(false, Ordering::Release);
        this.slot.lock().live = Some(live?);
        Ok(this)
    }

    async fn instantiate_yielding(&self, deadline: u64) -> Result<Live<T>, Failure> {
        let (mut store, left) = self.store(deadline);
        let runtime = self.parts.runtime.clone();
        store.epoch_deadline_callback(move |store| {
            let over = runtime.clock().now() >= store.data().deadline;
            Ok(if over { UpdateDeadline::Interrupt } else { UpdateDeadline::Yield(SLICE) })
        });
        store.set_epoch_deadline(SLICE);
        let started = timeout(span(left), self.parts.pre.instantiate_async(&mut store)).await;
        let instance = judge(started, &store)?;
        Live::new(store, &instance, &self.parts.functions, &self.parts.resources)
    }

    /// Waits for the plugin's turn. It has an instance then, and its deadline is set.
    async fn turn(&self, function: usize, caller: u64) -> Result<Turn<'_, T>, DispatchError> {
        let (mut deadline, mut left) = self.until(caller);
        if left == 0 {
            return Err(self.failed(function, Failure::Deadline));
        }
        let permit = match self.turn.try_acquire() {
            Ok(permit) => permit,
            Err(_) => {
                let permit = timeout(span(left), self.turn.acquire()).await;
                (deadline, left) = self.until(deadline);
                // It is never closed, so no permit means that the time is over.
                permit.ok().and_then(Result::ok).ok_or_else(|| self.busy(function))?
            }
        };
        let mut turn = self.begin(permit, left);
        if !self.orphans.lock().is_empty() {
            self.drop_orphans(&mut turn).await;
        }
        if turn.live.is_none() {
            turn.generation = self.renew();
            let started = self.instantiate_yielding(deadline).await;
            turn.live = Some(started.map_err(|reason| self.unavailable(function, reason))?);
            turn.left = deadline.saturating_sub(self.parts.runtime.clock().now());
        }
        if let Some(live) = &mut turn.live {
            let state = live.store.data_mut();
            state.deadline = deadline;
            state.memory.refused = false;
            live.store.set_epoch_deadline(SLICE);
        }
        Ok(turn)
    }

    /// The number of the next instance.
    fn renew(&self) -> u64 {
        let mut slot = self.slot.lock();
        slot.generation += 1;
        slot.generation
    }

    /// Takes the instance, if there is one.
    fn begin<'a>(&'a self, permit: SemaphorePermit<'a>, left: u64) -> Turn<'a, T> {
        self.parts.runtime.clock().run(&self.running);
        let mut slot = self.slot.lock();
        Turn { plugin: self, generation: slot.generation, live: slot.live.take(), left, _permit: permit }
    }

    /// Calls a function with arguments that fit its signature.
    pub(crate) async fn call_yielding(
        &self,
        function: usize,
        arguments: &[Val],
        caller: u64,
        handles: Handed,
    ) -> Result<Answer, DispatchError> {
        let mut turn = self.turn(function, caller).await?;
        let generation = turn.generation;
        if let Err(error) = self.admit(function, arguments, handles, generation) {
            turn.keep();
            return Err(error);
        }
        let Some(live) = &mut turn.live else { unreachable!("a turn has an instance until it ends") };
        let has_result = self.parts.interface.functions[function].signature.result.is_some();
        let mut result = [Val::Bool(false)];
        let func = live.functions[function];
        let called = func.call_async(&mut live.store, arguments, &mut result[..usize::from(has_result)]);
        let called = timeout(span(turn.left), called).await;
        judge(called, &live.store).map_err(|failure| self.failed(function, failure))?;
        let [value] = result;
        let value = has_result.then_some(value);
        let answer = self.answer(function, value, handles, (generation, &live.kinds));
        turn.keep();
        Ok(answer)
    }

    /// Calls a function whose types the host knows.
    pub(crate) async fn call_typed_yielding<P, R>(
        &self,
        function: usize,
        arguments: P,
        caller: u64,
    ) -> Result<R, DispatchError>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let mut turn = self.turn(function, caller).await?;
        let Some(live) = &mut turn.live else { unreachable!("a turn has an instance until it ends") };
        let typed = match live.typed::<P, R>(function) {
            Ok(typed) => typed,
            Err(error) => {
                turn.keep();
                return Err(self.wrong_types(function, &error));
            }
        };
        let called = async {
            #[cfg(feature = "async-functions")]
            if self.parts.runtime.has_async_functions() {
                return crate::concurrent::call(&mut live.store, typed, arguments).await;
            }
            typed.call_async(&mut live.store, arguments).await
        };
        let called = timeout(span(turn.left), called).await;
        let answer = judge(called, &live.store).map_err(|failure| self.failed(function, failure))?;
        turn.keep();
        Ok(answer)
    }

    /// Whether a function can be called with these types.
    pub(crate) async fn check_types_yielding<P, R>(&self, function: usize) -> Result<(), DispatchError>
    where
        P: ComponentNamedList + Lower + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let mut turn = self.turn(function, u64::MAX).await?;
        let Some(live) = &mut turn.live else { unreachable!("a turn has an instance until it ends") };
        let known = live.typed::<P, R>(function).map(|_| ()).map_err(|error| self.wrong_types(function, &error));
        turn.keep();
        known
    }

    /// Drops a resource of instance `generation`; its destructor runs under the plugin's own deadline. Where the plugin
    /// is in use for longer than that, its next call does it.
    pub(crate) async fn drop_resource_yielding(&self, generation: u64, resource: ResourceAny) {
        self.orphans.lock().push((generation, resource));
        let left = self.deadline + 1;
        let Ok(Ok(permit)) = timeout(span(left), self.turn.acquire()).await else { return };
        let mut turn = self.begin(permit, left);
        self.drop_orphans(&mut turn).await;
        turn.keep();
    }

    /// Drops what was left to this plugin to drop. A destructor that fails leaves the instance as unusable as any other
    /// trap does.
    async fn drop_orphans(&self, turn: &mut Turn<'_, T>) {
        loop {
            let orphan = self.orphans.lock().pop();
            let Some((generation, resource)) = orphan else { return };
            // Of an instance that is gone it went along.
            let Some(live) = turn.live.as_mut().filter(|_| generation == turn.generation) else { continue };
            live.store.data_mut().deadline = self.parts.runtime.clock().now() + self.deadline + 1;
            live.store.set_epoch_deadline(SLICE);
            let dropped = timeout(span(self.deadline + 1), resource.resource_drop_async(&mut live.store)).await;
            if !matches!(dropped, Ok(Ok(()))) {
                turn.live = None;
                self.forget();
            }
        }
    }
}

impl<T: 'static> Loaded<T> {
    /// Leaves a resource for the next call to drop, where nothing can be awaited.
    pub(crate) fn leave(&self, generation: u64, resource: ResourceAny) {
        self.orphans.lock().push((generation, resource));
    }
}
