//! What the registry refuses or fails at.

use std::path::PathBuf;

use shipote_bus::plugins::PluginsError;
use shipote_plugin_abi::check::Refusal;
use shipote_plugin_abi::policy::PolicyError;
use shipote_plugin_abi::reference::ReferenceError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("find plugin {0}: none fits; `shipote plugin ls` shows what there is")]
    NoSuchPlugin(String),
    #[error("{action} plugin {what}: refused: {}", join(.refusals))]
    Refused { action: &'static str, what: String, refusals: Vec<Refusal> },
    #[error(
        "add plugin {name} {version}: this version is there with another content ({there}); give the new one a new version, or remove the old one"
    )]
    VersionTaken { name: String, version: String, there: String },
    #[error("remove plugin {name} {version}: it is active; activate another version first, or force it")]
    InUse { name: String, version: String },
    #[error("{what}: plugins would no longer fit together: {}; add or activate what is missing first, or keep it off work (--no-activate)", .faults.join("; "))]
    Links { what: String, faults: Vec<String> },
    #[error("remove plugin {name} {version}: it is a canary; `shipote plugin abort {name}` first, or force it")]
    IsCanary { name: String, version: String },
    #[error("end the canary of plugin {0}: it has none; `shipote plugin canary {0}@VERSION --share 5%` begins one")]
    NoCanary(String),
    #[error("roll back plugin {0}: no version was active before")]
    NothingBefore(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("the store {path} is in use by another registry; stop that one first")]
    Locked { path: PathBuf },
    #[error("read index {path}: {reason}; restore it from a backup, or move the store away to begin anew")]
    Index { path: PathBuf, reason: String },
    #[error(
        "component {digest} of the store is not what was added: its content is {found}; remove the version and add it again"
    )]
    Corrupt { digest: String, found: String },
    #[error("examine a component: {0}")]
    Examine(String),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("{0}")]
    NotAuthorized(#[from] shipote_service::NotAuthorized),
    #[error("the audit record cannot be taken, and it is required: {0}")]
    Audit(String),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

pub(crate) fn join(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl From<Error> for PluginsError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NoSuchPlugin(_) => Self::NoSuchPlugin(text),
            Error::Refused { .. } | Error::Links { .. } => Self::Refused(text),
            Error::VersionTaken { .. } => Self::VersionTaken(text),
            Error::InUse { .. } | Error::IsCanary { .. } => Self::InUse(text),
            Error::NoCanary(_) => Self::NoCanary(text),
            Error::NothingBefore(_) => Self::NothingBefore(text),
            Error::InvalidArgument(_) | Error::Reference(_) => Self::InvalidArgument(text),
            Error::NotAuthorized(_) => Self::NotAuthorized(text),
            Error::Audit(_) => Self::AuditUnavailable(text),
            Error::Io { .. }
            | Error::Locked { .. }
            | Error::Index { .. }
            | Error::Corrupt { .. }
            | Error::Examine(_)
            | Error::Policy(_) => Self::Failed(text),
        }
    }
}
