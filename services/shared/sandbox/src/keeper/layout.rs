//! What a workspace's root holds: made from nothing, so that what is not named here is not there.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;
use shipote_confinement::Mechanism;

use super::root::{Root, clone_at};
use super::{Ids, WORK, host, overlay, own};
use crate::error::{Failure, Step};
use crate::grants;
use crate::spec::{Access, HostFiles, Network, PathGrant, SandboxSpec};
use crate::sys::{self, NODEV, NOEXEC, NOSUID};

/// Where the system lies, besides `/usr`: links or directories as on the host.
pub(super) const SYSTEM: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// System trees that NixOS has.
pub(super) const STORES: &[&str] = &["/nix/store", "/run/current-system"];
/// Configuration of the host that programs need and that tells nothing of the host's users.
pub(super) const CONFIGURATION: &[&str] = &["alternatives", "ld.so.cache", "localtime", "pki/tls/certs", "ssl/certs"];
const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];
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

    let kept = spec.paths.iter().zip(trees).find(|(grant, _)| grant.access == Access::Layers).map(|(_, tree)| tree);
    let root = Root::new()?;
    let mut report = Vec::new();
    match spec.host_files {
        HostFiles::None => plain(&root, ids)?,
        access => {
            system(&root)?;
            devices(&root)?;
            report.push(host::files(&root, access, ids)?);
        }
    }
    if let Some(kept) = kept {
        // beneath the scratch: attached, as a layer has to be, and out of reach
        root.cover("work", kept.as_fd())?;
    }
    let (filled, scratch) = own::fill(&root, spec, ids)?;
    report.extend(filled);
    let layers = kept.or(scratch.as_ref());
    for (grant, tree) in spec.paths.iter().zip(trees).filter(|(grant, _)| grant.access != Access::Layers) {
        let target = grant.target.as_ref().unwrap_or(&grant.path);
        root.attach(target, tree.as_fd())?;
        if let (Access::Overlay, Some(layers)) = (grant.access, layers) {
            report.push(overlay::cover(&root, target, tree.as_fd(), layers.as_fd())?);
        }
    }
    let on_disk =
        |grant: &&PathGrant| grant.access == Access::Layers || grant.target.as_deref() == Some(Path::new("/work"));
    if let Some(grant) = spec.paths.iter().find(on_disk) {
        let reason = format!("{} of the host's disk is written to, without a limit of its own", grant.path.display());
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
    report.push(pivoted());
    Ok(report)
}

fn pivoted() -> Mechanism {
    Mechanism::enforced("pivoted-root", "only what is named is there")
}

/// Whether the workspace's root can be the [shared one](super::shared_root): nothing of the host is added to it, and it is
/// read-only as it stands.
pub(super) fn shares_root(spec: &SandboxSpec) -> bool {
    spec.host_files == HostFiles::None
        && spec.paths.is_empty()
        && spec.hidden.is_empty()
        && !spec.host_processes
        && spec.network != Network::Host
}

/// Completes the shared root, in which this process was made.
pub(super) fn complete(spec: &SandboxSpec, ids: Ids) -> Result<Vec<Mechanism>, Failure> {
    let root = Root::found()?;
    // without grants there are no layers
    let (mut report, _) = own::fill(&root, spec, ids)?;
    for path in &spec.protected {
        root.hide_if_there(path)?;
    }
    report.push(pivoted());
    Ok(report)
}

/// Builds what the roots of all workspaces without files of the host have in common, moves into it and leaves the
/// host's behind.
pub(super) fn build_shared(ids: Ids) -> Result<(), Failure> {
    let root = Root::new()?;
    plain(&root, ids)?;
    // The kernel lets a user namespace mount a /proc only where there is one already that nothing covers. This one is
    // of a pid namespace that has this process only and soon none, and every workspace covers it with its own.
    let _ = own::empty_processes();
    root.enter()
}

/// The root of a workspace without files of the host, less what each has of its own.
fn plain(root: &Root, ids: Ids) -> Result<(), Failure> {
    system(root)?;
    configuration(root, ids)?;
    devices(root)
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

/// `/etc`: the users of a workspace, and no name service; places for what names it.
fn configuration(root: &Root, ids: Ids) -> Result<(), Failure> {
    root.directory("etc", 0o755)?;
    let (user, group) = match ids.keeper {
        0 => ("root:x:0:0:root:/:/usr/sbin/nologin\n", "root:x:0:\ntty:x:5:\n"),
        _ => ("", ""),
    };
    let nobody = "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n";
    for (name, text) in [
        ("etc/passwd", format!("{user}work:x:{WORK}:{WORK}:work:/work:/bin/sh\n{nobody}")),
        ("etc/group", format!("{group}work:x:{WORK}:\nnogroup:x:65534:\n")),
        ("etc/hosts", String::new()),
        ("etc/hostname", String::new()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("etc/resolv.conf", String::new()),
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

/// `/dev`: the harmless devices of the host; and places for what each workspace has of its own.
fn devices(root: &Root) -> Result<(), Failure> {
    let named = |error: Errno| Failure::new(Step::Mount, "/dev", error);
    root.directory("dev", 0o755)?;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let host = rustix::fs::open("/dev", flags, Mode::empty()).map_err(named)?;
    for name in DEVICES {
        let tree =
            clone_at(host.as_fd(), name).map_err(|error| Failure::new(Step::Mount, format!("/dev/{name}"), error))?;
        root.place(&format!("dev/{name}"), tree.as_fd())?;
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
    for name in ["dev/pts", "dev/shm", "tmp", "work"] {
        root.directory(name, 0o755)?;
    }
    Ok(())
}
