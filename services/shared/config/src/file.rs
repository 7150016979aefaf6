//! Reading one file, bounded.

use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{ConfigError, ErrorKind};
use crate::parse::{check_text, parse_bytes};

/// Reads the text of `path`, at most `limit` bytes. The path may be a pipe (`/dev/stdin`, `<(…)`).
///
/// # Errors
/// [`ErrorKind::Io`], [`ErrorKind::TooLarge`] (without having read more than `limit` + 1 bytes),
/// [`ErrorKind::NotUtf8`].
pub fn read_text(path: &Path, limit: usize) -> Result<String, ConfigError> {
    let bytes = read_bytes(path, limit).map_err(|error| io_error(path, &error))?;
    check_text(&bytes, &path.to_string_lossy(), limit).map(str::to_owned)
}

/// Reads the file `path` (a spec that somebody wrote; no drop-ins) as a `T`, at most `limit` bytes of it.
///
/// # Errors
/// Those of [`read_text`] and [`parse`](crate::parse).
pub fn load_file<T: DeserializeOwned>(path: &Path, limit: usize) -> Result<T, ConfigError> {
    let bytes = read_bytes(path, limit).map_err(|error| io_error(path, &error))?;
    parse_bytes(&bytes, &path.to_string_lossy(), limit)
}

fn read_bytes(path: &Path, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn io_error(path: &Path, error: &std::io::Error) -> ConfigError {
    let way_out = match error.kind() {
        std::io::ErrorKind::NotFound => "check the path",
        std::io::ErrorKind::PermissionDenied => "let this user read it",
        std::io::ErrorKind::IsADirectory => "name a file in it",
        _ => "check the file and its file system",
    };
    ConfigError::new(ErrorKind::Io, &path.to_string_lossy(), None, &format!("cannot read: {error}"), way_out)
}
