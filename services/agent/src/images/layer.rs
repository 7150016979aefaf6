//! A layer: a tar, perhaps compressed, unpacked into a folder that overlayfs can use.
//!
//! Whiteouts (OCI image spec, layer.md) become what overlayfs understands: `.wh.NAME` a character device 0:0 called
//! `NAME`, `.wh..wh..opq` an attribute of its directory.

use std::ffi::OsStr;
use std::fs::{create_dir_all, remove_dir_all, rename};
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use sha2::{Digest, Sha256};

use super::archive::hex;
use super::zstd::Zstd;
use super::{ImageError, Store};

/// What a layer is called while it is unpacked.
pub(super) const WORK: &str = "unpacking";
const OPAQUE: &str = ".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";

/// Unpacks a layer into the store and gives its digest, that of the uncompressed tar. One that is there is not unpacked
/// again; one with another digest than `expected` is refused and leaves nothing behind.
pub(super) fn add(store: &Store, image: &str, reader: impl Read, expected: Option<&str>) -> Result<String, ImageError> {
    if let Some(digest) = expected.filter(|digest| store.layer(digest).is_dir()) {
        return Ok(digest.to_owned());
    }
    let work = store.layer(WORK);
    let _ = remove_dir_all(&work);
    create_dir_all(&work).map_err(ImageError::io("create", &work))?;
    let result = unpack(reader, &work).and_then(|digest| {
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            let problem = format!("a layer should have the digest sha256:{expected}, and has sha256:{digest}");
            return Err(ImageError::invalid(image, problem));
        }
        let place = store.layer(&digest);
        if !place.is_dir() {
            rename(&work, &place).map_err(ImageError::io("put in place", &place))?;
        }
        Ok(digest)
    });
    let _ = remove_dir_all(&work);
    result
}

/// Hashes what passes through it.
struct Hashing<R> {
    inner: R,
    hash: Arc<Mutex<Sha256>>,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.lock().unwrap_or_else(PoisonError::into_inner).update(&buffer[..n]);
        Ok(n)
    }
}

fn unpack(reader: impl Read, to: &Path) -> Result<String, ImageError> {
    let read = |error| ImageError::Io { operation: "unpack to", path: to.to_owned(), source: whole(&error) };
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let start = reader.fill_buf().map_err(read)?;
    let plain: Box<dyn Read + '_> = match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Box::new(Zstd::new(reader)),
        _ => Box::new(reader),
    };
    let hash = Arc::new(Mutex::new(Sha256::new()));
    let mut archive = tar::Archive::new(Hashing { inner: plain, hash: Arc::clone(&hash) });
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    for entry in archive.entries().map_err(read)? {
        place(&mut entry.map_err(read)?, to).map_err(read)?;
    }
    // The digest is that of the whole tar, with what follows its last entry.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(read)?;
    let hash = hash.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(hex(&hash.finalize()))
}

/// An error with its causes, which the archive's reader keeps apart.
fn whole(error: &std::io::Error) -> std::io::Error {
    use std::error::Error as _;
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    std::io::Error::new(error.kind(), text)
}

fn place<R: Read>(entry: &mut tar::Entry<'_, R>, to: &Path) -> std::io::Result<()> {
    let path = entry.path()?.into_owned();
    // What leads out of the layer belongs to no layer.
    if path.components().any(|component| matches!(component, Component::ParentDir)) {
        return Err(std::io::Error::other(format!("{} leads out of the layer", path.display())));
    }
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if name == OPAQUE.as_bytes() {
        let directory = inside(to, path.parent().unwrap_or(Path::new("")))?;
        return Ok(setxattr(&directory, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        let directory = inside(to, path.parent().unwrap_or(Path::new("")))?;
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        return Ok(mknodat(CWD, directory.join(OsStr::from_bytes(hidden)), kind, mode, makedev(0, 0))?);
    }
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Char => Some(FileType::CharacterDevice),
        tar::EntryType::Block => Some(FileType::BlockDevice),
        tar::EntryType::Fifo => Some(FileType::Fifo),
        _ => None,
    };
    let Some(kind) = kind else {
        // Parents of entries that have none of their own are made by it.
        entry.unpack_in(to)?;
        return Ok(());
    };
    let number = makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
    let node = inside(to, path.parent().unwrap_or(Path::new("")))?.join(OsStr::from_bytes(name));
    mknodat(CWD, &node, kind, Mode::from_raw_mode(header.mode()?), number)?;
    let id = |id: std::io::Result<u64>| id.map(|id| u32::try_from(id).unwrap_or(0));
    std::os::unix::fs::lchown(&node, Some(id(header.uid())?), Some(id(header.gid())?))
}

/// A directory of the layer, made where it is missing; a link on the way is refused.
fn inside(root: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let mut directory = root.to_owned();
    for component in path.components() {
        if let Component::Normal(name) = component {
            directory.push(name);
            match std::fs::symlink_metadata(&directory) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => return Err(std::io::Error::other(format!("{} is no directory", directory.display()))),
                Err(_) => std::fs::create_dir(&directory)?,
            }
        }
    }
    Ok(directory)
}
