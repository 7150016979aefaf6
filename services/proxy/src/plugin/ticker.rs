//! The clock of deadlines: one thread that moves the engine's epoch on by one each millisecond while a call runs, looks now
//! and then whether one does while plugins are called, and sleeps while none are.
//!
//! Most calls take microseconds and are over before anybody looks. A call's first tick only has it ask how much of its time
//! is left; it is asked again half-way to its end, and so on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// Between two ticks, while a call runs.
const TICK: Duration = Duration::from_millis(1);
/// Between two looks at whether one does. Each wakes a thread, a thousand a second cost a proxy that calls plugins some
/// percent of a processor.
const LOOK: Duration = Duration::from_millis(5);
/// How long no call must have run before the clock stops.
const IDLE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Ticker {
    begun: AtomicU64,
    ended: AtomicU64,
    /// The shortest deadline that a call has had, milliseconds.
    shortest: AtomicU64,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine) -> std::io::Result<Arc<Self>> {
        let ticker = Arc::new(Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            shortest: AtomicU64::new(u64::MAX),
            asleep: AtomicBool::new(false),
            thread: OnceLock::new(),
        });
        let weak = Arc::downgrade(&ticker);
        let mut pause = TICK;
        let handle = std::thread::Builder::new().name("plugin-clock".to_owned()).spawn(move || {
            let (mut seen, mut idle) = (0, Duration::ZERO);
            loop {
                std::thread::park_timeout(pause);
                let Some(ticker) = weak.upgrade() else { return };
                // In this order: a call that is seen to have ended is seen to have begun.
                let ended = ticker.ended.load(Ordering::Acquire);
                let begun = ticker.begun.load(Ordering::Relaxed);
                let runs = ended != begun;
                if runs {
                    engine.increment_epoch();
                }
                idle = if runs || begun != seen { Duration::ZERO } else { idle + pause };
                seen = begun;
                pause = pause_of(runs, ticker.shortest.load(Ordering::Relaxed));
                if idle >= IDLE {
                    ticker.asleep.store(true, Ordering::SeqCst);
                    // A call that began meanwhile has not seen the flag, so it is looked for once more.
                    if ticker.begun.load(Ordering::SeqCst) == seen {
                        drop(ticker);
                        std::thread::park();
                    }
                    if let Some(ticker) = weak.upgrade() {
                        ticker.asleep.store(false, Ordering::SeqCst);
                    }
                    idle = Duration::ZERO;
                }
            }
        })?;
        // The cell is empty: it was made above.
        let _ = ticker.thread.set(handle.thread().clone());
        Ok(ticker)
    }

    /// Calls are to come that have this many milliseconds.
    pub(crate) fn expect(&self, deadline: u64) {
        self.shortest.fetch_min(deadline, Ordering::Relaxed);
    }

    /// Says that a call begins; it runs until what this gives is dropped. Its first tick comes before half of its deadline
    /// is over, and from then on one each millisecond.
    pub(crate) fn begin(&self) -> Running<'_> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Running(self)
    }
}

/// Until the next look, by whether a call was seen to run, and by the shortest deadline (milliseconds).
fn pause_of(runs: bool, shortest: u64) -> Duration {
    if runs { TICK } else { Duration::from_millis(shortest / 2).clamp(TICK, LOOK) }
}

/// A call that runs, however long its deadline lets it.
#[must_use]
pub(crate) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_began_after_a_look_is_seen_before_half_of_its_deadline_is_over() {
        for deadline in [2, 3, 8, 10, 400, u64::MAX] {
            assert!(pause_of(false, deadline) <= Duration::from_millis(deadline) / 2, "{deadline}");
        }
        assert_eq!(pause_of(false, 1), TICK);
        assert_eq!(pause_of(false, u64::MAX), LOOK);
    }

    #[test]
    fn a_call_that_runs_has_a_tick_each_millisecond() {
        assert_eq!(pause_of(true, u64::MAX), TICK);
    }
}
