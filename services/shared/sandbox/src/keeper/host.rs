//! What a workspace shares with the host because its spec asks for it: files, processes, the network. Each is
//! reported, so that nobody takes such a workspace for an isolated one.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};
use shipote_confinement::{Mechanism, PathAccess};

use super::Ids;
use super::own;
use super::root::Root;
use crate::error::{Failure, Step};
use crate::spec::{HostFiles, Network, SandboxSpec};
use crate::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};

/// The mechanism that [`Network::Host`] does without.
pub(super) const NETWORK: &str = "network-namespace";
const FILES: &str = "host-files";
const PROCESSES: &str = "own-proc";

/// Names in the host's root that a workspace has of its own, or not at all: devices, processes, the kernel's
/// settings, scratch, and what may hold sockets of the host's services.
const OWN: &[&str] = &["dev", "lost+found", "proc", "run", "sys", "tmp", "work"];
/// The system is laid out already.
const SYSTEM: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Not to be written, whoever may write it.
const READ_ONLY: &[&str] = &["boot", "efi", "etc", "nix"];

/// The lack is what the spec asked for: a strict workspace is still what it is meant to be.
pub(super) fn asked_for(spec: &SandboxSpec, mechanism: &Mechanism) -> bool {
    match mechanism.name.as_str() {
        NETWORK => spec.network == Network::Host,
        PROCESSES => spec.host_processes,
        _ => false,
    }
}

/// Says so where there is no network namespace.
pub(super) fn network(spec: &SandboxSpec, mechanism: &mut Mechanism) {
    if spec.network != Network::Host {
        return;
    }
    // Nothing but a loopback interface: the service has been given no network itself.
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let others = devices.lines().skip(2).filter_map(|line| line.split_once(':')).any(|(name, _)| name.trim() != "lo");
    let reason = if others {
        "the host's network is shared, as asked for"
    } else {
        "shared with the service as asked for, which has none but a loopback (PrivateNetwork= of its unit; a drop-in \
         takes it and IPAddressDeny= back)"
    };
    *mechanism = Mechanism::missing(NETWORK, reason);
}

/// The name servers: the host's for a workspace that reaches them, the door for one that has one.
pub(super) fn resolvers(network: Network) -> String {
    let host = || fs::read_to_string("/etc/resolv.conf").ok().filter(|text| text.len() <= 4096);
    match network {
        Network::Host => host().unwrap_or_default(),
        Network::Outbound => "nameserver 127.0.0.1\n".to_owned(),
        Network::None | Network::Loopback => String::new(),
    }
}

/// Attaches the directories of the host's root that are there besides the system's.
pub(super) fn files(root: &Root, access: HostFiles, ids: Ids) -> Result<Mechanism, Failure> {
    let named = |error: std::io::Error| Failure::new(Step::Mount, "the host's files", error);
    for entry in fs::read_dir("/").map_err(named)? {
        let entry = entry.map_err(named)?;
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        if OWN.contains(&name) || SYSTEM.contains(&name) {
            continue;
        }
        let kind = entry.file_type().map_err(named)?;
        if kind.is_symlink() {
            root.link(&fs::read_link(&path).map_err(named)?, name)?;
        } else if kind.is_dir() || kind.is_file() {
            let read_only = access == HostFiles::Read || READ_ONLY.contains(&name);
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            let failed = |error: std::io::Error| Failure::new(Step::Mount, path.display().to_string(), error);
            let tree = open_tree(CWD, &path, flags).map_err(|error| failed(error.into()))?;
            let attributes = NOSUID | NODEV | if read_only { RDONLY } else { 0 };
            sys::set_mount_attributes(tree.as_fd(), attributes, true).map_err(failed)?;
            root.attach(&path, tree.as_fd())?;
        }
    }
    let how = if access == HostFiles::Read { "read-only" } else { "writable but for the system" };
    let who = if ids.keeper == 0 { "a user that owns none of them" } else { "the service's user" };
    Ok(Mechanism::enforced(
        FILES,
        format!("{how}, for {who}; sockets among them can be connected to where their mode lets it"),
    ))
}

/// The `/proc` of the service. Landlock keeps what it tells of a process to what everybody may read.
pub(super) fn processes(root: &Root) -> Result<Mechanism, Failure> {
    let named = |error: std::io::Error| Failure::new(Step::Mount, "/proc of the host", error);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    if shipote_confinement::landlock_abi() == 0 {
        // Without it a command could read the memory of other processes of its user.
        return Err(named(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
    }
    let alone = !Path::new("/proc/1").exists();
    let tree = open_tree(CWD, "/proc", flags).map_err(|error| named(error.into()))?;
    sys::set_mount_attributes(tree.as_fd(), RDONLY | NOSUID | NODEV | NOEXEC, true).map_err(named)?;
    root.cover("proc", tree.as_fd())?;
    own::hide_kernel(root)?;
    let reason = if alone {
        "asked for, but the service itself sees none but its own (ProtectProc= of its unit)"
    } else {
        "the host's processes are seen, as asked for"
    };
    Ok(Mechanism::missing(PROCESSES, reason))
}

/// What landlock allows of the host's files, seen from inside; `known` has rules of its own.
pub(super) fn rules(files: HostFiles, known: &[&str]) -> Vec<(PathBuf, PathAccess)> {
    if files == HostFiles::None {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_file()))
        .filter(|entry| !known.iter().any(|path| Path::new(path) == entry.path()))
        .filter(|entry| entry.file_name() != "run")
        .map(|entry| {
            let read_only = READ_ONLY.iter().any(|name| entry.file_name() == *name);
            let write = files == HostFiles::Write && !read_only;
            (entry.path(), if write { PathAccess::All } else { PathAccess::Execute })
        })
        .collect()
}
