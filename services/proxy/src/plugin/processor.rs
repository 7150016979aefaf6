//! How much of a processor a thread has had: what a plugin's deadline goes by where it has had less than the time that
//! passed, since the kernel ran something else. Otherwise a busy machine fails requests that did nothing wrong.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// For how long what was read last is near enough, so that calls, of which there are many a millisecond, do not each ask the
/// kernel.
const FRESH: Duration = Duration::from_millis(1);

thread_local! {
    /// What this thread had had when it was read last, and when that was.
    static READ: Cell<Option<(Instant, Duration)>> = const { Cell::new(None) };
}

/// The most of a processor that this thread can have had until `now`.
pub(super) fn at_most(now: Instant) -> Duration {
    if let Some((at, had)) = READ.get() {
        let since = now.saturating_duration_since(at);
        if since < FRESH {
            return had + since;
        }
    }
    let had = had();
    READ.set(Some((now, had)));
    had
}

/// What this thread has had of a processor.
pub(super) fn had() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sleeps_has_no_processor_and_who_works_has() {
        let (before, end) = (at_most(Instant::now()), Instant::now() + Duration::from_millis(50));
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        assert!(had().saturating_sub(before) < Duration::from_millis(50));
        let begun = had();
        while had().saturating_sub(begun) < Duration::from_millis(5) {
            std::hint::black_box(0);
        }
        // What was read before says nothing of now.
        assert!(at_most(Instant::now()) >= begun + Duration::from_millis(5));
    }
}
