//! Directories that are written to through an overlay (overlayfs): the host's files are its lower layer and stay as they
//! are, what commands change lies in an upper layer of the workspace's own.
//!
//! ```text
//!   target ── overlay ──▶ lower: the granted directory, read-only
//!                    └──▶ upper: <layers>/<target>/upper     work: <layers>/<target>/work
//! ```
//!
//! The layers are in the workspace's scratch, whose size bounds them, or in a folder that outlives it. Neither is seen
//! inside: what is in an upper layer came through the overlay, which takes no device, and keeps its own marks
//! (`user.overlay.*`, whiteouts) from being written. The mount ignores devices and set-user-id bits all the same.
//!
//! The overlay acts on its layers as who mounts it: with the ids of the workspace's user, who is the only one there, and
//! with the keeper's rights over that user's files, because it keeps a directory of its own shut from everybody.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use shipote_confinement::Mechanism;

use super::WORK;
use super::root::Root;
use crate::error::{Failure, Step};
use crate::sys;

/// Longest name of a layer; file systems take 255 bytes.
const NAME_MAX: usize = 240;

/// Puts an overlay of `lower`, which is there already, at `target`, with layers below `layers`, a directory of the
/// workspace's user.
pub(super) fn cover(
    root: &Root,
    target: &Path,
    lower: BorrowedFd<'_>,
    layers: BorrowedFd<'_>,
) -> Result<Mechanism, Failure> {
    let named = |error: io::Error| Failure::new(Step::Mount, format!("overlay of {}", target.display()), error);
    let stat = rustix::fs::fstat(lower).map_err(|error| named(error.into()))?;
    let mounted = sys::as_user(WORK, || mount(target, lower, layers, stat.st_mode)).map_err(named)?;
    root.attach(target, mounted.as_fd())?;
    let how = format!("{} is written to a layer of its own", target.display());
    Ok(if stat.st_uid != WORK {
        let reason = format!("{how}, but belongs to another user, whose files in it commands cannot change");
        Mechanism::degraded("overlay", reason)
    } else {
        Mechanism::enforced("overlay", how)
    })
}

fn mount(target: &Path, lower: BorrowedFd<'_>, layers: BorrowedFd<'_>, mode: u32) -> io::Result<OwnedFd> {
    let layer = directory(layers, &name(target)?, 0o700)?;
    let fresh = open(layer.as_fd(), "upper").err() == Some(Errno::NOENT);
    let (upper, work) = (directory(layer.as_fd(), "upper", 0o700)?, directory(layer.as_fd(), "work", 0o700)?);
    if fresh {
        // the overlay's own directory has the attributes of the upper layer's
        rustix::fs::chmodat(layer.as_fd(), "upper", Mode::from_raw_mode(mode & 0o777), rustix::fs::AtFlags::empty())?;
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Descriptors of their own are taken from Linux 6.13 on; names of them by every one that has the rest.
    for (key, fd) in [("lowerdir", lower), ("upperdir", upper.as_fd()), ("workdir", work.as_fd())] {
        fsconfig_set_string(context.as_fd(), key, format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    }
    fsconfig_set_flag(context.as_fd(), "userxattr")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The name of a target's layers: its path, escaped as systemd does, so that it is found again at the next start.
fn name(target: &Path) -> io::Result<String> {
    let mut name = String::new();
    for byte in target.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.push('-'),
            byte if byte.is_ascii_alphanumeric() || b"_.".contains(byte) => name.push(char::from(*byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    // `.` and `..` are names of their own
    if name.starts_with('.') {
        name.replace_range(..1, "\\x2e");
    }
    if name.len() > NAME_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    Ok(name)
}

/// A directory, made if it is not there. What else is there under its name is refused.
fn directory(at: BorrowedFd<'_>, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(at, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => open(at, name),
        Err(error) => Err(error),
    }
}

fn open(at: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(at, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_by_their_targets_and_no_two_are_one() {
        let name = |path: &str| name(Path::new(path)).unwrap();
        assert_eq!(name("/srv/source"), "srv-source");
        assert_eq!(name("/srv-source"), "srv\\x2dsource");
        assert_eq!(name("/.hidden"), "\\x2ehidden");
        assert!(super::name(Path::new(&format!("/{}", "x".repeat(250)))).is_err());
    }
}
