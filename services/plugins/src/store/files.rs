//! Files that are whole or not there.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::error::Error;

/// A component that was copied into the store's folder and is not yet part of it; dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: NamedTempFile,
    /// `sha256:<hex>`.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
}

impl Incoming {
    /// Copies at most `most` bytes; what the sender does with its own descriptor afterwards has no effect on the copy.
    pub(crate) fn copy(mut from: File, folder: &Path, most: u64) -> Result<Self, Error> {
        let given = from.metadata().map_err(Error::io("look at", "the component's descriptor"))?;
        if !given.is_file() {
            let reason = "the component's descriptor is no file; give a regular file or a memfd";
            return Err(Error::InvalidArgument(reason.to_owned()));
        }
        if given.len() > most {
            let reason = format!("the component has {} bytes, more than the {most} that are accepted", given.len());
            return Err(Error::InvalidArgument(format!("{reason}; leave out debug sections (`wasm-tools strip`)")));
        }
        let failed = |action| Error::io(action, folder);
        from.seek(SeekFrom::Start(0)).map_err(Error::io("rewind", "the component's descriptor"))?;
        let mut file = NamedTempFile::new_in(folder).map_err(failed("create a file in"))?;
        let size = std::io::copy(&mut from.take(most), &mut file).map_err(failed("write a component in"))?;
        let digest = digest_of(file.as_file_mut()).map_err(failed("read a component in"))?;
        Ok(Self { file, digest, size })
    }

    /// The copy, open for reading and writing.
    pub(crate) fn open(&self) -> Result<File, Error> {
        self.file.reopen().map_err(Error::io("open", self.file.path()))
    }

    pub(super) fn persist(self, path: &Path) -> Result<(), Error> {
        persist(self.file, path)
    }
}

/// `sha256:<hex>` of a file's content; the position is at its end afterwards.
pub(crate) fn digest_of(file: &mut File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => sum.update(&buffer[..count]),
        }
    }
    Ok(sum.finalize().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}")))
}

/// Writes a file so that it is whole or, after a crash, as it was.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = NamedTempFile::new_in(folder).map_err(Error::io("create a file in", folder))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    persist(file, path)
}

fn persist(file: NamedTempFile, path: &Path) -> Result<(), Error> {
    file.as_file().sync_all().map_err(Error::io("sync", path))?;
    file.persist(path).map_err(|error| Error::io("rename to", path)(error.error))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("sync", folder))
}
