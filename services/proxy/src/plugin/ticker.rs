//! The clock of deadlines: one thread that moves the engine's epoch on by one each millisecond while plugins are called,
//! and sleeps while none are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::Duration;

/// How long no call must have run before the clock stops.
const IDLE_TICKS: u32 = 200;

#[derive(Debug, Default)]
pub(crate) struct Ticker {
    begun: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Ticker {
    pub(crate) fn start(engine: wasmtime::Engine) -> std::io::Result<Arc<Self>> {
        let ticker = Arc::new(Self::default());
        let weak = Arc::downgrade(&ticker);
        let handle = std::thread::Builder::new().name("plugin-clock".to_owned()).spawn(move || {
            let (mut seen, mut idle) = (0, 0);
            loop {
                std::thread::park_timeout(Duration::from_millis(1));
                engine.increment_epoch();
                let Some(ticker) = weak.upgrade() else { return };
                // In this order: a call that is seen to have ended is seen to have begun.
                let ended = ticker.ended.load(Ordering::Acquire);
                let begun = ticker.begun.load(Ordering::Relaxed);
                idle = if begun == seen && ended == begun { idle + 1 } else { 0 };
                seen = begun;
                if idle >= IDLE_TICKS {
                    ticker.asleep.store(true, Ordering::SeqCst);
                    // A call that began meanwhile has not seen the flag, so it is looked for once more.
                    if ticker.begun.load(Ordering::SeqCst) == seen {
                        drop(ticker);
                        std::thread::park();
                    }
                    if let Some(ticker) = weak.upgrade() {
                        ticker.asleep.store(false, Ordering::SeqCst);
                    }
                    idle = 0;
                }
            }
        })?;
        // The cell is empty: it was made above.
        let _ = ticker.thread.set(handle.thread().clone());
        Ok(ticker)
    }

    /// Says that a call begins; it runs until what this gives is dropped.
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
