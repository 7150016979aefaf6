//! A file into the guest: under a temporary name beside its place, then renamed over it, whole or not at all.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, openat, renameat, unlinkat};
use shipote_agent_protocol::{AgentResponse, FILE_TOTAL_MAX, FILE_WRITE_MAX, codes};

use super::path::{Place, Tree};
use super::{FileError, blocking};

/// Mode of a file for which the request names none.
const MODE: u32 = 0o644;

/// A file that is being written. Dropped before it was put in its place, it is removed.
pub(crate) struct Upload {
    path: String,
    place: Place,
    temporary: String,
    file: File,
    announced: u64,
    received: u64,
    placed: bool,
}

impl Upload {
    fn create(tree: &Tree, path: &str, mode: Option<u32>, announced: u64) -> Result<Self, FileError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mode = mode.unwrap_or(MODE);
        if mode & !0o7777 != 0 {
            return Err(FileError::invalid(path, format!("{mode:o} is no file mode")));
        }
        let place = tree.place(path, true)?;
        let temporary = format!(".shipote-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // The descriptor of the directory was opened without read permission, which creating a file in it does not need.
        let file = openat(&place.directory, temporary.as_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|error| FileError::from_io("create", path, error))?;
        let upload = Self {
            path: path.to_owned(),
            place,
            temporary,
            file: File::from(file),
            announced,
            received: 0,
            placed: false,
        };
        fchmod(&upload.file, Mode::from_raw_mode(mode))
            .map_err(|error| FileError::from_io("set mode of", path, error))?;
        Ok(upload)
    }

    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), FileError> {
        self.received += data.len() as u64;
        if self.received > self.announced {
            return Err(self.wrong_size());
        }
        self.file.write_all(data).map_err(|error| FileError::from_io("write", &self.path, error))
    }

    fn finish(self) -> Result<(), FileError> {
        if self.received != self.announced {
            return Err(self.wrong_size());
        }
        self.finish_as_is()
    }

    /// Puts it in its place with what has come, however much was announced.
    pub(super) fn finish_as_is(mut self) -> Result<(), FileError> {
        let directory = &self.place.directory;
        // Renaming replaces a link that has the file's name; it never writes through it.
        renameat(directory, self.temporary.as_str(), directory, self.place.name.as_str())
            .map_err(|error| FileError::from_io("replace", &self.path, error))?;
        self.placed = true;
        Ok(())
    }

    fn wrong_size(&self) -> FileError {
        let reason = format!("{} bytes came, {} were announced; nothing was replaced", self.received, self.announced);
        FileError::invalid(&self.path, reason)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing more can be done about a file that cannot even be removed.
            let _ = unlinkat(&self.place.directory, self.temporary.as_str(), AtFlags::empty());
        }
    }
}

/// Writes a whole file.
pub(crate) async fn write(tree: &Arc<Tree>, path: String, data: Vec<u8>, mode: Option<u32>) -> AgentResponse {
    if data.len() > FILE_WRITE_MAX {
        let reason = format!("{} bytes at once; the limit is {FILE_WRITE_MAX}, send it in chunks", data.len());
        return FileError::invalid(&path, reason).into();
    }
    let tree = Arc::clone(tree);
    let named = path.clone();
    let result = blocking(&path, move || {
        let mut upload = Upload::create(&tree, &named, mode, data.len() as u64)?;
        upload.append(&data)?;
        upload.finish()
    });
    result.await.map_or_else(AgentResponse::from, |()| AgentResponse::ok())
}

/// Begins a file that comes in chunks.
pub(crate) async fn begin(tree: &Arc<Tree>, path: String, mode: Option<u32>, total: u64) -> Result<Upload, FileError> {
    if total > FILE_TOTAL_MAX {
        return Err(FileError::invalid(&path, format!("{total} bytes; the limit is {FILE_TOTAL_MAX}")));
    }
    let tree = Arc::clone(tree);
    let named = path.clone();
    blocking(&path, move || Upload::create(&tree, &named, mode, total)).await
}

/// The next chunk of the upload. An error ends the upload.
pub(crate) async fn chunk(upload: &mut Option<Upload>, data: Vec<u8>, done: bool) -> AgentResponse {
    let Some(mut current) = upload.take() else {
        return AgentResponse::error(codes::INVALID_REQUEST, "no upload has begun on this connection");
    };
    let path = current.path.clone();
    if data.len() > FILE_WRITE_MAX {
        let reason = format!("a chunk of {} bytes; the limit is {FILE_WRITE_MAX}", data.len());
        return FileError::invalid(&path, reason).into();
    }
    let result = blocking(&path, move || {
        current.append(&data)?;
        if done { current.finish().map(|()| None) } else { Ok(Some(current)) }
    });
    match result.await {
        Ok(left) => {
            *upload = left;
            AgentResponse::ok()
        }
        Err(error) => error.into(),
    }
}
