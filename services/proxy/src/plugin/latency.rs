//! How long calls took: counts by time, in steps that grow with it, so that any two figures within a quarter of each
//! other are one.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Steps within a doubling.
const STEPS: u64 = 4;
/// The last step begins beyond two minutes; longer calls count there.
const COUNT: usize = 36 * STEPS as usize;

/// Calls by the time that they took.
pub(crate) struct Latencies([AtomicU64; COUNT]);

impl Default for Latencies {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

fn step_of(time: Duration) -> usize {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(STEPS);
    let doublings = u64::from(ns.ilog2()) - 2;
    let step = doublings * STEPS + (ns >> doublings) - STEPS;
    usize::try_from(step).map_or(COUNT - 1, |step| step.min(COUNT - 1))
}

/// The time below which all calls of a step stayed, nanoseconds.
fn end_of(step: usize) -> u64 {
    let (doublings, rest) = (step as u64 / STEPS, step as u64 % STEPS);
    (STEPS + rest + 1) << doublings
}

impl Latencies {
    /// Counts a call.
    pub(crate) fn add(&self, time: Duration) {
        self.0[step_of(time)].fetch_add(1, Relaxed);
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.0.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Nanoseconds that this many of a hundred calls stayed below; 0 where there was none.
    pub(crate) fn percentile(&self, of_a_hundred: u64) -> u64 {
        self.step_at(of_a_hundred).map_or(0, end_of)
    }

    /// Nanoseconds that the last of this many of a hundred calls took at least; 0 where there was none.
    pub(crate) fn percentile_at_least(&self, of_a_hundred: u64) -> u64 {
        self.step_at(of_a_hundred).and_then(|step| step.checked_sub(1)).map_or(0, end_of)
    }

    fn step_at(&self, of_a_hundred: u64) -> Option<usize> {
        let rank = (self.calls() * of_a_hundred).div_ceil(100);
        let mut below = 0;
        self.0.iter().position(|count| {
            below += count.load(Relaxed);
            rank > 0 && below >= rank
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_known_within_a_quarter() {
        for ns in [0, 1, 4, 5, 7, 8, 100, 2_600, 14_900, 1_000_000, 999_999_999, 100_000_000_000] {
            let end = end_of(step_of(Duration::from_nanos(ns)));
            assert!(end > ns && (ns < STEPS || end <= ns + ns / 4 + 1), "{ns} counts as below {end}");
        }
        assert_eq!(step_of(Duration::MAX), COUNT - 1);
    }

    #[test]
    fn percentiles_are_of_the_calls_and_of_nothing_zero() {
        let times = Latencies::default();
        assert_eq!((times.percentile(50), times.percentile(99)), (0, 0));
        (0..98).for_each(|_| times.add(Duration::from_micros(2)));
        (0..2).for_each(|_| times.add(Duration::from_millis(3)));
        assert_eq!(times.calls(), 100);
        assert!((2_000..=2_600).contains(&times.percentile(50)), "{}", times.percentile(50));
        assert!((3_000_000..=3_800_000).contains(&times.percentile(99)), "{}", times.percentile(99));
    }
}
