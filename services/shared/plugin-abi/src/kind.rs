//! What a component is for, told by what it exports.

use serde::{Deserialize, Serialize};

use crate::shape::Shape;
use crate::{FILTER_INTERFACE, REGISTRY_INTERFACE, RUN_INTERFACE};

/// Packages of WASI 0.2 that a command component may import. `wasi:sockets` is there because tool chains import it
/// unasked; every call of it is refused.
const WASI: [&str; 6] = ["wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/"];

/// What a component is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A plugin of the proxy, or one that other plugins call.
    #[default]
    Plugin,
    /// A command: `wasi:cli/run` of WASI 0.2.
    Command,
    /// A filter on an edge of a pipeline: `shipote:filter`.
    Filter,
}

impl Kind {
    /// Whoever exports the registry interface is a plugin, whatever else it exports.
    #[must_use]
    pub fn of(shape: &Shape) -> Self {
        let exports = |name: &str| shape.exports.iter().any(|export| export == name);
        if exports(REGISTRY_INTERFACE) {
            Self::Plugin
        } else if exports(FILTER_INTERFACE) {
            Self::Filter
        } else if run_interface(shape).is_some() {
            Self::Command
        } else {
            Self::Plugin
        }
    }

    /// `plugin`, `command` or `filter`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plugin => "plugin",
            Self::Command => "command",
            Self::Filter => "filter",
        }
    }

    /// Whether a component of this kind may import an interface without a policy.
    #[must_use]
    pub fn may_import(self, import: &str) -> bool {
        self == Self::Command && WASI.iter().any(|package| import.starts_with(package)) && import.contains("@0.2.")
    }

    /// What it may import, for those whose component imports something else.
    #[must_use]
    pub fn importable(self) -> &'static str {
        match self {
            Self::Plugin => "vane:host/host@0.1.0",
            Self::Command => "wasi:cli, clocks, filesystem, io, random and sockets of version 0.2",
            Self::Filter => "nothing",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The version of `wasi:cli/run` that a component exports, as it writes it.
#[must_use]
pub fn run_interface(shape: &Shape) -> Option<&str> {
    shape.exports.iter().map(String::as_str).find(|export| export.starts_with(RUN_INTERFACE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_tell_the_kind() {
        let table = [
            (vec!["wasi:cli/run@0.2.3"], Kind::Command),
            (vec!["wasi:cli/run@0.3.0"], Kind::Plugin),
            (vec![FILTER_INTERFACE], Kind::Filter),
            (vec!["wasi:cli/run@0.2.0", REGISTRY_INTERFACE], Kind::Plugin),
            (vec![FILTER_INTERFACE, REGISTRY_INTERFACE], Kind::Plugin),
            (vec![], Kind::Plugin),
        ];
        for (exports, kind) in table {
            let shape = Shape { exports: exports.iter().map(ToString::to_string).collect(), imports: vec![] };
            assert_eq!(Kind::of(&shape), kind, "{exports:?}");
        }
    }

    #[test]
    fn only_a_command_gets_wasi_and_no_http() {
        for (kind, import, allowed) in [
            (Kind::Command, "wasi:filesystem/types@0.2.3", true),
            (Kind::Command, "wasi:http/outgoing-handler@0.2.3", false),
            (Kind::Command, "wasi:cli/stdin@0.3.0", false),
            (Kind::Filter, "wasi:cli/stdin@0.2.3", false),
            (Kind::Plugin, "wasi:cli/stdin@0.2.3", false),
        ] {
            assert_eq!(kind.may_import(import), allowed, "{kind} {import}");
        }
    }
}
