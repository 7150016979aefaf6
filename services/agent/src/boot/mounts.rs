//! The mounts that every Linux program expects.

use std::fs::create_dir_all;

use anyhow::Context as _;
use rustix::mount::{MountFlags, mount};

/// The cgroup v2 hierarchy.
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Images and overlays: in memory, or on the machine's disk.
pub(super) const STORAGE: &str = "/storage";

/// How long the disk may take to appear.
const DISK_TIME: std::time::Duration = std::time::Duration::from_secs(10);

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

/// The machine's disk in the place of the memory. The device may take a moment to appear.
pub(super) fn disk() -> anyhow::Result<()> {
    let device = std::path::Path::new("/dev/vda");
    let begun = std::time::Instant::now();
    while !device.exists() {
        anyhow::ensure!(begun.elapsed() < DISK_TIME, "the disk did not appear within {DISK_TIME:?}");
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    mount(device, STORAGE, "ext4", MountFlags::NOATIME, None)
        .with_context(|| format!("mount the disk on {STORAGE}"))?;
    // For the host's user alone, as the memory is.
    std::fs::set_permissions(STORAGE, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
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
