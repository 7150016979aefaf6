//! The append-only file: one JSON object a line, written by one call.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::ser::{SerializeMap as _, Serializer as _};

use crate::error::AuditError;
use crate::record::Field;

/// The time of a record in the file, in microseconds since 1970, as a decimal string: as `journalctl -o json` has it.
pub(crate) const TIMESTAMP: &str = "__REALTIME_TIMESTAMP";

/// An open audit file, and which one it is: it may be rotated away under its name.
#[derive(Debug)]
pub(crate) struct Trail {
    file: File,
    device: u64,
    inode: u64,
}

impl Trail {
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let failed = |operation, source| AuditError::File { operation, path: path.to_owned(), source };
        // Readable, to look at the last byte; a link at the end of the path is not followed: the folder may be shared.
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640);
        options.custom_flags(i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default());
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(folder) = path.parent() {
                    let made = DirBuilder::new().recursive(true).mode(0o750).create(folder);
                    made.map_err(|source| failed("create the folder of", source))?;
                }
                options.open(path)
            }
            other => other,
        }
        .map_err(|source| failed("open", source))?;
        let metadata = file.metadata().map_err(|source| failed("look at", source))?;
        if !metadata.is_file() {
            return Err(failed("open", io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        Ok(Self { file, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Whether `path` still names this file.
    fn is_at(&self, path: &Path) -> bool {
        std::fs::symlink_metadata(path).is_ok_and(|found| found.dev() == self.device && found.ino() == self.inode)
    }

    /// Whether a record could be written now, as far as can be known without writing.
    pub(crate) fn probe(&self, path: &Path) -> Result<(), AuditError> {
        let room = rustix::fs::fstatvfs(&self.file).map_err(|error| AuditError::File {
            operation: "look at the file system of",
            path: path.to_owned(),
            source: error.into(),
        })?;
        // A file system that counts no blocks at all says nothing about room.
        if room.f_blocks > 0 && room.f_bfree == 0 { Err(AuditError::Full(path.to_owned())) } else { Ok(()) }
    }

    /// Appends one line, which ends in a line feed.
    fn append(&self, line: &mut Vec<u8>) -> io::Result<()> {
        // Whoever wrote last may have been cut off in the middle of a line (no space, a crash): begin a new one, so
        // that only the torn record is lost. At worst another writer is in between and the line stays empty.
        let length = self.file.metadata()?.len();
        if length > 0 {
            let mut last = [0];
            self.file.read_exact_at(&mut last, length - 1)?;
            if last != *b"\n" {
                line.insert(0, b'\n');
            }
        }
        let written = rustix::io::retry_on_intr(|| rustix::io::write(&self.file, line))?;
        if written < line.len() {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "only a part of the record was taken"));
        }
        Ok(())
    }
}

/// Appends one line to the file at `path`, opening it (again) where `trail` is not, or no longer, that file.
pub(crate) fn append(trail: &mut Option<Trail>, path: &Path, line: &mut Vec<u8>, sync: bool) -> Result<(), AuditError> {
    let trail = current(trail, path)?;
    let failed = |operation, source| AuditError::File { operation, path: path.to_owned(), source };
    trail.append(line).map_err(|source| failed("write", source))?;
    if sync {
        rustix::fs::fdatasync(&trail.file).map_err(|error| failed("sync", error.into()))?;
    }
    Ok(())
}

/// The open file at `path`.
pub(crate) fn current<'t>(trail: &'t mut Option<Trail>, path: &Path) -> Result<&'t Trail, AuditError> {
    if trail.as_ref().is_some_and(|trail| !trail.is_at(path)) {
        *trail = None;
    }
    match trail {
        Some(trail) => Ok(trail),
        None => Ok(trail.insert(Trail::open(path)?)),
    }
}

/// One line of JSON: values that are text as strings, others as lists of bytes, as `journalctl -o json` does.
pub(crate) fn encode(fields: &[Field<'_>]) -> io::Result<Vec<u8>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = Vec::with_capacity(512);
    let mut json = serde_json::Serializer::new(&mut line);
    let mut map = json.serialize_map(Some(fields.len() + 1))?;
    map.serialize_entry(TIMESTAMP, &now.as_micros().to_string())?;
    for (name, value) in fields {
        match std::str::from_utf8(value) {
            Ok(text) => map.serialize_entry(name, text)?,
            Err(_) => map.serialize_entry(name, value.as_ref())?,
        }
    }
    map.end()?;
    line.push(b'\n');
    Ok(line)
}
