//! When what failed is started again.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Something that failed is started again after a pause, which grows with each failure in a row.
///
/// ```toml
/// [restart]
/// initial_ms = 200
/// max_ms = 30000
/// limit = 5
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// The pause before the first restart, milliseconds.
    #[serde(deserialize_with = "shipote_units::millis")]
    pub initial_ms: u64,
    /// By how much each failure in a row multiplies the pause.
    pub factor: u32,
    /// The longest pause, milliseconds.
    #[serde(deserialize_with = "shipote_units::millis")]
    pub max_ms: u64,
    /// Most restarts in a row; 0: no limit.
    pub limit: u32,
    /// What ran for so many milliseconds was healthy: pause and limit begin anew.
    #[serde(deserialize_with = "shipote_units::millis")]
    pub healthy_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { initial_ms: 200, factor: 2, max_ms: 30_000, limit: 0, healthy_ms: 60_000 }
    }
}

/// Longest pause that can be asked for: a day, milliseconds.
const PAUSE_MAX: u64 = 86_400_000;

impl RestartPolicy {
    /// Checks the figures; `field` is the key path of the policy.
    ///
    /// # Errors
    /// The first figure that makes no sense.
    pub fn validate(&self, field: &str) -> Result<(), SpecError> {
        for (name, value) in [("initial_ms", self.initial_ms), ("max_ms", self.max_ms)] {
            if value > PAUSE_MAX {
                return Err(SpecError::new(format!("{field}.{name}"), format!("is {value}; at most {PAUSE_MAX}")));
            }
        }
        if self.factor == 0 {
            return Err(SpecError::new(format!("{field}.factor"), "is 0; 1 keeps the pause as it is"));
        }
        if self.max_ms < self.initial_ms {
            return Err(SpecError::new(format!("{field}.max_ms"), "is less than initial_ms"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let good = RestartPolicy::default();
        assert_eq!(good.validate("restart"), Ok(()));
        for (bad, field) in [
            (RestartPolicy { factor: 0, ..good }, "restart.factor"),
            (RestartPolicy { initial_ms: 5, max_ms: 4, ..good }, "restart.max_ms"),
            (RestartPolicy { max_ms: u64::MAX, ..good }, "restart.max_ms"),
        ] {
            assert_eq!(bad.validate("restart").unwrap_err().field, field);
        }
    }
}
