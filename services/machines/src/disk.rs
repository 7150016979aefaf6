//! A machine's disk: a sparse file with an ext4 file system, for images and what is written over them.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::Error;

/// The program that makes file systems, from e2fsprogs.
const MAKE: &str = "mke2fs";

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
