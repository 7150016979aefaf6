//! The means to build a root: detached mounts, attached at paths that are resolved inside of it, so that no
//! symbolic link leads out.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Failure, Step};
use crate::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// The root under construction.
pub(super) struct Root {
    top: OwnedFd,
    /// The null device, which covers files.
    null: OwnedFd,
    /// A directory of the root that stays empty, which covers directories.
    empty: OwnedFd,
}

/// A new file system, mounted nowhere yet.
fn filesystem(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Failure> {
    let make = || -> rustix::io::Result<OwnedFd> {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
        fsconfig_create(context.as_fd())?;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(|error| Failure::new(Step::Mount, kind, error))
}

/// A detached copy of one mount at a name beneath a directory.
pub(super) fn clone_at(directory: BorrowedFd<'_>, name: &str) -> rustix::io::Result<OwnedFd> {
    open_tree(directory, name, CLONE)
}

impl Root {
    /// An empty root, covering the host's for those who look it up from above; nobody does.
    pub(super) fn new() -> Result<Self, Failure> {
        let named = |error| Failure::new(Step::Root, "empty", error);
        // Nothing that is mounted or unmounted on the host from now on shows here.
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(named)?;
        let null = rustix::fs::open("/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
        let top = filesystem("tmpfs", &[("size", "1m"), ("mode", "0755")], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
        move_mount(top.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(named)?;
        rustix::fs::mkdirat(&top, "proc", Mode::from_raw_mode(0o555)).map_err(named)?;
        let empty = rustix::fs::openat(&top, "proc", DIRECTORY, Mode::empty()).map_err(named)?;
        // What is mounted by name is mounted in it.
        rustix::process::fchdir(&top).map_err(named)?;
        Ok(Self { top, null, empty })
    }

    /// The root that this process has already.
    pub(super) fn found() -> Result<Self, Failure> {
        let named = |error| Failure::new(Step::Root, "made before", error);
        rustix::process::chdir("/").map_err(named)?;
        let null = rustix::fs::open("dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(named)?;
        let top = rustix::fs::open(".", DIRECTORY, Mode::empty()).map_err(named)?;
        // Nothing is mounted on it yet.
        let empty = rustix::fs::open("dev/shm", DIRECTORY, Mode::empty()).map_err(named)?;
        Ok(Self { top, null, empty })
    }

    /// Attaches a path of the host at the same path inside, read-only.
    pub(super) fn bind_read_only(&self, path: &Path, attributes: u64) -> Result<(), Failure> {
        let named = |error: io::Error| Failure::new(Step::Mount, path.display().to_string(), error);
        let tree = open_tree(CWD, path, CLONE | OpenTreeFlags::AT_RECURSIVE).map_err(|error| named(error.into()))?;
        sys::set_mount_attributes(tree.as_fd(), RDONLY | attributes, true).map_err(named)?;
        self.attach(path, tree.as_fd())
    }

    /// Makes a file in the root and attaches another there: [`Root::attach`] for names that no link is part of.
    pub(super) fn place(&self, name: &str, file: BorrowedFd<'_>) -> Result<(), Failure> {
        self.file(name, b"")?;
        self.cover(name, file)
    }

    /// Attaches a tree at a name that is there.
    pub(super) fn cover(&self, name: &str, tree: BorrowedFd<'_>) -> Result<(), Failure> {
        move_mount(tree, "", self.top.as_fd(), name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| Failure::new(Step::Mount, format!("/{name}"), error))
    }

    /// Attaches a detached tree at a path inside, which is made if it is not there.
    pub(super) fn attach(&self, target: &Path, tree: BorrowedFd<'_>) -> Result<(), Failure> {
        let named = |error: Errno| Failure::new(Step::Mount, target.display().to_string(), error);
        let at = match self.open(target, OFlags::PATH) {
            Ok(at) => at,
            Err(Errno::NOENT) => {
                let (parent, name) = self.parents(target).map_err(named)?;
                if kind(tree) == Some(FileType::Directory) {
                    rustix::fs::mkdirat(parent.as_fd(), &name, Mode::from_raw_mode(0o755)).map_err(named)?;
                } else {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    rustix::fs::openat(parent.as_fd(), &name, flags, Mode::from_raw_mode(0o644)).map_err(named)?;
                }
                self.open(target, OFlags::PATH).map_err(named)?
            }
            Err(error) => return Err(named(error)),
        };
        self.attach_at(at.as_fd(), tree).map_err(named)
    }

    fn attach_at(&self, at: BorrowedFd<'_>, tree: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree, "", at, "", flags)
    }

    /// Covers a path with an empty directory or file.
    pub(super) fn hide(&self, path: &Path) -> Result<(), Failure> {
        let named = |error: Errno| Failure::new(Step::Path, format!("hide {}", path.display()), error);
        let target = self.open(path, OFlags::PATH).map_err(named)?;
        let cover = self
            .nothing(kind(target.as_fd()))
            .map_err(|error| named(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        self.attach_at(target.as_fd(), cover.as_fd()).map_err(named)
    }

    /// As `hide`, for a path that may not be there, or not be reachable even for the keeper, and so for no command.
    pub(super) fn hide_if_there(&self, path: &Path) -> Result<(), Failure> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(()),
            _ => self.hide(path),
        }
    }

    /// Covers a directory with an empty one.
    pub(super) fn cover_with_nothing(&self, path: &CStr) -> io::Result<()> {
        let cover = self.nothing(Some(FileType::Directory))?;
        Ok(move_mount(cover.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    }

    fn nothing(&self, of: Option<FileType>) -> io::Result<OwnedFd> {
        let clone = CLONE | OpenTreeFlags::AT_EMPTY_PATH;
        if of != Some(FileType::Directory) {
            return Ok(open_tree(self.null.as_fd(), "", clone)?);
        }
        let tree = open_tree(self.empty.as_fd(), "", clone)?;
        sys::set_mount_attributes(tree.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, false)?;
        Ok(tree)
    }

    /// Leaves the host's root for this one, which becomes read-only.
    pub(super) fn enter(self) -> Result<(), Failure> {
        let enter = || -> io::Result<()> {
            rustix::process::fchdir(self.top.as_fd())?;
            // The new root covers the old one's place and then the old one covers it (pivot_root(2)).
            rustix::process::pivot_root(".", ".")?;
            rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
            rustix::process::chdir("/")?;
            sys::set_mount_attributes(self.top.as_fd(), RDONLY | NOSUID | NODEV, false)
        };
        enter().map_err(|error| Failure::new(Step::Root, "enter it", error))
    }

    /// Opens a path as it is inside.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(self.top.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), inside)
    }

    /// Makes what is missing of the directories above `path`; returns the last and the name in it.
    fn parents(&self, path: &Path) -> rustix::io::Result<(OwnedFd, PathBuf)> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let mut parent = self.open(Path::new("."), OFlags::PATH | OFlags::DIRECTORY)?;
        let mut so_far = PathBuf::new();
        for part in path.parent().unwrap_or(Path::new("")).components() {
            let std::path::Component::Normal(part) = part else { continue };
            so_far.push(part);
            parent = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(there) => there,
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(parent.as_fd(), part, Mode::from_raw_mode(0o755))?;
                    self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok((parent, PathBuf::from(name)))
    }

    pub(super) fn directory(&self, name: &str, mode: u32) -> Result<(), Failure> {
        rustix::fs::mkdirat(self.top.as_fd(), name, Mode::from_raw_mode(mode))
            .map_err(|error| Failure::new(Step::Root, format!("/{name}"), error))
    }

    pub(super) fn link(&self, target: &Path, name: &str) -> Result<(), Failure> {
        rustix::fs::symlinkat(target.as_os_str().as_bytes(), self.top.as_fd(), name)
            .map_err(|error| Failure::new(Step::Root, format!("/{name}"), error))
    }

    pub(super) fn file(&self, name: &str, contents: &[u8]) -> Result<(), Failure> {
        let named = |error| Failure::new(Step::Root, format!("/{name}"), error);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.top.as_fd(), name, flags, Mode::from_raw_mode(0o644)).map_err(named)?;
        if !contents.is_empty() {
            rustix::io::write(&file, contents).map_err(named)?;
        }
        Ok(())
    }
}

fn kind(fd: BorrowedFd<'_>) -> Option<FileType> {
    rustix::fs::fstat(fd).ok().map(|stat| FileType::from_raw_mode(stat.st_mode))
}
