//! A machine's disk: a sparse file with an ext4 file system, for images and what is written over them.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::Error;

/// The program that makes file systems, from e2fsprogs.
const MAKE: &str = "mke2fs";

/// A disk, in the folder of its machine or snapshot.
pub const FILE: &str = "disk.img";

/// Copies a disk to a new file, holes and all, and to the disk of the host: shared with the original where the file system
/// can, else piece by piece. Blocks.
///
/// # Errors
/// The file system refuses; what was copied so far is removed.
pub fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let source = std::fs::File::open(from).map_err(Error::io("read", from.display()))?;
    let failed = || Error::io("write", to.display());
    let target = std::fs::File::options().write(true).create_new(true).mode(0o600).open(to).map_err(failed())?;
    let copied = match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        Err(_) => copy_data(&source, &target),
    };
    copied.and_then(|()| target.sync_all()).map_err(|error| {
        let _ = std::fs::remove_file(to);
        failed()(error)
    })
}

/// What of a file is data, to the same places of another.
fn copy_data(source: &std::fs::File, target: &std::fs::File) -> std::io::Result<()> {
    use rustix::fs::{SeekFrom, copy_file_range, seek};
    use rustix::io::Errno;
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let begin = match seek(source, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(begin))?;
        let (mut read, mut written) = (begin, begin);
        while read < end {
            let piece = usize::try_from(end - read).unwrap_or(usize::MAX).min(64 << 20);
            if copy_file_range(source, Some(&mut read), target, Some(&mut written), piece)? == 0 {
                return Err(std::io::Error::other("the disk became shorter while it was copied"));
            }
        }
        at = end;
    }
    Ok(())
}

/// Makes the disk if it isn't there; whole or not at all. A disk that is there stays as it is, whatever its size.
///
/// # Errors
/// No room, or no `mke2fs` on the host.
pub async fn ensure(path: &Path, size_mib: u32) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new");
    let make = || -> std::io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.set_len(u64::from(size_mib) * 1024 * 1024)
    };
    make().map_err(Error::io("create", new.display()))?;
    // Tables are zero in a new sparse file already; without a reserve all of it is the guest's.
    let output = Command::new(MAKE)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])
        .arg(&new)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin:/run/current-system/sw/bin")
        .stdin(Stdio::null())
        .output()
        .await
        .map_err(Error::io("make a file system with", format!("{MAKE} (package e2fsprogs)")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::io("make a file system in", new.display())(std::io::Error::other(said)));
    }
    // Without this a loss of power would leave a disk of that name with no file system in it.
    let keep = || std::fs::File::open(&new)?.sync_all();
    keep().map_err(Error::io("sync", new.display()))?;
    std::fs::rename(&new, path).map_err(Error::io("put in its place", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, SeekFrom, Write as _};
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = std::fs::File::create(&from).unwrap();
        for at in [0_u64, 8 << 20, 33 << 20] {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&[at as u8 + 1; 5000]).unwrap();
        }
        file.set_len(64 << 20).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap(), "the copy differs");
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20, "holes were filled");
        let refused = copy(&from, &to).unwrap_err().to_string();
        assert!(refused.contains("exists"), "{refused}");
        assert!(copy(&dir.path().join("none"), &dir.path().join("new")).is_err());
        assert!(!dir.path().join("new").exists());
    }
}
