//! The keeper: PID 1 of one workspace.
//!
//! It is a copy of the spawner without an exec, so making it costs one clone3. It builds the root, or completes the one
//! that it finds where its spec adds nothing of the host ([`shared_root`]), gives up what it no longer needs, and then starts, signals and reaps commands as its socket tells it. When
//! the socket closes it ends, and the kernel ends every process of its pid namespace with it.

mod command;
mod doors;
mod explain;
mod host;
mod layout;
mod overlay;
mod own;
mod root;
mod serve;
mod shared_root;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::thread::{CapabilitySet, CapabilitySets};
use shipote_confinement::seccomp::Filter;
use shipote_confinement::{Domain, Handled, Mechanism, PathAccess};

use doors::Doors;
pub use shared_root::HostMark;
pub(crate) use shared_root::SharedRoots;

use crate::error::{Failure, Step};
use crate::ids::Identity;
use crate::spawner::loopback_up;
use crate::spec::{Access, Network, SandboxSpec};
use crate::sys;
use crate::wire::{self, Reply};

/// The uid and gid of commands inside.
pub(crate) const WORK: u32 = 1000;

/// What a keeper is given at birth.
pub(crate) struct Seat<'a> {
    /// Its connection to the service.
    pub(crate) socket: BorrowedFd<'a>,
    /// One byte comes out of it when the ids are mapped, none when they could not be.
    pub(crate) mapped: BorrowedFd<'a>,
    pub(crate) spec: &'a SandboxSpec,
    pub(crate) identity: Identity,
    /// It was made in the shared root, which is complete but for what is its own.
    pub(crate) root_shared: bool,
    /// Its network was made ahead, as its spec wants it.
    pub(crate) networked: bool,
    /// The granted paths as the spawner prepared them; empty where the keeper has to.
    pub(crate) grants: &'a [OwnedFd],
    /// Soft limit of open descriptors that the service had.
    pub(crate) nofile: u64,
    /// The seccomp filter of commands: what the keeper bears too, and the rest.
    pub(crate) filters: &'a Option<(Filter, Filter)>,
}

/// The uid of the keeper inside: 0 where it has a range of ids, else that of its commands.
#[derive(Debug, Clone, Copy)]
struct Ids {
    keeper: u32,
}

impl Ids {
    /// Of a workspace that has ids of its own, or has not.
    fn of(ranged: bool) -> Self {
        Self { keeper: if ranged { 0 } else { WORK } }
    }
}

/// The keeper's whole life. The process ends with it.
pub(crate) fn run(seat: &Seat<'_>) -> ! {
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(seat)));
    sys::exit(if lived.is_ok() { 0 } else { 70 })
}

fn live(seat: &Seat<'_>) {
    let mut kept = vec![seat.socket.as_raw_fd(), seat.mapped.as_raw_fd()];
    kept.extend(seat.grants.iter().map(AsRawFd::as_raw_fd));
    sys::keep_only(&kept);
    sys::name_process(c"shipote-keeper");
    // The service's mask would show in what is built, and in what commands make.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let mut byte = [0_u8; 1];
    if !matches!(rustix::io::read(seat.mapped, &mut byte), Ok(1)) {
        return;
    }
    sys::close_range(seat.mapped.as_raw_fd() as u32, seat.mapped.as_raw_fd() as u32, 0);
    match set_up(seat) {
        Ok((mechanisms, common, doors)) => {
            let lacks = |mechanism: &Mechanism| !mechanism.is_enforced() && !host::asked_for(seat.spec, mechanism);
            if seat.spec.strict && mechanisms.iter().any(lacks) {
                let mechanisms = mechanisms.into_iter().filter(lacks).collect();
                let _ = wire::send(seat.socket, &Reply::NotEnforced { mechanisms }, &[]);
            } else if wire::send(seat.socket, &Reply::Ready { mechanisms: mechanisms.clone() }, &[]).is_ok() {
                let handover = seat.spec.handover_ms.map(Duration::from_millis);
                serve::serve(seat.socket, &common, mechanisms, doors, handover);
            }
        }
        Err(failure) => {
            let _ = wire::send(seat.socket, &Reply::Refused { failure }, &[]);
        }
    }
}

fn set_up(seat: &Seat<'_>) -> Result<(Vec<Mechanism>, command::Common, Option<Doors>), Failure> {
    let spec = seat.spec;
    let mut report: Vec<Mechanism> = ["user", "mount", "pid", "ipc", "uts", "network", "cgroup"]
        .map(|kind| Mechanism::enforced(format!("{kind}-namespace"), ""))
        .into();
    report.iter_mut().filter(|mechanism| mechanism.name == host::NETWORK).for_each(|m| host::network(spec, m));
    let ids = Ids::of(matches!(seat.identity, Identity::Range(_)));
    report.push(become_first(seat.identity)?);
    report.extend(if seat.root_shared { layout::complete(spec, ids)? } else { layout::build(spec, ids, seat.grants)? });
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|error| Failure::new(Step::Root, "host name", error))?;
    if matches!(spec.network, Network::Loopback | Network::Outbound) && !seat.networked {
        loopback_up().map_err(|error| Failure::new(Step::Network, "lo", error))?;
    }
    // While it may still bind any port, and before any command could.
    let doors = match spec.network {
        Network::Outbound => Some(Doors::open()?),
        Network::None | Network::Loopback | Network::Host => None,
    };
    set_affinity(&spec.cpu_affinity).map_err(|error| Failure::new(Step::Limits, "CPU affinity", error))?;
    report.push(match &spec.cgroup {
        Some(path) => Mechanism::enforced("cgroup", path.display().to_string()),
        None => Mechanism::missing("cgroup", "none was given; resources are limited per process only"),
    });
    report.push(Mechanism::enforced("rlimits", ""));
    report.extend(confine(spec)?);
    // The last thing, because the filter takes away what building needed.
    let (confined, seccomp) = if spec.explain {
        // A filter of the keeper's would answer before the supervisor's could ask.
        let explainer = explain::Explainer::start(seat.socket, spec.network, ids)?;
        let detail = "allow-list, explained; on commands only, not on their keeper";
        (command::Filtered::Explained(explainer), Mechanism::enforced("seccomp", detail))
    } else {
        match seat.filters.as_ref().map(|(first, rest)| (first.install(), rest)) {
            Some((Ok(()), rest)) => {
                (command::Filtered::Rest(rest.clone()), Mechanism::enforced("seccomp", "allow-list"))
            }
            Some((Err(error), _)) => (command::Filtered::No, Mechanism::missing("seccomp", error.to_string())),
            None => (command::Filtered::No, Mechanism::missing("seccomp", "no filter could be compiled")),
        }
    };
    drop_tracing(spec)?;
    report.push(seccomp);
    let stack = shipote_spawn::Stack::new().map_err(|error| Failure::new(Step::Process, "stack", error))?;
    let common = command::Common { ids, rlimits: spec.rlimits, nofile: seat.nofile, filter: confined, stack };
    Ok((report, common, doors))
}

/// Takes the keeper's own ids, and shuts its memory off from what will run beside it.
fn become_first(identity: Identity) -> Result<Mechanism, Failure> {
    let named = |error: rustix::io::Errno| Failure::new(Step::Ids, "of the keeper", error);
    let mechanism = match identity {
        Identity::Range(base) => {
            let (uid, gid) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
            rustix::thread::set_thread_groups(&[]).map_err(named)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(named)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(named)?;
            Mechanism::enforced("host-ids", format!("{base} to {}", base + 65_535))
        }
        Identity::Caller { uid, .. } => Mechanism::degraded(
            "host-ids",
            format!("commands are uid {uid} with its groups on the host, in every workspace; other ids need privilege"),
        ),
    };
    sys::set_not_dumpable();
    Ok(mechanism)
}

const NEEDED: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::KILL).union(CapabilitySet::SYS_ADMIN);

fn keep_capabilities(needed: CapabilitySet) -> Result<(), Failure> {
    let kept = CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, kept)
        .map_err(|error| Failure::new(Step::Capabilities, "of the keeper", error))
}

/// What only the supervisor has to have.
fn drop_tracing(spec: &SandboxSpec) -> Result<(), Failure> {
    if spec.explain { keep_capabilities(NEEDED) } else { Ok(()) }
}

/// Gives up what the keeper does not need to serve, for itself and so for every command.
fn confine(spec: &SandboxSpec) -> Result<Vec<Mechanism>, Failure> {
    let refused = |step, error: &shipote_confinement::Error| {
        Failure::new(step, error.to_string(), io::Error::from_raw_os_error(libc::EPERM))
    };
    // Commands inherit the empty bounding set. What the keeper itself still holds each command drops
    // before its program runs.
    clear_bounding_set();
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| Failure::new(Step::Capabilities, "no new privileges", error))?;
    let domain = domain(spec).map_err(|error| refused(Step::Landlock, &error))?;
    let landlock = domain.restrict().map_err(|error| refused(Step::Landlock, &error))?;
    // SYS_ADMIN over its own namespaces is for telling the service the pids of its children; landlock
    // already forbids what else it is for, mounting.
    // SYS_PTRACE is for the supervisor, which is started next and to which it is left.
    keep_capabilities(if spec.explain { NEEDED | CapabilitySet::SYS_PTRACE } else { NEEDED })?;
    Ok(vec![
        landlock,
        Mechanism::enforced("no-new-privileges", ""),
        Mechanism::enforced("capabilities", "none, and none to gain"),
    ])
}

/// Empties the bounding set; the capabilities that are held stay.
fn clear_bounding_set() {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if rustix::thread::remove_capability_from_bounding_set(capability).is_err() {
            break;
        }
    }
}

/// The landlock domain of a workspace, once its root is in place.
fn domain(spec: &SandboxSpec) -> Result<Domain, shipote_confinement::Error> {
    let handled = Handled { signals: true, abstract_unix: true, ..Handled::default() };
    let mut domain = Domain::new(handled)?.allow_path(Path::new("/"), PathAccess::List)?;
    let fixed = [
        ("/usr", PathAccess::Execute),
        ("/bin", PathAccess::Execute),
        ("/sbin", PathAccess::Execute),
        ("/lib", PathAccess::Execute),
        ("/lib32", PathAccess::Execute),
        ("/lib64", PathAccess::Execute),
        ("/libx32", PathAccess::Execute),
        ("/nix/store", PathAccess::Execute),
        ("/run/current-system", PathAccess::Execute),
        ("/etc", PathAccess::Read),
        ("/proc", PathAccess::Use),
        ("/dev", PathAccess::Use),
        ("/dev/shm", PathAccess::All),
        ("/tmp", PathAccess::All),
        ("/work", PathAccess::All),
    ];
    for (path, access) in fixed {
        // A link leads to what has a rule of its own.
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_symlink()) {
            domain = domain.allow_path(Path::new(path), access)?;
        }
    }
    for (path, access) in host::rules(spec.host_files, &fixed.map(|(path, _)| path)) {
        domain = domain.allow_path(&path, access)?;
    }
    for grant in &spec.paths {
        let access = match grant.access {
            Access::Read => PathAccess::Execute,
            Access::Write | Access::Owner | Access::Own | Access::Overlay => PathAccess::All,
            Access::Layers => continue,
            Access::Socket => PathAccess::Use,
        };
        domain = domain.allow_path(grant.target.as_ref().unwrap_or(&grant.path), access)?;
    }
    Ok(domain)
}

fn set_affinity(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = rustix::thread::CpuSet::new();
    for cpu in cpus {
        if *cpu >= rustix::thread::CpuSet::MAX_CPU {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        set.set(*cpu);
    }
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
