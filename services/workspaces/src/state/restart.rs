//! When something that failed is started again, and when no more.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shipote_bus::spec::RestartPolicy;

use super::Usec;

/// How often something was started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restarts {
    /// Ever.
    pub(crate) count: u32,
    /// Failures in a row, each of which made the pause longer.
    pub(crate) in_a_row: u32,
    /// When it is started again, where it waits for that.
    pub(crate) due: Option<Usec>,
}

impl Restarts {
    /// What was launched at `launched` has failed now: how long to wait until it is launched again; none: no more.
    pub(super) fn after_failure(&mut self, policy: &RestartPolicy, launched: Usec, now: Usec) -> Option<Duration> {
        if now.saturating_sub(launched) >= policy.healthy_ms.saturating_mul(1000) {
            self.in_a_row = 0;
        }
        if policy.limit != 0 && self.in_a_row >= policy.limit {
            return None;
        }
        let grown = f64::from(policy.factor.max(1)).powi(self.in_a_row.min(64).cast_signed());
        let pause = (policy.initial_ms as f64 * grown).min(policy.max_ms as f64) as u64;
        self.in_a_row += 1;
        self.count = self.count.saturating_add(1);
        self.due = Some(now.saturating_add(pause.saturating_mul(1000)));
        Some(Duration::from_millis(pause))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RestartPolicy =
        RestartPolicy { initial_ms: 200, factor: 2, max_ms: 30_000, limit: 0, healthy_ms: 60_000 };

    #[test]
    fn the_pause_doubles_to_its_cap_and_begins_anew_after_health() {
        let mut restarts = Restarts::default();
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let pause = restarts.after_failure(&POLICY, now, now + 1).unwrap();
            pauses.push(u64::try_from(pause.as_millis()).unwrap());
            now = restarts.due.unwrap();
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
        let healthy = now + 60_000_000;
        assert_eq!(restarts.after_failure(&POLICY, now, healthy), Some(Duration::from_millis(200)));
        assert_eq!(restarts.count, 11);
    }

    #[test]
    fn the_limit_counts_restarts_and_health_gives_it_back() {
        let policy = RestartPolicy { limit: 2, ..POLICY };
        let mut restarts = Restarts::default();
        assert!(restarts.after_failure(&policy, 0, 1).is_some());
        assert!(restarts.after_failure(&policy, 0, 1).is_some());
        assert!(restarts.after_failure(&policy, 0, 1).is_none());
        assert!(restarts.after_failure(&policy, 0, 60_000_000).is_some());
    }

    proptest! {
        #[test]
        fn never_sooner_than_the_first_pause_nor_later_than_the_cap(
            initial_ms in 0..10_000_u64,
            factor in 0..100_u32,
            max_ms in 0..100_000_u64,
            lives in prop::collection::vec(0..100_000_000_u64, 1..200),
        ) {
            let policy = RestartPolicy { initial_ms, factor, max_ms, limit: 0, healthy_ms: 60_000 };
            let mut restarts = Restarts::default();
            let mut now = 0;
            for life in lives {
                let pause = restarts.after_failure(&policy, now, now + life).unwrap();
                let pause = u64::try_from(pause.as_millis()).unwrap();
                prop_assert!(pause >= initial_ms.min(max_ms) && pause <= max_ms);
                now = restarts.due.unwrap();
            }
        }
    }
}
