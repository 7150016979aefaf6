//! Granted paths that the spawner prepares, because it has rights that a keeper with host ids of its own
//! has not: to reach a path at all, and to map the ids of its files.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Failure, Step};
use crate::keeper::WORK;
use crate::spec::{Access, PathGrant};
use crate::sys::{self, NODEV, NOSUID, RDONLY, Side};

/// Opens the path as it is written. Who looked at where it leads has resolved its links: one that is met now has been
/// put there since, and may lead to what was not looked at.
fn open(grant: &PathGrant) -> rustix::io::Result<OwnedFd> {
    let (flags, as_written) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS);
    rustix::fs::openat2(CWD, &grant.path, flags, Mode::empty(), as_written)
}

/// A detached copy of the mounts at the granted path, ready to be attached. The ids of an owner's files
/// become those of the workspace's user where `base` says what its host ids begin with.
pub(crate) fn prepare(grant: &PathGrant, base: Option<u32>) -> Result<OwnedFd, Failure> {
    let failed = |error: io::Error| Failure::new(Step::Path, grant.path.display().to_string(), error);
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // an overlay has the one mount for its layer, and nothing that is mounted below it
    let flags = if grant.access == Access::Overlay { clone } else { clone | OpenTreeFlags::AT_RECURSIVE };
    let path = open(grant).map_err(|error| failed(error.into()))?;
    let tree = open_tree(&path, "", flags | OpenTreeFlags::AT_EMPTY_PATH).map_err(|error| failed(error.into()))?;
    drop(path);
    let wanted = match grant.access {
        Access::Socket => Some((FileType::Socket, libc::ENOTSOCK)),
        Access::Overlay | Access::Layers => Some((FileType::Directory, libc::ENOTDIR)),
        _ => None,
    };
    if let Some((kind, otherwise)) = wanted {
        let stat = rustix::fs::fstat(&tree).map_err(|error| failed(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != kind {
            return Err(failed(io::Error::from_raw_os_error(otherwise)));
        }
    }
    let read_only = if matches!(grant.access, Access::Read | Access::Overlay) { RDONLY } else { 0 };
    sys::set_mount_attributes(tree.as_fd(), read_only | NOSUID | NODEV, true).map_err(failed)?;
    if let (Access::Own | Access::Layers, Some(_)) = (grant.access, base) {
        own(tree.as_fd()).map_err(failed)?;
    }
    if let (Access::Owner | Access::Own | Access::Layers | Access::Overlay, Some(base)) = (grant.access, base) {
        // Of the tree, not of the path, which may have come to mean something else.
        let owner = rustix::fs::fstat(&tree).map_err(|error| failed(error.into()))?;
        if owner.st_uid == 0 || owner.st_gid == 0 {
            if grant.access == Access::Overlay {
                // Nothing is left there; but what only root may read stays unread.
                return Ok(tree);
            }
            // What a command left there as root's could be run by root, or with root's rights.
            return Err(failed(io::Error::from_raw_os_error(libc::EPERM)));
        }
        let namespace = mapping(owner.st_uid, owner.st_gid, base + WORK).map_err(failed)?;
        sys::map_mount_ids(tree.as_fd(), namespace.as_fd()).map_err(failed)?;
    }
    Ok(tree)
}

/// Who owns what workspaces leave where they have ids of their own: right below those (see `SpawnerConfig`).
const OWNER: u32 = 0x5fff_ffff;

fn own(tree: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(tree)?;
    let folder = rustix::fs::openat(tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Dir::read_from(folder)?.filter_map(Result::ok);
    if stat.st_uid != 0 || names.any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")) {
        // Someone's already, or not made for this: what follows refuses root's.
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(OWNER), rustix::fs::Gid::from_raw(OWNER));
    Ok(rustix::fs::chownat(tree, "", Some(uid), Some(gid), rustix::fs::AtFlags::EMPTY_PATH)?)
}

/// A user namespace in which `uid` and `gid` are the host's `to`, and nothing else is anything. It lives as
/// long as its descriptor.
fn mapping(uid: u32, gid: u32, to: u32) -> io::Result<OwnedFd> {
    let (wait, done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the spawner has one thread, and the child only waits and ends.
    match unsafe { sys::clone3(libc::CLONE_NEWUSER as u64, None) }? {
        Side::Child => {
            drop(done);
            let _ = rustix::io::read(&wait, &mut [0_u8; 1]);
            sys::exit(0)
        }
        Side::Parent { pid, .. } => {
            let made = fs::write(format!("/proc/{pid}/uid_map"), format!("{uid} {to} 1"))
                .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), format!("{gid} {to} 1")))
                .and_then(|()| File::open(format!("/proc/{pid}/ns/user")));
            drop((wait, done));
            // SAFETY: waits for the child, which reads the end of its pipe.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Ok(made?.into())
        }
    }
}
