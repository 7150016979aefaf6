//! What machines are started with: the folder that `cargo xtask image` makes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The files of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// First root of the guest, with the agent in it.
    pub initramfs: PathBuf,
    /// The vsock device for hosts without one in the kernel.
    pub vsock_device: PathBuf,
    /// What serves volumes; an image of an earlier release has none.
    pub volume_server: Option<PathBuf>,
}

/// The file of what serves volumes.
pub const VOLUME_SERVER: &str = "virtiofsd";

impl Image {
    /// Finds the files in a folder.
    ///
    /// # Errors
    /// [`Error::NoImage`] with the first that is missing.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let file = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { Ok(path) } else { Err(Error::NoImage(path)) }
        };
        Ok(Self {
            kernel: file("vmlinux")?,
            initramfs: file("initramfs.cpio")?,
            vsock_device: file("vhost-device-vsock")?,
            volume_server: file(VOLUME_SERVER).ok(),
        })
    }
}

/// An archive with one file (cpio, newc), to be put behind an initramfs: the kernel unpacks one after the other.
#[must_use]
pub fn archive_of(name: &str, data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, data) in [(name, 0o100_600, data), ("TRAILER!!!", 0, &[][..])] {
        let pad = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(4), 0);
        archive.extend_from_slice(b"070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, dev (2), rdev (2), namesize, check
        for field in [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        pad(&mut archive);
        archive.extend_from_slice(data);
        pad(&mut archive);
    }
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_says_its_sizes() {
        let archive = archive_of("settings", b"12345");
        assert_eq!(archive.len() % 4, 0);
        assert!(archive.starts_with(b"070701"));
        assert_eq!(&archive[6 + 6 * 8..6 + 7 * 8], b"00000005", "file size");
        assert_eq!(&archive[6 + 11 * 8..6 + 12 * 8], b"00000009", "name size with its NUL");
        assert_eq!(&archive[110..118], b"settings");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmlinux"), "").unwrap();
        assert!(matches!(Image::open(dir.path()), Err(Error::NoImage(path)) if path.ends_with("initramfs.cpio")));
    }
}
