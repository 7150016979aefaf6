//! What can go wrong when a record is written or read.

use std::io;
use std::path::PathBuf;

/// Why a record was not taken, or records could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The journal did not take the record.
    #[error("send record to the journal at {}: {source}; check systemd-journald", socket.display())]
    Journal {
        /// The socket it was sent to.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file did not take the record, or could not be read.
    #[error("{operation} audit file {}: {source}; check its folder, owner and file system", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system has no room for a record.
    #[error("write audit file {}: no space left on its file system; make room", .0.display())]
    Full(PathBuf),
    /// The record is larger than any honest record.
    #[error("record of {bytes} bytes is larger than the {limit} allowed; shorten its fields")]
    TooLarge {
        /// How large it is.
        bytes: usize,
        /// How large it may be.
        limit: usize,
    },
    /// An extra field has a name that the journal would drop, or that is taken.
    #[error("field `{0}` cannot be recorded; use up to 50 of A-Z, 0-9 and _, and none of the fixed names")]
    Field(String),
    /// `journalctl` could not be run or failed.
    #[error("read the journal with {}: {reason}; check that it is installed and that you may read the journal", program.display())]
    Journalctl {
        /// The program.
        program: PathBuf,
        /// What it or the kernel said.
        reason: String,
    },
}
