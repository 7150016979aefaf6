//! A layer out of the store again, as the uncompressed tar it came from: the same tree, owners, modes, times, links,
//! attributes and whiteouts. The bytes may differ, because only the tree was kept.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use shipote_agent_protocol::{AgentResponse, codes};
use tokio::sync::mpsc;

use super::{ImageError, Store};
use crate::outbox::{Gone, Outbox};

/// Bytes of one frame.
const PIECE: usize = 256 * 1024;

/// Sends a layer in pieces and an empty last one.
pub(crate) async fn export(
    store: &std::sync::Arc<Store>,
    outbox: &Outbox,
    digest: &str,
    index: usize,
) -> Result<(), Gone> {
    let found = store.find(digest).map(|image| (image.layers.len(), image.layers.get(index).cloned()));
    let layer = match found {
        Ok((_, Some(layer))) => layer,
        Ok((count, None)) => {
            let message = format!("image {digest} has {count} layers and none of the number {index}");
            return outbox.send(&AgentResponse::error(codes::EXPORT_FAILED, message)).await;
        }
        Err(error) => return outbox.send(&AgentResponse::error(codes::NOT_FOUND, error)).await,
    };
    let (sender, mut pieces) = mpsc::channel(2);
    let (folder, pin) = (store.layer(&layer), store.hold(vec![layer]));
    let writing = tokio::task::spawn_blocking(move || {
        let mut out = Pieces { sender, piece: Vec::new() };
        let result = write(&folder, &mut out).and_then(|()| out.flush());
        drop(pin);
        result
    });
    while let Some(data) = pieces.recv().await {
        outbox.send(&AgentResponse::DataChunk { data, done: false }).await?;
    }
    let answer = match writing.await {
        Ok(Ok(())) => AgentResponse::DataChunk { data: vec![], done: true },
        Ok(Err(error)) => AgentResponse::error(codes::EXPORT_FAILED, error),
        Err(error) => AgentResponse::error(codes::INTERNAL_ERROR, error),
    };
    outbox.send(&answer).await
}

/// Cuts what is written into frames.
struct Pieces {
    sender: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let gone = |_| std::io::ErrorKind::BrokenPipe.into();
        self.sender.blocking_send(std::mem::take(&mut self.piece)).map_err(gone)
    }
}

fn write(folder: &Path, out: &mut Pieces) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(&mut *out);
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Complete);
    let mut links = HashMap::new();
    add(&mut archive, folder, Path::new(""), &mut links)?;
    archive.into_inner()?;
    Ok(())
}

fn add<W: Write>(
    archive: &mut tar::Builder<W>,
    folder: &Path,
    beneath: &Path,
    links: &mut HashMap<(u64, u64), PathBuf>,
) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder.join(beneath))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), beneath.join(entry.file_name()));
        let metadata = path.symlink_metadata()?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            let mut hidden = b".wh.".to_vec();
            hidden.extend_from_slice(entry.file_name().as_bytes());
            empty(archive, &beneath.join(std::ffi::OsStr::from_bytes(&hidden)))?;
            continue;
        }
        if !kind.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = links.get(&(metadata.dev(), metadata.ino())) {
                let mut header = tar::Header::new_gnu();
                header.set_metadata(&metadata);
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                archive.append_link(&mut header, &name, first)?;
                continue;
            }
            links.insert((metadata.dev(), metadata.ino()), name.clone());
        }
        let opaque = attributes(archive, &path)?;
        archive.append_path_with_name(&path, &name)?;
        if kind.is_dir() {
            if opaque {
                empty(archive, &name.join(".wh..wh..opq"))?;
            }
            add(archive, folder, &name, links)?;
        }
    }
    Ok(())
}

fn empty<W: Write>(archive: &mut tar::Builder<W>, name: &Path) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(0);
    archive.append_data(&mut header, name, std::io::empty())
}

/// Writes the extended attributes of what comes next; whether it is an opaque directory.
fn attributes<W: Write>(archive: &mut tar::Builder<W>, path: &Path) -> std::io::Result<bool> {
    let mut names = vec![0; 4096];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        // A file system without attributes has none.
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    let mut opaque = false;
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if name.starts_with("trusted.overlay.") {
            opaque |= name == "trusted.overlay.opaque";
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..])?;
        value.truncate(length);
        found.push((format!("SCHILY.xattr.{name}"), value));
    }
    if !found.is_empty() {
        archive.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))?;
    }
    Ok(opaque)
}

impl From<ImageError> for std::io::Error {
    fn from(error: ImageError) -> Self {
        Self::other(error)
    }
}
