//! A workspace's root: made from nothing, so that what is not named here is not there.
//!
//! The host's tree is reached only before the pivot; every mount is built detached and then attached
//! beneath the new root, with paths resolved inside of it, so that no symbolic link leads out.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};
use shipote_confinement::Mechanism;

use super::{Ids, WORK};
use crate::error::{Failure, Step};
use crate::grants;
use crate::spec::SandboxSpec;
use crate::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};

/// Where the system lies, besides `/usr`: links or directories as on the host.
const SYSTEM: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// System trees that NixOS has.
const STORES: &[&str] = &["/nix/store", "/run/current-system"];
/// Configuration of the host that programs need and that tells nothing of the host's users.
const CONFIGURATION: &[&str] = &["alternatives", "ld.so.cache", "localtime", "pki/tls/certs", "ssl/certs"];
const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];
/// Entries of `/proc` that container runtimes hide, and those they make read-only.
const PROC_HIDDEN: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "kmsg",
    "kpagecount",
    "latency_stats",
    "sched_debug",
    "scsi",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
];
const PROC_READ_ONLY: &[&str] = &["bus", "fs", "irq", "sys"];

/// The root under construction.
struct Root {
    top: OwnedFd,
}

/// Builds the root of `spec`, moves into it and leaves the host's behind. Reports on `/proc` and the
/// terminals, which a host may refuse.
pub(super) fn build(spec: &SandboxSpec, ids: Ids, prepared: &[OwnedFd]) -> Result<Vec<Mechanism>, Failure> {
    // Granted paths are opened before anything is covered, where the spawner did not.
    let own = if prepared.is_empty() {
        spec.paths.iter().map(|grant| grants::prepare(grant, None)).collect::<Result<Vec<_>, Failure>>()?
    } else {
        Vec::new()
    };
    let trees = if prepared.is_empty() { own.as_slice() } else { prepared };

    let mount = filesystem("tmpfs", &[("size", "1m"), ("mode", "0755")], MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    move_mount(mount.as_fd(), "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| Failure::new(Step::Mount, "new root", error))?;
    let root = Root { top: mount };
    root.system()?;
    root.configuration(spec, ids)?;
    root.scratch(spec)?;
    let mut report = vec![root.devices(ids)?, root.processes()?];
    for (grant, tree) in spec.paths.iter().zip(trees) {
        root.attach(grant.target.as_ref().unwrap_or(&grant.path), tree.as_fd())?;
    }
    for tree in prepared {
        // Nothing here owns them: this process is a copy of the one that does.
        sys::close_range(tree.as_raw_fd() as u32, tree.as_raw_fd() as u32, 0);
    }
    for path in &spec.hidden {
        root.hide(path)?;
    }
    root.enter()?;
    report.push(Mechanism::enforced("pivoted-root", "only what is named is there"));
    Ok(report)
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

/// A detached copy of the mounts at a path of the host.
fn clone_tree(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

impl Root {
    /// The programs and libraries of the host, read-only.
    fn system(&self) -> Result<(), Failure> {
        self.bind_read_only(Path::new("/usr"), NOSUID | NODEV)?;
        for name in SYSTEM {
            let path = Path::new("/").join(name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(|error| Failure::new(Step::Root, *name, error))?;
                self.link(&target, name)?;
            } else {
                self.bind_read_only(&path, NOSUID | NODEV)?;
            }
        }
        for path in STORES {
            let path = Path::new(path);
            // /run/current-system is a link into the store, and a bind follows it.
            if path.exists() {
                self.bind_read_only(path, NOSUID | NODEV)?;
            }
        }
        Ok(())
    }

    /// `/etc`: the users of the workspace, and no name service.
    fn configuration(&self, spec: &SandboxSpec, ids: Ids) -> Result<(), Failure> {
        self.directory("etc", 0o755)?;
        let root = if ids.keeper == 0 { "root:x:0:0:root:/:/usr/sbin/nologin\n" } else { "" };
        let group = if ids.keeper == 0 { "root:x:0:\ntty:x:5:\n" } else { "" };
        let host = &spec.hostname;
        for (name, text) in [
            (
                "etc/passwd",
                format!(
                    "{root}work:x:{WORK}:{WORK}:work:/work:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
                ),
            ),
            ("etc/group", format!("{group}work:x:{WORK}:\nnogroup:x:65534:\n")),
            ("etc/hosts", format!("127.0.0.1 localhost {host}\n::1 localhost {host}\n")),
            ("etc/hostname", format!("{host}\n")),
            ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
            ("etc/resolv.conf", String::new()),
        ] {
            self.file(name, text.as_bytes())?;
        }
        for name in CONFIGURATION {
            let path = Path::new("/etc").join(name);
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if let (true, Ok(target)) = (metadata.is_symlink(), fs::read_link(&path)) {
                // The zone of the clock is a link into /usr, which is here too.
                if target.starts_with("/usr") && self.parents(&path).is_ok() {
                    self.link(&target, &format!("etc/{name}"))?;
                    continue;
                }
            }
            self.bind_read_only(&path, NOSUID | NODEV | NOEXEC)?;
        }
        Ok(())
    }

    /// `/work`, `/tmp` and `/dev/shm`: one file system of bounded size, in memory.
    fn scratch(&self, spec: &SandboxSpec) -> Result<(), Failure> {
        // An inode costs about a KiB of kernel memory that `size` does not count.
        let inodes = (spec.scratch_bytes / 4096).max(1024).to_string();
        let size = spec.scratch_bytes.to_string();
        let options = [("size", size.as_str()), ("nr_inodes", inodes.as_str()), ("mode", "0755")];
        let space =
            filesystem("tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        self.directory("dev", 0o755)?;
        // A detached tree cannot be cloned in parts, so it is first attached at one of its places.
        self.directory("work", 0o755)?;
        move_mount(space.as_fd(), "", self.top.as_fd(), "work", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| Failure::new(Step::Mount, "/work", error))?;
        for (name, target, mode) in [("tmp", "tmp", 0o1777), ("shm", "dev/shm", 0o1777), ("work", "", 0o755)] {
            let named = |error| Failure::new(Step::Mount, format!("scratch {name}"), error);
            rustix::fs::mkdirat(space.as_fd(), name, Mode::from_raw_mode(mode)).map_err(named)?;
            rustix::fs::chmodat(space.as_fd(), name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(named)?;
            let tree =
                open_tree(space.as_fd(), name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                    .map_err(named)?;
            if target.is_empty() {
                rustix::fs::chownat(
                    space.as_fd(),
                    name,
                    Some(Uid::from_raw(WORK)),
                    Some(Gid::from_raw(WORK)),
                    AtFlags::empty(),
                )
                .map_err(named)?;
                // Its own subdirectory covers the whole, so that the others are not reached through it.
                move_mount(tree.as_fd(), "", self.top.as_fd(), "work", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                    .map_err(named)?;
            } else {
                self.directory(target, 0o755)?;
                self.attach(Path::new(target), tree.as_fd())?;
            }
        }
        Ok(())
    }

    /// `/dev`: the harmless devices of the host, and terminals of its own.
    fn devices(&self, ids: Ids) -> Result<Mechanism, Failure> {
        for name in DEVICES {
            let path = Path::new("/dev").join(name);
            let tree = clone_tree(&path, false)
                .map_err(|error| Failure::new(Step::Mount, path.display().to_string(), error))?;
            self.file(&format!("dev/{name}"), b"")?;
            self.attach(&path, tree.as_fd())?;
        }
        for (link, target) in [
            ("dev/fd", "/proc/self/fd"),
            ("dev/stdin", "/proc/self/fd/0"),
            ("dev/stdout", "/proc/self/fd/1"),
            ("dev/stderr", "/proc/self/fd/2"),
            ("dev/ptmx", "pts/ptmx"),
        ] {
            self.link(Path::new(target), link)?;
        }
        self.directory("dev/pts", 0o755)?;
        // Group 5 is tty; with a single id mapped there is no such group.
        let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
        if ids.keeper == 0 {
            options.push(("gid", "5"));
        }
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        match filesystem("devpts", &options, attributes) {
            Ok(terminals) => {
                self.attach(Path::new("/dev/pts"), terminals.as_fd())?;
                Ok(Mechanism::enforced("devpts", "terminals of its own"))
            }
            Err(failure) => Ok(Mechanism::missing(
                "devpts",
                format!("no terminals: {}", io::Error::from_raw_os_error(failure.errno)),
            )),
        }
    }

    /// `/proc` of the workspace's own processes, less what tells of or changes the host.
    fn processes(&self) -> Result<Mechanism, Failure> {
        self.directory("proc", 0o555)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let processes = match filesystem("proc", &[], attributes) {
            Ok(processes) => processes,
            // A container host whose own /proc is partly covered may not mount another.
            Err(failure) => {
                return Ok(Mechanism::missing(
                    "own-proc",
                    format!("/proc is empty: {}", io::Error::from_raw_os_error(failure.errno)),
                ));
            }
        };
        self.attach(Path::new("/proc"), processes.as_fd())?;
        for name in PROC_HIDDEN {
            self.hide_if_present(&Path::new("/proc").join(name))?;
        }
        for name in PROC_READ_ONLY {
            let named = |error: io::Error| Failure::new(Step::Mount, format!("/proc/{name} read-only"), error);
            match open_tree(processes.as_fd(), *name, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            {
                Ok(tree) => {
                    sys::set_mount_attributes(tree.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, false).map_err(named)?;
                    self.attach(&Path::new("/proc").join(name), tree.as_fd())?;
                }
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(named(error.into())),
            }
        }
        Ok(Mechanism::enforced("own-proc", ""))
    }

    /// Covers a path with an empty directory or file.
    fn hide(&self, path: &Path) -> Result<(), Failure> {
        if self.hide_if_present(path)? {
            return Ok(());
        }
        Err(Failure::new(Step::Path, format!("hide {}", path.display()), io::Error::from_raw_os_error(libc::ENOENT)))
    }

    fn hide_if_present(&self, path: &Path) -> Result<bool, Failure> {
        let target = match self.open(path, OFlags::PATH) {
            Ok(target) => target,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
            Err(error) => return Err(Failure::new(Step::Path, path.display().to_string(), error)),
        };
        let cover = match kind(target.as_fd()) {
            Some(FileType::Directory) => {
                let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC
                    | MountAttrFlags::MOUNT_ATTR_RDONLY;
                filesystem("tmpfs", &[("size", "4k"), ("nr_inodes", "1"), ("mode", "0555")], attributes)?
            }
            _ => clone_tree(Path::new("/dev/null"), false)
                .map_err(|error| Failure::new(Step::Mount, "/dev/null", error))?,
        };
        self.attach_at(target.as_fd(), cover.as_fd())
            .map_err(|error| Failure::new(Step::Path, format!("hide {}", path.display()), error))?;
        Ok(true)
    }

    /// Leaves the host's root for this one, which becomes read-only.
    fn enter(self) -> Result<(), Failure> {
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

    fn bind_read_only(&self, path: &Path, attributes: u64) -> Result<(), Failure> {
        let named = |error: io::Error| Failure::new(Step::Mount, path.display().to_string(), error);
        let tree = clone_tree(path, true).map_err(|error| named(error.into()))?;
        sys::set_mount_attributes(tree.as_fd(), RDONLY | attributes, true).map_err(named)?;
        self.attach(path, tree.as_fd())
    }

    /// Attaches a detached tree at a path inside, which is made if it is not there.
    fn attach(&self, target: &Path, tree: BorrowedFd<'_>) -> Result<(), Failure> {
        let named = |error: rustix::io::Errno| Failure::new(Step::Mount, target.display().to_string(), error);
        let at = match self.open(target, OFlags::PATH) {
            Ok(at) => at,
            Err(rustix::io::Errno::NOENT) => {
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

    /// Opens a path as it is inside.
    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(self.top.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), inside)
    }

    /// Makes what is missing of the directories above `path`; returns the last and the name in it.
    fn parents(&self, path: &Path) -> rustix::io::Result<(OwnedFd, PathBuf)> {
        let name = path.file_name().ok_or(rustix::io::Errno::INVAL)?;
        let mut parent = self.open(Path::new("."), OFlags::PATH | OFlags::DIRECTORY)?;
        let mut so_far = PathBuf::new();
        for part in path.parent().unwrap_or(Path::new("")).components() {
            let std::path::Component::Normal(part) = part else { continue };
            so_far.push(part);
            parent = match self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(there) => there,
                Err(rustix::io::Errno::NOENT) => {
                    rustix::fs::mkdirat(parent.as_fd(), part, Mode::from_raw_mode(0o755))?;
                    self.open(&so_far, OFlags::PATH | OFlags::DIRECTORY)?
                }
                Err(error) => return Err(error),
            };
        }
        Ok((parent, PathBuf::from(name)))
    }

    fn directory(&self, name: &str, mode: u32) -> Result<(), Failure> {
        rustix::fs::mkdirat(self.top.as_fd(), name, Mode::from_raw_mode(mode))
            .map_err(|error| Failure::new(Step::Root, format!("/{name}"), error))
    }

    fn link(&self, target: &Path, name: &str) -> Result<(), Failure> {
        rustix::fs::symlinkat(target.as_os_str().as_bytes(), self.top.as_fd(), name)
            .map_err(|error| Failure::new(Step::Root, format!("/{name}"), error))
    }

    fn file(&self, name: &str, contents: &[u8]) -> Result<(), Failure> {
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
