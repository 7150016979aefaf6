//! Attributes of mounts (mount_setattr(2)).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Mount is read-only.
pub(crate) const RDONLY: u64 = 0x1;
/// Set-user-id bits are ignored.
pub(crate) const NOSUID: u64 = 0x2;
/// Device nodes are not devices.
pub(crate) const NODEV: u64 = 0x4;
/// Nothing is executed.
pub(crate) const NOEXEC: u64 = 0x8;

/// Sets attributes of the mount that `tree` is, and of those beneath it where `recursive`, and cuts it
/// off from the host's mounts.
pub(crate) fn set_mount_attributes(tree: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    mount_setattr(tree, c"", MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() }, recursive)
}

/// As [`set_mount_attributes`], of the one mount that is at `path`.
pub(crate) fn set_mount_attributes_at(path: &CStr, set: u64) -> io::Result<()> {
    let attributes = MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr(rustix::fs::CWD, path, attributes, false)
}

/// Has the ids of files beneath `tree` mapped as the user namespace maps them: what is inside of it is
/// what is on the disk.
pub(crate) fn map_mount_ids(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let userns = namespace.as_raw_fd() as u64;
    mount_setattr(tree, c"", MountAttr { set: IDMAP, userns, ..MountAttr::default() }, true)
}

fn mount_setattr(tree: BorrowedFd<'_>, path: &CStr, attributes: MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, the struct is as the kernel lays it out.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
