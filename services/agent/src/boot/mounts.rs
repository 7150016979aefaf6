//! The mounts that every Linux program expects.

use std::fs::create_dir_all;

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};

/// The cgroup v2 hierarchy.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Images and overlays. In memory, until a machine can be given a disk.
pub(super) const STORAGE: &str = "/storage";

fn attach(kind: &str, target: &str, flags: MountFlags, data: &std::ffi::CStr) -> anyhow::Result<()> {
    create_dir_all(target).with_context(|| format!("make {target}"))?;
    mount(kind, target, kind, flags | MountFlags::NOSUID, data).with_context(|| format!("mount {kind} on {target}"))
}

/// Those that modules and sockets need.
pub(super) fn first() -> anyhow::Result<()> {
    attach("proc", "/proc", MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    attach("sysfs", "/sys", MountFlags::NODEV | MountFlags::NOEXEC, c"")?;
    attach("devtmpfs", "/dev", MountFlags::NOEXEC, c"mode=0755")?;
    attach("devpts", "/dev/pts", MountFlags::NOEXEC, c"mode=0620,ptmxmode=0666")?;
    // Before the first connection, which may put a file there. Programs of images keep their set-user-id bits.
    create_dir_all(STORAGE).with_context(|| format!("make {STORAGE}"))?;
    mount("tmpfs", STORAGE, "tmpfs", MountFlags::empty(), c"mode=0700,size=80%")
        .with_context(|| format!("mount tmpfs on {STORAGE}"))
}

/// The hierarchy that commands get their cgroups in.
pub(super) fn cgroups() -> anyhow::Result<()> {
    attach("cgroup2", CGROUPS, MountFlags::NODEV | MountFlags::NOEXEC, c"")
}

/// Those that only programs need.
pub(super) fn rest() -> anyhow::Result<()> {
    attach("tmpfs", "/dev/shm", MountFlags::NODEV | MountFlags::NOEXEC, c"mode=1777")?;
    for (link, target) in
        [("/dev/fd", "/proc/self/fd"), ("/dev/stdin", "fd/0"), ("/dev/stdout", "fd/1"), ("/dev/stderr", "fd/2")]
    {
        match std::os::unix::fs::symlink(target, link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("link {link}"));
            }
            _ => {}
        }
    }
    Ok(())
}
