//! Makes keepers, each by one clone3.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use shipote_confinement::seccomp::Filter;

use super::networks::Networks;
use crate::SpawnerConfig;
use crate::error::{Failure, Step};
use crate::grants;
use crate::ids::{Identity, Ids, map_ids};
use crate::keeper::{self, Seat, SharedRoots};
use crate::spec::SandboxSpec;
use crate::sys::{self, Side};
use crate::wire::{self, Reply};

/// A child of the spawner.
pub(super) struct Live {
    pub(super) pid: i32,
    /// Readable when it has ended.
    pub(super) pidfd: OwnedFd,
    /// The host ids that it has.
    pub(super) range: Option<u32>,
}

/// What keepers are made of.
pub(super) struct Maker {
    ids: Ids,
    /// The soft limit of open descriptors that the service had.
    nofile: u64,
    /// Compiled once; every keeper is a copy of this process.
    filters: Option<(Filter, Filter)>,
    roots: SharedRoots,
    pub(super) networks: Networks,
}

impl Maker {
    pub(super) fn new(config: &SpawnerConfig, nofile: u64) -> Self {
        Self {
            ids: Ids::new(config),
            nofile,
            filters: shipote_confinement::seccomp::command_filter_in_parts().ok(),
            roots: SharedRoots::new(),
            networks: Networks::new(),
        }
    }

    /// Whether a workspace of this spec gets the shared root here.
    pub(super) fn shares_root(&self, spec: &SandboxSpec) -> bool {
        self.roots.serves(spec)
    }

    /// Makes the keeper of a workspace, beside those that live, and tells the service at `socket`.
    pub(super) fn make(&mut self, spec: &SandboxSpec, socket: BorrowedFd<'_>, live: &[Live]) -> Result<Live, Failure> {
        let in_use: Vec<Option<u32>> = live.iter().map(|keeper| keeper.range).collect();
        let identity = self
            .ids
            .take(&in_use)
            .map_err(|error| Failure::new(Step::Ids, "for the workspace's user, as root without ids to give", error))?;
        let cgroup = match &spec.cgroup {
            None => None,
            Some(path) => Some(
                rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|error| Failure::new(Step::Cgroup, path.display().to_string(), error))?,
            ),
        };
        if let (Some(path), Identity::Range(_)) = (&spec.cgroup, identity) {
            open_to_keeper(path);
        }
        // An ordinary user's keeper has that user's rights, and its mount namespace the right to clone mounts.
        let grants = match identity {
            Identity::Caller { .. } => Vec::new(),
            Identity::Range(base) => {
                spec.paths.iter().map(|grant| grants::prepare(grant, Some(base))).collect::<Result<_, Failure>>()?
            }
        };
        let (wait, mapped) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| Failure::new(Step::Namespaces, "pipe", error))?;
        let network = self.networks.take(spec.network);
        let root = self.roots.fitting(spec, self.ids.ranged());
        let (root_shared, networked) = (root.is_some(), network.is_some());
        let (flags, into) = (sys::namespaces(spec.network, networked), cgroup.as_ref().map(AsFd::as_fd));
        let side = self.networks.within(network.as_ref(), || match root {
            // SAFETY: the spawner has one thread, and the child never returns from `keeper::run`.
            Some(root) => unsafe { root.clone3(flags, into) },
            // SAFETY: as above.
            None => unsafe { sys::clone3(flags, into) },
        });
        match side.map_err(|error| Failure::new(Step::Namespaces, "of the workspace", error))? {
            Side::Child => {
                let (nofile, filters) = (self.nofile, &self.filters);
                let (mapped, grants) = (wait.as_fd(), grants.as_slice());
                keeper::run(&Seat { socket, mapped, spec, identity, root_shared, networked, nofile, filters, grants })
            }
            Side::Parent { pid, pidfd } => {
                let keeper = Live { pid, pidfd, range: self.ids.index(identity) };
                drop(wait);
                let begun = map_ids(pid, identity)
                    .map_err(|error| Failure::new(Step::Ids, format!("of process {pid}"), error))
                    .and_then(|()| {
                        wire::send(socket, &Reply::Started { pid }, &[keeper.pidfd.as_fd()])
                            .map_err(|error| Failure::new(Step::Process, "keeper", error))
                    });
                if let Err(failure) = begun {
                    // The keeper ends because the pipe closes without a byte; it is reaped as any other.
                    let _ = wire::send(socket, &Reply::Refused { failure }, &[]);
                } else {
                    let _ = rustix::io::write(&mapped, &[1]);
                }
                Ok(keeper)
            }
        }
    }
}

/// Lets a keeper with host ids of its own start commands in the cgroups beside its own. The kernel asks
/// for write access to `cgroup.procs` of the target and of the nearest common ancestor, and that is all
/// that the file's mode decides: nobody can move a process from or to where they lack either.
fn open_to_keeper(cgroup: &std::path::Path) {
    for directory in [Some(cgroup), cgroup.parent()].into_iter().flatten() {
        // Where this fails, starting a command in another cgroup will say so.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let _ = fs::set_permissions(directory.join("cgroup.procs"), mode);
    }
}
