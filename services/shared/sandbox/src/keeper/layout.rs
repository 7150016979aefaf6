//! What a workspace's root holds: made from nothing, so that what is not named here is not there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use shipote_confinement::Mechanism;

use super::root::{Root, clone_at, filesystem};
use super::{Ids, WORK, host};
use crate::error::{Failure, Step};
use crate::grants;
use crate::spec::{HostFiles, SandboxSpec};
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

    let root = Root::new()?;
    system(&root)?;
    let mut report = Vec::new();
    match spec.host_files {
        HostFiles::None => configuration(&root, spec, ids)?,
        access => report.push(host::files(&root, access, ids)?),
    }
    scratch(&root, spec)?;
    report.push(devices(&root, ids)?);
    report.push(if spec.host_processes { host::processes(&root)? } else { processes(&root)? });
    for (grant, tree) in spec.paths.iter().zip(trees) {
        root.attach(grant.target.as_ref().unwrap_or(&grant.path), tree.as_fd())?;
    }
    if let Some(grant) = spec.paths.iter().find(|grant| grant.target.as_deref() == Some(Path::new("/work"))) {
        let reason = format!("/work is {} of the host's disk, without a limit of its own", grant.path.display());
        report.push(Mechanism::degraded("scratch-limit", reason));
    }
    for tree in prepared {
        // Nothing here owns them: this process is a copy of the one that does.
        sys::close_range(tree.as_raw_fd() as u32, tree.as_raw_fd() as u32, 0);
    }
    for path in &spec.hidden {
        root.hide(path)?;
    }
    for path in &spec.protected {
        root.hide_if_there(path)?;
    }
    root.enter()?;
    report.push(Mechanism::enforced("pivoted-root", "only what is named is there"));
    Ok(report)
}

/// The programs and libraries of the host, read-only.
fn system(root: &Root) -> Result<(), Failure> {
    root.bind_read_only(Path::new("/usr"), NOSUID | NODEV)?;
    for name in SYSTEM {
        let path = Path::new("/").join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(|error| Failure::new(Step::Root, *name, error))?;
            root.link(&target, name)?;
        } else {
            root.bind_read_only(&path, NOSUID | NODEV)?;
        }
    }
    for path in STORES {
        let path = Path::new(path);
        // /run/current-system is a link into the store, and a bind follows it.
        if path.exists() {
            root.bind_read_only(path, NOSUID | NODEV)?;
        }
    }
    Ok(())
}

/// `/etc`: the users of the workspace, and no name service.
fn configuration(root: &Root, spec: &SandboxSpec, ids: Ids) -> Result<(), Failure> {
    root.directory("etc", 0o755)?;
    let (user, group) = match ids.keeper {
        0 => ("root:x:0:0:root:/:/usr/sbin/nologin\n", "root:x:0:\ntty:x:5:\n"),
        _ => ("", ""),
    };
    let nobody = "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n";
    let host = &spec.hostname;
    for (name, text) in [
        ("etc/passwd", format!("{user}work:x:{WORK}:{WORK}:work:/work:/bin/sh\n{nobody}")),
        ("etc/group", format!("{group}work:x:{WORK}:\nnogroup:x:65534:\n")),
        ("etc/hosts", format!("127.0.0.1 localhost {host}\n::1 localhost {host}\n")),
        ("etc/hostname", format!("{host}\n")),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("etc/resolv.conf", host::resolvers(spec.network)),
    ] {
        root.file(name, text.as_bytes())?;
    }
    for name in CONFIGURATION {
        let path = Path::new("/etc").join(name);
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        match fs::read_link(&path) {
            // The zone of the clock is a link into /usr, which is here too.
            Ok(target) if metadata.is_symlink() && target.starts_with("/usr") => {
                root.link(&target, &format!("etc/{name}"))?;
            }
            _ => root.bind_read_only(&path, NOSUID | NODEV | NOEXEC)?,
        }
    }
    Ok(())
}

/// `/work`, `/tmp` and `/dev/shm`: one file system of bounded size, in memory.
fn scratch(root: &Root, spec: &SandboxSpec) -> Result<(), Failure> {
    let named = |error: Errno| Failure::new(Step::Mount, "scratch space", error);
    // An inode costs about a KiB of kernel memory that `size` does not count.
    let inodes = (spec.scratch_bytes / 4096).max(1024).to_string();
    let size = spec.scratch_bytes.to_string();
    let options = [("size", size.as_str()), ("nr_inodes", inodes.as_str()), ("mode", "0755")];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let space = filesystem("tmpfs", &options, attributes)?;
    root.directory("dev", 0o755)?;
    // A detached tree cannot be cloned in parts, so it is first attached at one of its places.
    root.place("work", space.as_fd(), true)?;
    for (name, target, mode) in [("tmp", "tmp", 0o1777), ("shm", "dev/shm", 0o1777), ("work", "work", 0o755)] {
        rustix::fs::mkdirat(&space, name, Mode::from_raw_mode(mode)).map_err(named)?;
        // The mode above is less what the service's mask took away.
        rustix::fs::chmodat(&space, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(named)?;
        let part = clone_at(space.as_fd(), name).map_err(named)?;
        if target != "work" {
            root.place(target, part.as_fd(), true)?;
            continue;
        }
        let (uid, gid) = (Some(Uid::from_raw(WORK)), Some(Gid::from_raw(WORK)));
        rustix::fs::chownat(&space, name, uid, gid, AtFlags::empty()).map_err(named)?;
        // Its own part covers the whole, so that the others are not reached through it.
        root.cover(target, part.as_fd())?;
    }
    Ok(())
}

/// `/dev`: the harmless devices of the host, and terminals of its own.
fn devices(root: &Root, ids: Ids) -> Result<Mechanism, Failure> {
    let named = |error: Errno| Failure::new(Step::Mount, "/dev", error);
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let host = rustix::fs::open("/dev", flags, Mode::empty()).map_err(named)?;
    for name in DEVICES {
        let tree =
            clone_at(host.as_fd(), name).map_err(|error| Failure::new(Step::Mount, format!("/dev/{name}"), error))?;
        root.place(&format!("dev/{name}"), tree.as_fd(), false)?;
    }
    for (link, target) in [
        ("dev/fd", "/proc/self/fd"),
        ("dev/stdin", "/proc/self/fd/0"),
        ("dev/stdout", "/proc/self/fd/1"),
        ("dev/stderr", "/proc/self/fd/2"),
        ("dev/ptmx", "pts/ptmx"),
    ] {
        root.link(Path::new(target), link)?;
    }
    // Group 5 is tty; with a single id mapped there is no such group.
    let mut options = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if ids.keeper == 0 {
        options.push(("gid", "5"));
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    match filesystem("devpts", &options, attributes) {
        Ok(terminals) => {
            root.place("dev/pts", terminals.as_fd(), true)?;
            Ok(Mechanism::enforced("devpts", "terminals of its own"))
        }
        Err(failure) => {
            let reason = io::Error::from_raw_os_error(failure.errno);
            Ok(Mechanism::missing("devpts", format!("no terminals: {reason}")))
        }
    }
}

/// Covers what tells of the host's kernel in a `/proc` that is in place.
pub(super) fn hide_kernel(root: &Root, processes: BorrowedFd<'_>) -> Result<(), Failure> {
    for name in PROC_HIDDEN {
        root.hide_at(processes, name)
            .map_err(|error| Failure::new(Step::Mount, format!("cover /proc/{name}"), error))?;
    }
    Ok(())
}

/// `/proc` of the workspace's own processes, less what tells of or changes the host.
fn processes(root: &Root) -> Result<Mechanism, Failure> {
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let processes = match filesystem("proc", &[], attributes) {
        Ok(processes) => processes,
        // A container host whose own /proc is partly covered may not mount another.
        Err(failure) => {
            let reason = io::Error::from_raw_os_error(failure.errno);
            return Ok(Mechanism::missing("own-proc", format!("/proc is empty: {reason}")));
        }
    };
    root.cover("proc", processes.as_fd())?;
    hide_kernel(root, processes.as_fd())?;
    for name in PROC_READ_ONLY {
        let tree = match clone_at(processes.as_fd(), name) {
            Ok(tree) => tree,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(Failure::new(Step::Mount, format!("/proc/{name}"), error)),
        };
        sys::set_mount_attributes(tree.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, false)
            .map_err(|error| Failure::new(Step::Mount, format!("/proc/{name}"), error))?;
        root.cover(&format!("proc/{name}"), tree.as_fd())?;
    }
    Ok(Mechanism::enforced("own-proc", ""))
}
