//! How much has passed, and how fast: pure arithmetic over times handed in.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(1);

/// Counts bytes and gives their rate over the last full second.
#[derive(Debug, Clone)]
pub struct Meter {
    total: u64,
    /// Since when `in_window` has been counted.
    since: Instant,
    in_window: u64,
    /// The rate of the window before; none in the first second.
    before: Option<u64>,
}

impl Meter {
    /// A meter at zero.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { total: 0, since: now, in_window: 0, before: None }
    }

    /// Counts `bytes` that passed at `now`.
    pub fn add(&mut self, bytes: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed >= WINDOW {
            self.before = Some(per_second(self.in_window, passed));
            self.since = now;
            self.in_window = 0;
        }
        self.total += bytes;
        self.in_window += bytes;
    }

    /// Bytes counted so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes a second: over the second before, or over what there was of the first one; falls
    /// towards 0 while nothing passes.
    #[must_use]
    pub fn rate(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.since);
        match self.before {
            Some(rate) if passed < WINDOW => rate,
            _ => per_second(self.in_window, passed),
        }
    }
}

/// A first burst is not blown up: less than a tenth of a second counts as that.
fn per_second(bytes: u64, passed: Duration) -> u64 {
    let nanos = passed.max(Duration::from_millis(100)).as_nanos();
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_full_second() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = Meter::new(start);
        assert_eq!((meter.total(), meter.rate(at(0))), (0, 0));
        meter.add(500, at(250));
        assert_eq!(meter.rate(at(500)), 1000, "half a second so far");
        meter.add(500, at(999));
        meter.add(7000, at(1000));
        assert_eq!((meter.total(), meter.rate(at(1500))), (8000, 1000), "the second before");
        meter.add(0, at(2000));
        assert_eq!(meter.rate(at(2001)), 7000);
    }

    #[test]
    fn the_rate_falls_while_nothing_passes() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.add(1000, start);
        meter.add(1000, start + Duration::from_secs(1));
        assert_eq!(meter.rate(start + Duration::from_secs(3)), 500);
        assert_eq!(meter.rate(start + Duration::from_secs(101)), 10);
    }
}
