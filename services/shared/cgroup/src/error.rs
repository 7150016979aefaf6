//! What can go wrong with a control group.

use std::io;
use std::path::{Path, PathBuf};

/// An operation on a control group failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Version 2 is not mounted, or this process is in none of its groups.
    #[error("find the own control group: {0}; mount cgroup2, or go without limits")]
    NotThere(&'static str),
    /// A file or folder of the hierarchy.
    #[error("{operation} {path}: {source}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A limit that the kernel does not take.
    #[error("set {limit} to {value:?}: {source}")]
    Limit {
        /// File of the control group, such as `io.max`.
        limit: &'static str,
        /// What was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    }
}
