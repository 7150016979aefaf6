//! The vocabulary in which isolation is reported.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far one isolation mechanism is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// In force, all of it.
    Enforced,
    /// In force in part; the reason says what is lacking.
    Degraded,
    /// Not in force; the reason says why.
    Missing,
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Enforced => "enforced",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        })
    }
}

/// One isolation mechanism and how far it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mechanism {
    /// Short stable name, lower-case with hyphens, such as `user-namespace` or `landlock`.
    pub name: String,
    /// How far it is in force.
    pub state: Enforcement,
    /// Why it is degraded or missing; for an enforced one a detail (such as `ABI 7`), or empty.
    pub reason: String,
}

impl Mechanism {
    /// A mechanism that is in force; `detail` may be empty.
    pub fn enforced(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state: Enforcement::Enforced, reason: detail.into() }
    }

    /// A mechanism that is in force in part.
    pub fn degraded(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), state: Enforcement::Degraded, reason: reason.into() }
    }

    /// A mechanism that is not in force.
    pub fn missing(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), state: Enforcement::Missing, reason: reason.into() }
    }

    /// Whether all of it is in force.
    pub fn is_enforced(&self) -> bool {
        self.state == Enforcement::Enforced
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.state)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, " ({})", self.reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_lower_case_with_the_reason() {
        let table = [
            (Mechanism::enforced("seccomp", ""), "seccomp: enforced"),
            (Mechanism::enforced("landlock", "ABI 7"), "landlock: enforced (ABI 7)"),
            (Mechanism::degraded("host-ids", "one id"), "host-ids: degraded (one id)"),
            (Mechanism::missing("landlock", "not built in"), "landlock: missing (not built in)"),
        ];
        for (mechanism, text) in table {
            assert_eq!(mechanism.to_string(), text);
        }
    }
}
