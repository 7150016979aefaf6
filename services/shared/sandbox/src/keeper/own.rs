//! What each workspace has of its own in its root: `/proc`, terminals, scratch space and the files that name it.
//!
//! All of it is mounted on names that the root has already, so that the root itself may be one that nobody writes to
//! and that many workspaces share ([`super::shared_root`]). Paths are relative to the root's top, which is the working
//! directory; nobody else can have put a link into it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use shipote_confinement::Mechanism;

use super::root::Root;
use super::{Ids, WORK, host};
use crate::error::{Failure, Step};
use crate::spec::{Access, HostFiles, SandboxSpec};
use crate::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};

/// Entries of `/proc` that container runtimes hide, and those they make read-only.
const PROC_HIDDEN: &[&CStr] = &[
    c"proc/acpi",
    c"proc/asound",
    c"proc/interrupts",
    c"proc/kcore",
    c"proc/keys",
    c"proc/kmsg",
    c"proc/kpagecount",
    c"proc/latency_stats",
    c"proc/sched_debug",
    c"proc/scsi",
    c"proc/sysrq-trigger",
    c"proc/timer_list",
    c"proc/timer_stats",
];
const PROC_READ_ONLY: &[&CStr] = &[c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys"];

/// What a page of memory takes; a small file of the scratch space takes one.
const PAGE: u64 = 4096;

fn named(step: Step, object: &CStr) -> impl FnOnce(Errno) -> Failure {
    move |error| Failure::new(step, format!("/{}", object.to_string_lossy()), error)
}

/// Mounts all of it. Reports on `/proc` and the terminals, which a host may refuse, and says where layers of overlays can
/// be made in the scratch space, if there are to be some.
pub(super) fn fill(root: &Root, spec: &SandboxSpec, ids: Ids) -> Result<(Vec<Mechanism>, Option<OwnedFd>), Failure> {
    let terminals = terminals(ids);
    let processes = if spec.host_processes { host::processes(root)? } else { processes(root)? };
    let layers = scratch(spec)?;
    Ok((vec![terminals, processes], layers))
}

/// Terminals of its own.
fn terminals(ids: Ids) -> Mechanism {
    // Group 5 is tty; with a single id mapped there is no such group.
    let options = if ids.keeper == 0 { c"ptmxmode=0666,mode=0620,gid=5" } else { c"ptmxmode=0666,mode=0620" };
    match mount(c"devpts", c"dev/pts", c"devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options) {
        Ok(()) => Mechanism::enforced("devpts", "terminals of its own"),
        Err(error) => Mechanism::missing("devpts", format!("no terminals: {}", io::Error::from(error))),
    }
}

/// `/proc` of the workspace's own processes, less what tells of or changes the host.
fn processes(root: &Root) -> Result<Mechanism, Failure> {
    if let Err(error) = empty_processes() {
        // A container host whose own /proc is partly covered may not mount another.
        return Ok(Mechanism::missing("own-proc", format!("/proc is empty: {}", io::Error::from(error))));
    }
    hide_kernel(root)?;
    for path in PROC_READ_ONLY {
        match mount_bind(*path, *path) {
            Ok(()) => sys::set_mount_attributes_at(path, RDONLY | NOSUID | NODEV | NOEXEC)
                .map_err(|error| Failure::new(Step::Mount, format!("/{}", path.to_string_lossy()), error))?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(named(Step::Mount, path)(error)),
        }
    }
    Ok(Mechanism::enforced("own-proc", ""))
}

/// A `/proc` of the pid namespace that this process is in, nothing of it covered.
pub(super) fn empty_processes() -> rustix::io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"proc", c"proc", c"proc", flags, None)
}

/// Covers what tells of the host's kernel in the `/proc` that is in place.
pub(super) fn hide_kernel(root: &Root) -> Result<(), Failure> {
    for path in PROC_HIDDEN {
        // Nearly all are files. The null device needs no attributes of its own.
        let covered = match mount_bind(c"dev/null", *path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTDIR) => root.cover_with_nothing(path),
            Err(error) => Err(error.into()),
        };
        covered.map_err(|error| Failure::new(Step::Mount, format!("cover /{}", path.to_string_lossy()), error))?;
    }
    Ok(())
}

/// `/work`, `/tmp` and `/dev/shm`: one file system of bounded size, in memory. It also holds the files of `/etc` that
/// name the workspace.
fn scratch(spec: &SandboxSpec) -> Result<Option<OwnedFd>, Failure> {
    let failed = |error: Errno| Failure::new(Step::Mount, "scratch space", error);
    let files = files(spec);
    // An inode costs about a KiB of kernel memory that `size` does not count.
    let inodes = (spec.scratch_bytes / PAGE).max(1024) + files.len() as u64;
    let size = spec.scratch_bytes + files.len() as u64 * PAGE;
    let options = CString::new(format!("size={size},nr_inodes={inodes},mode=0755")).unwrap_or_default();
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(c"tmpfs", c"work", c"tmpfs", flags, options.as_c_str()).map_err(failed)?;
    for (path, mode) in [(c"work/tmp", 0o1777), (c"work/shm", 0o1777), (c"work/work", 0o755)] {
        rustix::fs::mkdir(path, Mode::from_raw_mode(mode)).map_err(failed)?;
        // The mode above is less what the keeper's mask took away.
        rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(failed)?;
    }
    let (uid, gid) = (Some(Uid::from_raw(WORK)), Some(Gid::from_raw(WORK)));
    rustix::fs::chown(c"work/work", uid, gid).map_err(failed)?;
    let layers = if spec.paths.iter().any(|grant| grant.access == Access::Overlay) {
        rustix::fs::mkdir(c"work/layers", Mode::from_raw_mode(0o700)).map_err(failed)?;
        rustix::fs::chown(c"work/layers", uid, gid).map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(rustix::fs::open(c"work/layers", flags, Mode::empty()).map_err(failed)?)
    } else {
        None
    };
    for (inside, path, text) in &files {
        file(inside, text.as_bytes()).map_err(named(Step::Root, path))?;
        mount_bind(*inside, *path).map_err(named(Step::Mount, path))?;
        sys::set_mount_attributes_at(path, RDONLY | NOSUID | NODEV | NOEXEC)
            .map_err(|error| Failure::new(Step::Mount, format!("/{}", path.to_string_lossy()), error))?;
    }
    mount_bind(c"work/tmp", c"tmp").map_err(failed)?;
    mount_bind(c"work/shm", c"dev/shm").map_err(failed)?;
    // Its own part covers the whole, so that the others are not reached through it.
    mount_bind(c"work/work", c"work").map_err(failed)?;
    Ok(layers)
}

/// The files of `/etc` that differ from workspace to workspace: where they are made, where they appear, what they say.
fn files(spec: &SandboxSpec) -> Vec<(&'static CStr, &'static CStr, String)> {
    if spec.host_files != HostFiles::None {
        return Vec::new();
    }
    let host = &spec.hostname;
    let resolvers = host::resolvers(spec.network);
    let mut files = vec![
        (c"work/hosts", c"etc/hosts", format!("127.0.0.1 localhost {host}\n::1 localhost {host}\n")),
        (c"work/hostname", c"etc/hostname", format!("{host}\n")),
    ];
    if !resolvers.is_empty() {
        files.push((c"work/resolv.conf", c"etc/resolv.conf", resolvers));
    }
    files
}

fn file(path: &CStr, contents: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(file.as_fd(), contents).map(drop)
}
