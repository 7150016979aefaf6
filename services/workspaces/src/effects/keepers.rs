//! Bringing workspaces up: what a spec means to the sandbox, its control group, and whoever listens to its keeper.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use shipote_bus::spec::{Access, ExitPolicy, Filesystem, Networking, Soma, WorkspaceSpec};
use shipote_confinement::{Enforcement, Mechanism};
use shipote_sandbox::{Event, ExitStream, HostFiles, HostMark, Network, PathGrant, SandboxSpec};
use tokio::sync::mpsc;
use ulid::Ulid;

use super::ahead::{Asked, Raised};
use super::cgroups::{Cgroups, describe, rlimits};
use super::kept::Whose;
use super::live::{Kept, Launches, Live, stored_name};
use super::{Explanations, KeptFolders, KeptSize, breach};
use crate::error::Error;
use crate::figures::{Meter, Subject};
use crate::state::{Input, Workspace};

/// Size of the private scratch where the spec names none.
const SCRATCH: u64 = 256 * 1024 * 1024;
/// The most that a workspace keeps on the disk where the spec names no size.
const KEPT: u64 = 4 * 1024 * 1024 * 1024;
/// From SIGTERM to SIGKILL in a workspace whose service is gone for good, milliseconds.
const ORPHAN_GRACE_MS: u64 = 2000;

/// What the sandbox reports of a workspace that writes to the host's disk.
const SCRATCH_LIMIT: &str = "scratch-limit";

impl Live {
    pub(super) fn bring_up(&mut self, workspace: &Workspace) {
        let id = workspace.id;
        let name = workspace.name.clone();
        let (quota, ephemeral) = (workspace.spec.quota_enforce, workspace.ephemeral);
        let soma = workspace.spec.soma.clone();
        let mut spec = sandbox_spec(&workspace.name, &workspace.spec, workspace.strict, &self.protected.hidden());
        let protected = self.protected.clone();
        spec.rlimits = rlimits(&soma, self.cgroups.controllers());
        spec.handover_ms = self.store.is_available().then_some(ORPHAN_GRACE_MS);
        let (ahead, raiser, claimed) = (self.ahead.clone(), self.ahead.raiser(), self.ahead.claim(id));
        let like = workspace.ephemeral.then(|| workspace.spec.clone());
        let (keepers, inputs) = (Arc::clone(&self.keepers), self.inputs.clone());
        let (cgroups, meter, store) = (self.cgroups.clone(), self.meter.clone(), self.store.clone());
        let explanations = self.explanations.clone();
        let (folders, on_exit, uid) = (self.folders.clone(), workspace.spec.on_exit, workspace.uid);
        let (scratch, overlays) = (workspace.spec.scratch_bytes, has_overlays(&workspace.spec));
        let (flows, slots, shared) = (self.flows.clone(), self.slots.clone(), workspace.spec.flow_dirs.clone());
        tokio::spawn(async move {
            let grants = std::mem::take(&mut spec.paths);
            // Most have none, and are not to wait for another thread.
            if !grants.is_empty() {
                let resolved = tokio::task::spawn_blocking(move || protected.resolve(grants)).await;
                let failed = |error| Err(Error::Failed(format!("resolve the paths of {name:?}: {error}")));
                match resolved.unwrap_or_else(failed) {
                    Ok(resolved) => spec.paths = resolved,
                    Err(error) => {
                        let _ = inputs.send(Input::KeeperFailed { workspace: id, error });
                        return;
                    }
                }
            }
            let (named, limit) = (name.clone(), scratch.unwrap_or(KEPT));
            let granted = if on_exit == ExitPolicy::Reap {
                Ok((Vec::new(), None))
            } else {
                let grants = move || folders.grants(&Whose { policy: on_exit, uid, name: &named, id, overlays }, limit);
                tokio::task::spawn_blocking(grants).await.unwrap_or_else(|error| Err(error.to_string()))
            };
            let kept_size = match granted {
                Ok((grants, size)) => {
                    spec.paths.extend(grants);
                    size.map(Arc::new)
                }
                Err(error) => {
                    let reason = format!("on_exit: {error}");
                    let _ = inputs.send(Input::KeeperFailed { workspace: id, error: Error::Keeper { name, reason } });
                    return;
                }
            };
            match slots.open(&flows, (id, &name, uid), &shared).await {
                Ok(grants) => spec.paths.extend(grants),
                Err(error) => {
                    let reason = format!("flow_dirs: {error}");
                    let _ = inputs.send(Input::KeeperFailed { workspace: id, error: Error::Keeper { name, reason } });
                    return;
                }
            }
            let asked = Asked { id, uid, name: name.clone(), spec, soma: soma.clone() };
            // before it is made: whatever changes later shows in it, or in the next comparison
            let host = like.is_some().then(HostMark::now);
            let made = match (claimed, &host) {
                (Some(claimed), Some(host)) => ahead.get(claimed, &asked, host).await,
                _ => None,
            };
            let raised = match made {
                Some(raised) => Ok(raised),
                None => raiser.raise(asked.clone()).await,
            };
            let Raised { keeper, exits, cgroup } = match raised {
                Ok(raised) => raised,
                Err(error) => {
                    let _ = inputs.send(Input::KeeperFailed { workspace: id, error });
                    return;
                }
            };
            if store.keep(&stored_name(id), keeper.socket()) {
                keeper.outlive();
            } else if store.is_available() {
                tracing::warn!("workspace {name:?} ends with this service: the store of descriptors is full");
            }
            slots.settle(&flows, id, &keeper).await;
            let mut mechanisms = keeper.mechanisms().to_vec();
            // the keeper knows that it has one, not what that can do
            if let Some(known) = mechanisms.iter_mut().find(|m| m.name == cgroup.name) {
                *known = cgroup;
            }
            let held = match kept_size.clone() {
                Some(size) => tokio::task::spawn_blocking(move || size.is_held().then_some(size)).await.unwrap_or(None),
                None => None,
            };
            if let (Some(known), Some(size)) = (mechanisms.iter_mut().find(|m| m.name == SCRATCH_LIMIT), held) {
                known.reason = format!(
                    "what it keeps lies on the disk and is measured every two seconds: commands are ended once it has \
                     more than {} bytes",
                    size.limit()
                );
            }
            let (group, share, keeper_pid) = (cgroups.of(id), cgroups.share_of(id), keeper.pid());
            let subject = Subject { name, ephemeral, keeper: keeper_pid, group, share, kept: kept_size, soma, quota };
            attend(id, subject, (&cgroups, &meter), &inputs);
            let kept = Kept { keeper: Arc::new(keeper), launches: Launches::default(), bed: Arc::default() };
            let told = (cgroups, explanations);
            tokio::spawn(watch_exits(id, exits, Arc::clone(&kept.launches), told, inputs.clone()));
            keepers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kept);
            let _ = inputs.send(Input::KeeperReady { workspace: id, mechanisms });
            if let (Some(like), Some(host)) = (like, host) {
                ahead.prepare(asked, like, host);
            }
        });
    }
}

pub(super) async fn watch_exits(
    workspace: Ulid,
    mut exits: ExitStream,
    launches: Launches,
    (cgroups, explanations): (Cgroups, Explanations),
    inputs: mpsc::UnboundedSender<Input>,
) {
    while let Some(event) = exits.next().await {
        let input = match event {
            Event::Exited { id, code, signal, .. } => {
                let Some(command) = launches.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) else {
                    continue;
                };
                let status = signal.map_or(code.unwrap_or_default(), |signal| 128 + signal);
                let limits = cgroups.ended(workspace, command, status);
                Input::Exited { command, status, signalled: signal.is_some(), limits }
            }
            Event::Refused { id, refusal } => {
                let launches = launches.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(command) = launches.get(&id) {
                    explanations.note(*command, refusal);
                }
                continue;
            }
            Event::KeeperGone => break,
        };
        let _ = inputs.send(input);
    }
    let _ = inputs.send(Input::KeeperGone { workspace });
}

/// Whether a workspace has layers that may outlive it.
fn has_overlays(spec: &WorkspaceSpec) -> bool {
    spec.paths.iter().any(|grant| grant.access == Access::Overlay)
}

/// The bound of what a workspace keeps, where it lives on.
pub(super) fn kept_size(folders: &KeptFolders, workspace: &Workspace) -> Option<Arc<KeptSize>> {
    let Workspace { id, uid, name, spec, .. } = workspace;
    let overlays = has_overlays(spec);
    let whose = Whose { policy: spec.on_exit, uid: *uid, name, id: *id, overlays };
    folders.resume(&whose, spec.scratch_bytes.unwrap_or(KEPT)).map(Arc::new)
}

/// The group that a workspace's first process starts in, and how far resources can be limited.
pub(super) async fn make_group(
    cgroups: &Cgroups,
    (workspace, uid): (Ulid, u32),
    name: &str,
    soma: &Soma,
    strict: bool,
) -> Result<(Option<PathBuf>, Mechanism), Error> {
    let mut mechanism = cgroups.mechanism();
    if strict && !mechanism.is_enforced() {
        return Err(Error::NotEnforced { name: name.to_owned(), reason: mechanism.to_string() });
    }
    let failed = |reason: String| Error::Keeper { name: name.to_owned(), reason };
    let (it, asked) = (cgroups.clone(), soma.clone());
    let made = tokio::task::spawn_blocking(move || it.make(workspace, uid, &asked))
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(e.to_string()))?;
    let unmet = made.as_ref().map_or_else(|| cgroups.unmet(soma), |m| m.unmet.clone());
    if !unmet.is_empty() {
        let text = describe(&unmet);
        if strict {
            return Err(Error::NotEnforced { name: name.to_owned(), reason: text });
        }
        mechanism.state = mechanism.state.max(Enforcement::Degraded);
        mechanism.reason = format!("{}; {text}", mechanism.reason);
    }
    Ok((made.map(|m| m.keeper), mechanism))
}

/// Has a workspace measured, and its limits watched where somebody wants to know of them.
pub(super) fn attend(
    workspace: Ulid,
    subject: Subject,
    (cgroups, meter): (&Cgroups, &Meter),
    inputs: &mpsc::UnboundedSender<Input>,
) {
    if let Some(group) = subject.group.clone().filter(|_| breach::is_wanted(subject.quota)) {
        let (name, soma, quota) = (subject.name.clone(), subject.soma.clone(), subject.quota);
        let watched = breach::Watched { workspace, name, soma, quota };
        let task = tokio::spawn(breach::watch(group, watched, inputs.clone()));
        cgroups.attend(workspace, task.abort_handle());
    }
    meter.track(workspace, subject);
}

fn sandbox_spec(name: &str, spec: &WorkspaceSpec, strict: bool, protected: &[PathBuf]) -> SandboxSpec {
    let sockets = spec.permissions.ipc.allow.iter().map(|path| PathGrant {
        path: path.into(),
        target: None,
        access: shipote_sandbox::Access::Socket,
    });
    SandboxSpec {
        hostname: hostname(name),
        network: match spec.permissions.networking {
            Networking::Loopback => Network::Loopback,
            Networking::Full => Network::Host,
            Networking::Outbound => Network::Outbound,
            Networking::None => Network::None,
        },
        host_files: match spec.permissions.filesystem {
            Filesystem::None => HostFiles::None,
            Filesystem::ReadOnly => HostFiles::Read,
            Filesystem::ReadWrite => HostFiles::Write,
        },
        host_processes: spec.permissions.processes,
        protected: protected.to_vec(),
        scratch_bytes: spec.scratch_bytes.unwrap_or(SCRATCH),
        paths: spec
            .paths
            .iter()
            .map(|grant| PathGrant {
                path: grant.path.clone(),
                target: grant.target.clone(),
                access: match grant.access {
                    Access::Read => shipote_sandbox::Access::Read,
                    Access::Write => shipote_sandbox::Access::Write,
                    Access::Overlay => shipote_sandbox::Access::Overlay,
                },
            })
            .chain(sockets)
            .collect(),
        hidden: spec.hidden.clone(),
        cpu_affinity: spec.soma.cpu_affinity.iter().flatten().filter_map(|&cpu| usize::try_from(cpu).ok()).collect(),
        explain: spec.explain,
        strict,
        ..SandboxSpec::default()
    }
}

/// A label may be anything; a host name is letters, digits and hyphens (RFC 952).
fn hostname(name: &str) -> String {
    let mut host: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    if host.is_empty() {
        host.push('-');
    }
    host
}
