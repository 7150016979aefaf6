//! The sections of the one configuration file that all services share.

use std::path::PathBuf;

use serde::Deserialize;

/// The top-level sections: one for each service, the command line's own, and the common one. A service reads its own
/// and the common one and leaves the others alone; a section that is not listed here is refused by every reader.
pub const SECTIONS: &[&str] = &["audit", "cli", "machines", "plugins", "proxy", "workspaces"];

/// `[audit]`: where the record of every change goes. Common to all services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditSection {
    /// Whether a change that cannot be recorded may be made.
    pub mode: AuditMode,
    /// The file to write to where there is no journal; absent: the service's own default.
    pub file: Option<PathBuf>,
    /// Whether each record in the file is on the disk before the change is reported as done.
    pub sync: bool,
}

/// What happens to a change whose record cannot be taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditMode {
    /// It is made, and the failure is logged.
    #[default]
    BestEffort,
    /// It is refused.
    Required,
}
