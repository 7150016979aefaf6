//! What can go wrong while a process confines itself.

use std::io;
use std::path::PathBuf;

/// A confinement that could not be read or applied. The caller must not go on unconfined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy file could not be read.
    #[error("read policy {}: {source}", path.display())]
    Read {
        /// The policy file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The policy is not valid TOML, or names an unknown key.
    #[error("parse policy: {0}")]
    Parse(#[from] toml::de::Error),
    /// The policy file is not valid.
    #[error("parse policy {}: {source}", path.display())]
    ParseFile {
        /// The policy file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A placeholder that the caller gave no value for.
    #[error("expand {text}: no value for ${{{name}}}; the service has to pass it to apply()")]
    Placeholder {
        /// The text of the policy.
        text: String,
        /// The name in it.
        name: String,
    },
    /// An unknown capability name.
    #[error("no such capability {0}; use the kernel's name, as in net_bind_service")]
    Capability(String),
    /// A path of the policy that cannot be opened.
    #[error("grant {}: {source}; create it, or mark it optional in the policy", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a landlock ruleset.
    #[error("landlock: {operation}: {reason}")]
    Landlock {
        /// The step that failed.
        operation: &'static str,
        /// What the library said.
        reason: String,
    },
    /// The kernel refused a seccomp filter, or it could not be built.
    #[error("seccomp: {operation}: {reason}")]
    Seccomp {
        /// The step that failed.
        operation: &'static str,
        /// Why.
        reason: String,
    },
    /// A system call failed.
    #[error("{operation}: {source}")]
    System {
        /// The system call and its purpose.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err` on a system call.
    pub(crate) fn system<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { operation, source: source.into() }
    }
}
