//! An engine and the clock that deadlines are measured by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wasmtime::{Config, Engine};

/// How often the clock ticks. A deadline is met within two ticks after it.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a call after which the clock stops until the next one.
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
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct Clock {
    now: AtomicU64,
    calls: AtomicUsize,
    parked: AtomicBool,
    stop: AtomicBool,
    thread: std::sync::OnceLock<thread::Thread>,
}

impl Runtime {
    /// Makes an engine from `config`, with epoch interruption on and concurrency support, which triples a call's cost, off.
    ///
    /// # Errors
    /// When the configuration does not fit the machine, or no thread can be had.
    pub fn new(mut config: Config) -> wasmtime::Result<Self> {
        config.epoch_interruption(true).concurrency_support(false);
        let engine = Engine::new(&config)?;
        let clock = Arc::new(Clock::default());
        let ticking = (engine.clone(), Arc::clone(&clock));
        let thread = thread::Builder::new().name("wasm-clock".into()).spawn(move || tick(&ticking.0, &ticking.1))?;
        clock.thread.get_or_init(|| thread.thread().clone());
        Ok(Self(Arc::new(Inner { engine, clock, thread: Some(thread) })))
    }

    /// The engine: components and linkers are made with it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    #[inline]
    pub(crate) fn clock(&self) -> &Clock {
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
        idle = if clock.calls.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
        if idle > IDLE_TICKS {
            clock.parked.store(true, Ordering::SeqCst);
            while clock.calls.load(Ordering::SeqCst) == 0 && !clock.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            clock.parked.store(false, Ordering::SeqCst);
            next = Instant::now() + TICK;
            idle = 0;
        }
    }
}

/// A call is in flight while this lives.
pub(crate) struct InFlight<'a>(&'a Clock);

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Keeps the clock ticking. The order is that of the clock's own thread, mirrored: it sets `parked` and then looks at
    /// `calls`, this sets `calls` and then looks at `parked`, so one of the two sees the other.
    #[inline]
    pub(crate) fn enter(&self) -> InFlight<'_> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        InFlight(self)
    }
}

impl Drop for InFlight<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Release);
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
