//! Files in and out of the guest.

mod path;
mod read;
pub(crate) mod transfer;
mod write;

use shipote_agent_protocol::{AgentResponse, codes};

pub(crate) use path::Tree;
pub(crate) use read::read;
pub(crate) use write::{Upload, begin, chunk, write};

/// Why a file request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The request itself is wrong.
    #[error("{path}: {reason}")]
    Invalid { path: String, reason: String },
    /// There is no such file.
    #[error("{path}: no such file or directory")]
    NotFound { path: String },
    /// The file system refused.
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: String, source: std::io::Error },
}

impl FileError {
    fn invalid(path: &str, reason: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), reason: reason.into() }
    }

    /// Sorts an error by what it says of the request.
    fn from_io(operation: &'static str, path: &str, source: impl Into<std::io::Error>) -> Self {
        use rustix::io::Errno;
        let source = source.into();
        let path = path.to_owned();
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => Self::NotFound { path },
            Some(Errno::XDEV) => Self::Invalid { path, reason: "a link on the way leads out of its directory".into() },
            Some(Errno::LOOP) => Self::Invalid { path, reason: "a link on the way may not be followed".into() },
            Some(Errno::NAMETOOLONG) => Self::Invalid { path, reason: "a name is too long".into() },
            _ => Self::Io { operation, path, source },
        }
    }
}

impl From<FileError> for AgentResponse {
    fn from(error: FileError) -> Self {
        let code = match error {
            FileError::Invalid { .. } => codes::INVALID_REQUEST,
            FileError::NotFound { .. } => codes::NOT_FOUND,
            FileError::Io { .. } => codes::FILE_IO_FAILED,
        };
        Self::error(code, error)
    }
}

/// Runs file I/O where it may block.
async fn blocking<T: Send + 'static>(
    path: &str,
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(FileError::Io { operation: "handle", path: path.to_owned(), source: std::io::Error::other(error) })
        }
    }
}
