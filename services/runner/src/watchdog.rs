//! Ends a call that takes too long. It sleeps while there is none.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::Engine;

/// When the present call is to be over.
#[derive(Default)]
struct Shared {
    until: Mutex<Option<Instant>>,
    changed: Condvar,
}

/// Interrupts what runs on an engine past its deadline.
pub(crate) struct Watchdog {
    shared: Arc<Shared>,
    most: Duration,
}

impl Watchdog {
    /// Starts it, for calls that may take `most`.
    pub(crate) fn start(engine: Engine, most: Duration) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || watch(&theirs, &engine))?;
        Ok(Self { shared, most })
    }

    /// Makes a call under the deadline.
    pub(crate) fn during<A>(&self, call: impl FnOnce() -> A) -> A {
        self.set(Some(Instant::now() + self.most));
        let answer = call();
        self.set(None);
        answer
    }

    fn set(&self, until: Option<Instant>) {
        *self.shared.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.shared.changed.notify_one();
    }
}

fn watch(shared: &Shared, engine: &Engine) {
    let mut until = shared.until.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        until = match *until {
            None => shared.changed.wait(until).unwrap_or_else(PoisonError::into_inner),
            Some(end) => match end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                Some(left) => shared.changed.wait_timeout(until, left).unwrap_or_else(PoisonError::into_inner).0,
                None => {
                    engine.increment_epoch();
                    *until = None;
                    until
                }
            },
        };
    }
}
