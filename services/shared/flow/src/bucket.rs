//! A token bucket, without a clock of its own.
//!
//! ```text
//!   rate bytes/s ──▶ ┌────────┐ full: one second of the rate (and so it starts)
//!                    │ tokens │
//!                    └───┬────┘ below 0: a debt, waited off before anything passes
//!                        ▼ spend(bytes)
//! ```

use std::time::{Duration, Instant};

const NANOS: i128 = 1_000_000_000;

/// Lets `rate` bytes a second pass, and after a rest as much as one second's worth at once.
///
/// Kept in whole byte-nanoseconds, so that no rounding adds up however often it is asked.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    rate: u64,
    /// Tokens × 10⁹; negative is a debt.
    level: i128,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket for `rate` bytes a second. A rate of 0 lets nothing pass after the start.
    #[must_use]
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { rate, level: i128::from(rate) * NANOS, filled: now }
    }

    /// Bytes that may pass now, at least one, or how long to wait before asking again.
    ///
    /// The wait ends not at the first byte but at a fiftieth of a second's worth, so that a
    /// limited flow moves in pieces worth a system call.
    ///
    /// # Errors
    /// The time until some bytes may pass.
    pub fn allowance(&mut self, now: Instant) -> Result<u64, Duration> {
        self.fill(now);
        let bytes = self.level.div_euclid(NANOS);
        if bytes >= 1 {
            return Ok(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
        let goal = i128::from((self.rate / 50).max(1)) * NANOS;
        let rate = i128::from(self.rate.max(1));
        let nanos = (goal - self.level + rate - 1) / rate;
        Err(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Takes `bytes` out; more than are in it leave a debt.
    pub fn spend(&mut self, bytes: u64) {
        self.level -= i128::from(bytes) * NANOS;
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let gained = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX).saturating_mul(i128::from(self.rate));
        self.level = self.level.saturating_add(gained).min(i128::from(self.rate) * NANOS);
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn starts_full_and_is_full_at_one_second() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1000, start);
        assert_eq!(bucket.allowance(start), Ok(1000));
        assert_eq!(bucket.allowance(start + Duration::from_secs(3600)), Ok(1000));
        bucket.spend(1000);
        assert_eq!(bucket.allowance(start + Duration::from_secs(3601)), Ok(1000));
    }

    #[test]
    fn a_debt_is_waited_off() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1000, start);
        bucket.spend(3000);
        let wait = bucket.allowance(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(2020), "2 s of debt and a fiftieth to get going");
        assert!(bucket.allowance(start + Duration::from_millis(1999)).is_err());
        assert_eq!(bucket.allowance(start + wait), Ok(20));
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = TokenBucket::new(10, start);
        bucket.spend(10);
        assert!(bucket.allowance(start - Duration::from_secs(5)).is_err());
        assert!(bucket.allowance(start).is_err());
        assert_eq!(bucket.allowance(start + Duration::from_secs(1)), Ok(10));
    }

    proptest! {
        #[test]
        fn never_more_than_one_second_ahead_of_the_rate(
            rate in 1_u64..10_000_000,
            steps in proptest::collection::vec((0_u64..2_000_000_000, 0_u64..200_000), 1..60),
        ) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(rate, start);
            let (mut passed, mut spent) = (0_u64, 0_u128);
            for (nanos, wanted) in steps {
                passed += nanos;
                if let Ok(allowed) = bucket.allowance(start + Duration::from_nanos(passed)) {
                    let bytes = allowed.min(wanted);
                    bucket.spend(bytes);
                    spent += u128::from(bytes);
                }
                let earned = u128::from(rate) * (u128::from(passed) + 1_000_000_000) / 1_000_000_000;
                prop_assert!(spent <= earned, "{spent} of {earned}");
            }
        }

        #[test]
        fn the_wait_is_enough(rate in 1_u64..1_000_000_000, debt in 0_u64..10_000_000_000) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(rate, start);
            bucket.spend(rate + debt);
            let wait = bucket.allowance(start).unwrap_err();
            prop_assert!(bucket.allowance(start + wait).is_ok());
        }
    }
}
