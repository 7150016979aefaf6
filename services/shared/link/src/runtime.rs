//! An engine and the clock that deadlines are measured by.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::thread::{MembarrierCommand, membarrier};
use wasmtime::{Config, Engine};

/// How often the clock ticks. A deadline is met within two ticks after it.
const TICK: Duration = Duration::from_millis(1);
/// Ticks that saw no call after which the clock stops until the next one.
const IDLE_TICKS: u32 = 50;

/// An engine set up for linking, and its clock. Clones share both; loaded trees hold one.
///
/// The clock is a thread that advances the engine's epoch each millisecond while a call runs, and sleeps while none does.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    clock: Arc<Clock>,
    async_functions: bool,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    parked: AtomicBool,
    /// Of each plugin: whether it runs now.
    running: Mutex<Vec<Weak<AtomicBool>>>,
    stop: AtomicBool,
    thread: std::sync::OnceLock<thread::Thread>,
}

impl Runtime {
    /// Makes an engine from `config`, with epoch interruption on and concurrency support, which triples a call's cost, off.
    ///
    /// # Errors
    /// When the configuration does not fit the machine, or no thread can be had.
    pub fn new(mut config: Config) -> wasmtime::Result<Self> {
        config.concurrency_support(false);
        Self::start(config, false)
    }

    /// The same for plugins with functions that WIT calls `async`, in trees that tasks call ([`Tree::load_async`]).
    ///
    /// Concurrency support is on in it, and each call of each plugin costs about three times as much, also of functions
    /// that are not `async`. Tasks that such a function leaves behind after its answer go on while its plugin is called
    /// again. Who calls a tree of such a runtime from a function of the host that plugins of another one call does it
    /// in a task of its own: wasmtime panics on one store's tasks within another's.
    ///
    /// [`Tree::load_async`]: crate::Tree::load_async
    ///
    /// # Errors
    /// When the configuration does not fit the machine, or no thread can be had.
    #[cfg(feature = "async-functions")]
    pub fn with_async_functions(mut config: Config) -> wasmtime::Result<Self> {
        config.concurrency_support(true);
        Self::start(config, true)
    }

    fn start(mut config: Config, async_functions: bool) -> wasmtime::Result<Self> {
        config.epoch_interruption(true);
        let engine = Engine::new(&config)?;
        let clock = Arc::new(Clock::default());
        let ticking = (engine.clone(), Arc::clone(&clock));
        let thread = thread::Builder::new().name("wasm-clock".into()).spawn(move || tick(&ticking.0, &ticking.1))?;
        clock.thread.get_or_init(|| thread.thread().clone());
        Ok(Self(Arc::new(Inner { engine, clock, async_functions, thread: Some(thread) })))
    }

    /// The engine: components and linkers are made with it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Whether plugins may have functions that WIT calls `async`.
    #[must_use]
    pub fn has_async_functions(&self) -> bool {
        self.0.async_functions
    }

    #[inline]
    pub(crate) fn clock(&self) -> &Arc<Clock> {
        &self.0.clock
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.clock.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic of the clock's thread has nothing to say here.
            let _ = thread.join();
        }
    }
}

fn tick(engine: &Engine, clock: &Clock) {
    let mut next = Instant::now() + TICK;
    let mut idle = 0;
    // A kernel that lacks it has the clock tick on.
    let can_park = membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok();
    while !clock.stop.load(Ordering::SeqCst) {
        let now = Instant::now();
        if now < next {
            thread::park_timeout(next - now);
            continue;
        }
        while next <= now {
            clock.now.fetch_add(1, Ordering::SeqCst);
            engine.increment_epoch();
            next += TICK;
        }
        idle = if clock.any_running() { 0 } else { idle + 1 };
        if idle > IDLE_TICKS && can_park {
            clock.parked.store(true, Ordering::SeqCst);
            // Now every other thread has either made its `running` visible or will see `parked`.
            if membarrier(MembarrierCommand::PrivateExpedited).is_ok() {
                while !clock.any_running() && !clock.stop.load(Ordering::SeqCst) {
                    thread::park();
                }
            }
            clock.parked.store(false, Ordering::SeqCst);
            next = Instant::now() + TICK;
            idle = 0;
        }
    }
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// A flag for a plugin to hold up while it runs.
    pub(crate) fn watch(&self) -> Arc<AtomicBool> {
        let flag = Arc::new(AtomicBool::new(false));
        self.running.lock().push(Arc::downgrade(&flag));
        flag
    }

    /// Holds up a plugin's flag, and with it the clock's ticking.
    ///
    /// The clock sets `parked` and then looks at the flags, this sets a flag and then looks at `parked`: one has to see the
    /// other. What keeps the order here is the clock's own memory barrier, which the kernel carries out on every thread
    /// (membarrier(2)); so a call, of which there are millions, pays nothing for it and going to sleep pays for all.
    #[inline]
    pub(crate) fn run(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if self.parked.load(Ordering::Relaxed) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn any_running(&self) -> bool {
        let mut any = false;
        self.running.lock().retain(|flag| match flag.upgrade() {
            Some(flag) => {
                any |= flag.load(Ordering::SeqCst);
                true
            }
            None => false,
        });
        any
    }
}

/// `duration` in ticks, rounded up, at least one.
pub(crate) fn ticks(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 4).clamp(1, u64::MAX / 4)
}

/// As long as `ticks` take.
pub(crate) fn span(ticks: u64) -> Duration {
    TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_sleeps_while_nothing_runs_and_ticks_while_something_does() {
        let runtime = Runtime::new(Config::new()).unwrap();
        let clock = runtime.clock();
        let flag = clock.watch();
        for _ in 0..3 {
            while !clock.parked.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            clock.run(&flag);
            let before = clock.now();
            while clock.now() < before + 3 {
                thread::yield_now();
            }
            assert!(!clock.parked.load(Ordering::SeqCst));
            flag.store(false, Ordering::Release);
        }
        drop(flag);
        while !clock.running.lock().is_empty() {
            assert!(!clock.any_running());
        }
    }

    #[test]
    fn durations_are_rounded_up() {
        let table = [(0, 1), (1, 1), (999_999, 1), (1_000_000, 1), (1_000_001, 2), (10_000_000, 10)];
        for (nanoseconds, wanted) in table {
            assert_eq!(ticks(Duration::from_nanos(nanoseconds)), wanted);
        }
        assert_eq!(span(10), Duration::from_millis(10));
    }
}
