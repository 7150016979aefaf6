//! The effects as they really are: sandbox, pipes, logs.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shipote_bus::spec::{Access, Filesystem, Networking, Soma, WorkspaceSpec};
use shipote_bus::workspaces::FlowInfo;
use shipote_confinement::{Enforcement, Mechanism};
use shipote_sandbox::{
    CommandSpec, Event, ExitStream, HostFiles, Keeper, Network, PathGrant, SandboxError, SandboxSpec, Spawner, Stdio,
    Step, Terminal,
};
use shipote_service::FdStore;
use tokio::sync::{mpsc, watch};
use ulid::Ulid;

use super::ahead::{Ahead, Asked, Raised, Raiser};
use super::breach;
use super::cgroups::{Cgroups, describe, rlimits};
use super::flows::Flows;
use super::log::Stream;
use super::numbers;
use super::sleep::Bed;
use super::wiring::{NodeDescriptors, wire};
use super::{Attachments, Effects, Explanations, Foreigners, Handed, Journal, KeptFolders, LogStore, completion};
use crate::actor::{BoxFuture, Change, FlowSource};
use crate::error::{Error, SpawnKind};
use crate::figures::{Meter, Subject};
use crate::protected::Protected;
use crate::state::{Command, CommandPhase, Input, Pipeline, Record, Target, Usec, Workspace};

/// Size of the private scratch where the spec names none.
const SCRATCH: u64 = 256 * 1024 * 1024;
/// How long the flows of an ended pipeline still serve their replay.
const FLOW_LINGER: Duration = Duration::from_secs(300);
/// SIGKILL, the same on every architecture.
const KILL: i32 = 9;
/// Where programs are looked up inside a workspace.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// From SIGTERM to SIGKILL in a workspace whose service is gone for good, milliseconds.
const ORPHAN_GRACE_MS: u64 = 2000;

/// Commands by the number under which a keeper knows their present launch.
pub(super) type Launches = Arc<Mutex<HashMap<u64, Ulid>>>;

/// A living keeper and the launches it tells the ends of.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keeper: Arc<Keeper>,
    pub(super) launches: Launches,
    pub(super) bed: Arc<Bed>,
}

/// Descriptors that a keeper is to hold, by owner and tag.
type ToHold = Vec<(u64, u8, Arc<OwnedFd>)>;

/// What a task tells `Live` of a keeper that came up.
type Keepers = Arc<Mutex<HashMap<Ulid, Kept>>>;
type Terminals = Arc<Mutex<HashMap<Ulid, OwnedFd>>>;

/// What the effects are made of.
pub(crate) struct Means {
    pub(crate) spawner: Spawner,
    pub(crate) store: FdStore,
    pub(crate) journal: Journal,
    pub(crate) cgroups: Cgroups,
    pub(crate) meter: Meter,
    pub(crate) logs: LogStore,
    pub(crate) runtime: PathBuf,
    pub(crate) protected: Protected,
    pub(crate) folders: KeptFolders,
    pub(crate) foreigners: Foreigners,
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
    pub(crate) changes: mpsc::UnboundedSender<Change>,
}

/// What is left of them once the spawner is shared and the flows are open.
pub(super) struct Made {
    pub(super) store: FdStore,
    pub(super) journal: Journal,
    pub(super) cgroups: Cgroups,
    pub(super) meter: Meter,
    pub(super) logs: LogStore,
    pub(super) protected: Protected,
    pub(super) folders: KeptFolders,
    pub(super) foreigners: Foreigners,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
}

/// Name of a keeper's socket in the store.
pub(super) fn stored_name(workspace: Ulid) -> String {
    format!("k{workspace}")
}

/// The effects, live.
pub(crate) struct Live {
    pub(super) store: FdStore,
    journal: Journal,
    /// What no workspace is given; hidden in each that sees files of the host.
    protected: Protected,
    /// `/work` of those that leave something.
    folders: KeptFolders,
    /// Components, and programs of machines.
    foreigners: Foreigners,
    pub(super) cgroups: Cgroups,
    pub(super) meter: Meter,
    pub(super) logs: LogStore,
    pub(super) flows: Flows,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) keepers: Keepers,
    pub(super) handed: HashMap<Ulid, Handed>,
    /// Standard descriptors of what may be launched again.
    pub(super) kept_stdio: HashMap<Ulid, [Option<OwnedFd>; 3]>,
    nodes: HashMap<Ulid, NodeDescriptors>,
    terminals: Terminals,
    pub(super) attachments: Attachments,
    pub(super) explanations: Explanations,
    ahead: Ahead,
}

impl Live {
    pub(super) fn new(made: Made, flows: Flows, spawner: Arc<Spawner>) -> Self {
        let ahead = Ahead::new(Raiser { spawner, cgroups: made.cgroups.clone() });
        Live {
            store: made.store,
            journal: made.journal,
            protected: made.protected,
            folders: made.folders,
            foreigners: made.foreigners,
            cgroups: made.cgroups,
            meter: made.meter,
            logs: made.logs,
            flows,
            inputs: made.inputs,
            keepers: Keepers::default(),
            handed: HashMap::new(),
            kept_stdio: HashMap::new(),
            nodes: HashMap::new(),
            terminals: Terminals::default(),
            attachments: Attachments::default(),
            explanations: Explanations::default(),
            ahead,
        }
    }

    /// The workspace that is made ahead.
    pub(crate) fn ahead(&self) -> Ahead {
        self.ahead.clone()
    }

    /// Changes whenever something becomes known of a flow.
    pub(crate) fn flow_news(&self) -> watch::Receiver<()> {
        self.flows.news()
    }

    /// Ways into detached commands.
    pub(crate) fn attachments(&self) -> Attachments {
        self.attachments.clone()
    }

    /// What commands were refused.
    pub(crate) fn explanations(&self) -> Explanations {
        self.explanations.clone()
    }

    fn kept(&self, workspace: Ulid) -> Option<(Arc<Keeper>, Launches)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(&workspace).map(|k| (Arc::clone(&k.keeper), Arc::clone(&k.launches)))
    }

    pub(super) fn bed(&self, workspace: Ulid) -> Option<(Arc<Keeper>, Arc<Bed>)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(&workspace).map(|k| (Arc::clone(&k.keeper), Arc::clone(&k.bed)))
    }

    /// Standard descriptors of a command: an edge's, the caller's, or its log's; and what its keeper is to hold.
    fn stdio(&mut self, command: &Command) -> io::Result<(Stdio, ToHold)> {
        let id = command.what.id;
        let again = command.what.restart.is_some();
        let owner = numbers::owner(command, again);
        let mut own = self.nodes.remove(&id).unwrap_or_default();
        let handed = match self.kept_stdio.get(&id) {
            Some(kept) => clone_all(kept)?,
            None => match self.handed.get_mut(&id).and_then(|h| h.stdio.take()) {
                Some(stdio) => stdio.map(Some),
                None => [None, None, None],
            },
        };
        let [stdin, stdout, stderr] = handed;
        own.stdin = own.stdin.or(stdin);
        own.stdout = own.stdout.or(stdout);
        own.stderr = own.stderr.or(stderr);
        let mut held = Vec::new();
        if command.what.attachable && command.what.terminal.is_none() && own.stdin.is_none() {
            own.stdin = self.keep_input(command, owner, &mut held)?;
        }
        if again && !self.kept_stdio.contains_key(&id) {
            let now = [&own.stdin, &own.stdout, &own.stderr];
            let kept = clone_all(&now.map(|fd| fd.as_ref().map(AsFd::as_fd)))?;
            for (tag, fd) in (numbers::TAG_STDIO..).zip(&kept) {
                if let Some(fd) = fd {
                    held.push((owner, tag, Arc::new(fd.try_clone()?)));
                }
            }
            self.kept_stdio.insert(id, kept);
        }
        if let Some(completion) = self.handed.get(&id).and_then(|handed| handed.completion.as_ref()) {
            held.push((owner, numbers::TAG_DONE, Arc::new(completion.try_clone()?)));
        }
        let missing: Vec<Stream> = [(Stream::Stdout, own.stdout.is_none()), (Stream::Stderr, own.stderr.is_none())]
            .into_iter()
            .filter_map(|(stream, missing)| missing.then_some(stream))
            .collect();
        if !missing.is_empty() && command.what.terminal.is_none() {
            let launch = numbers::launch(id, command.relaunches);
            for captured in self.logs.capture(id, &missing, again || command.pipeline.is_some())? {
                let (slot, tag) = match captured.stream {
                    Stream::Stdout => (&mut own.stdout, numbers::TAG_STDOUT),
                    Stream::Stderr => (&mut own.stderr, numbers::TAG_STDERR),
                };
                *slot = Some(captured.write);
                held.push((launch, tag, captured.read));
            }
        }
        Ok((Stdio { stdin: own.stdin, stdout: own.stdout, stderr: own.stderr }, held))
    }

    /// A standard input that stays open until somebody says that it is to end.
    fn keep_input(&self, command: &Command, owner: u64, held: &mut ToHold) -> io::Result<Option<OwnedFd>> {
        let id = command.what.id;
        let Some((keeper, _)) = self.kept(command.workspace).filter(|_| !self.attachments.has(id)) else {
            return Ok(None);
        };
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let write = Arc::new(write);
        held.push((owner, numbers::TAG_INPUT, Arc::clone(&write)));
        self.attachments.keep_pipe(id, write, keeper, owner);
        Ok(Some(read))
    }

    fn wire_all(&mut self, pipeline: &Pipeline, labels: &[&str]) -> io::Result<()> {
        let what = &pipeline.what;
        let mut wiring = wire(pipeline.nodes.len(), &what.edges, what.tap)?;
        if let Some(stdio) = self.handed.get_mut(&what.id).and_then(|h| h.stdio.take()) {
            self.kept_stdio.insert(what.id, stdio.map(Some));
        }
        self.hold_for_pipeline(pipeline)?;
        if let Some(kept) = self.kept_stdio.get(&what.id) {
            let [stdin, stdout, stderr] = clone_all(kept)?;
            // one reader only: two nodes reading one input would each get some of it
            if let Some(first) = wiring.nodes.iter_mut().find(|n| n.stdin.is_none()) {
                first.stdin = stdin;
            }
            for node in &mut wiring.nodes {
                if node.stdout.is_none() {
                    node.stdout = stdout.as_ref().map(OwnedFd::try_clone).transpose()?;
                }
                if node.stderr.is_none() {
                    node.stderr = stderr.as_ref().map(OwnedFd::try_clone).transpose()?;
                }
            }
        }
        if what.restart.is_none() {
            self.kept_stdio.remove(&what.id);
        }
        let carried = self.flows.start(pipeline, labels, wiring.junctions)?;
        let (id, inputs) = (what.id, self.inputs.clone());
        tokio::spawn(async move {
            if let Err(reason) = carried.await {
                let error = Error::Failed(format!("run pipeline {id}: {reason}"));
                let _ = inputs.send(Input::PipelineBroken { pipeline: id, error });
            }
        });
        self.nodes.extend(pipeline.nodes.iter().copied().zip(wiring.nodes));
        Ok(())
    }

    /// Has the keeper hold what a pipeline needs until it has ended.
    fn hold_for_pipeline(&self, pipeline: &Pipeline) -> io::Result<()> {
        let id = pipeline.what.id;
        let mut held: Vec<(u8, OwnedFd)> = Vec::new();
        if let Some(completion) = self.handed.get(&id).and_then(|handed| handed.completion.as_ref()) {
            held.push((numbers::TAG_DONE, completion.try_clone()?));
        }
        if pipeline.what.restart.is_some()
            && let Some(kept) = self.kept_stdio.get(&id)
        {
            for (tag, fd) in (numbers::TAG_STDIO..).zip(kept) {
                if let Some(fd) = fd {
                    held.push((tag, fd.try_clone()?));
                }
            }
        }
        let Some((keeper, _)) = self.kept(pipeline.workspace).filter(|_| !held.is_empty()) else { return Ok(()) };
        tokio::spawn(async move {
            let descriptors: Vec<_> = held.iter().map(|(tag, fd)| (*tag, fd.as_fd())).collect();
            if let Err(error) = keeper.hold(numbers::number(id), &descriptors).await {
                tracing::debug!("hold the descriptors of pipeline {id}: {error}");
            }
        });
        Ok(())
    }

    /// What a keeper holds for `owner` is not needed any more.
    fn let_go(&self, workspace: Ulid, owner: u64) {
        if let Some((keeper, _)) = self.kept(workspace) {
            tokio::spawn(async move {
                // a keeper that has ended holds nothing
                let _ = keeper.acknowledge(owner).await;
            });
        }
    }

    fn send(&self, input: Input) {
        // the actor ends only with the service
        let _ = self.inputs.send(input);
    }
}

impl FlowSource for Live {
    fn flows(&self) -> Vec<FlowInfo> {
        self.flows.list()
    }

    fn measure(&self) -> BoxFuture {
        Box::pin(self.flows.measure())
    }

    fn door(&self, workspace: Ulid) -> Option<Arc<Keeper>> {
        self.kept(workspace).map(|(keeper, _)| keeper)
    }
}

impl Effects for Live {
    fn hand_over(&mut self, id: Ulid, handed: Handed) {
        self.handed.insert(id, handed);
    }

    fn take_back(&mut self, id: Ulid) {
        self.handed.remove(&id);
    }

    fn lend(&mut self, target: &mut Target, strict: bool) {
        if let (Target::Ephemeral { id, spec }, false) = (target, strict) {
            self.ahead.lend(id, spec);
        }
    }

    fn start_keeper(&mut self, workspace: &Workspace) {
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
            match folders.grant(on_exit, uid, &name, id).await {
                Ok(grant) => spec.paths.extend(grant),
                Err(error) => {
                    let reason = format!("on_exit: {error}");
                    let _ = inputs.send(Input::KeeperFailed { workspace: id, error: Error::Keeper { name, reason } });
                    return;
                }
            }
            let asked = Asked { id, name: name.clone(), spec, soma: soma.clone() };
            let made = match claimed {
                Some(claimed) => ahead.get(claimed, &asked).await,
                None => None,
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
            let mut mechanisms = keeper.mechanisms().to_vec();
            // the keeper knows that it has one, not what that can do
            if let Some(known) = mechanisms.iter_mut().find(|m| m.name == cgroup.name) {
                *known = cgroup;
            }
            let group = cgroups.of(id);
            let subject = Subject { name, ephemeral, keeper: keeper.pid(), group, soma, quota };
            attend(id, subject, (&cgroups, &meter), &inputs);
            let kept = Kept { keeper: Arc::new(keeper), launches: Launches::default(), bed: Arc::default() };
            let told = (cgroups, explanations);
            tokio::spawn(watch_exits(id, exits, Arc::clone(&kept.launches), told, inputs.clone()));
            keepers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kept);
            let _ = inputs.send(Input::KeeperReady { workspace: id, mechanisms });
            if let Some(like) = like {
                ahead.prepare(&asked, like);
            }
        });
    }

    fn end_keeper(&mut self, workspace: Ulid, grace: Duration) {
        let kept = self.kept(workspace);
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let reaped = match kept {
                Some((keeper, _)) => keeper.end(grace).await.unwrap_or_else(|error| {
                    // it is gone already, and the kernel has ended all that was in it
                    tracing::debug!("end workspace {workspace}: {error}");
                    0
                }),
                None => 0,
            };
            let _ = inputs.send(Input::KeeperEnded { workspace, reaped });
        });
    }

    fn forget_keeper(&mut self, workspace: Ulid) {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).remove(&workspace);
        self.cgroups.remove(workspace);
        self.meter.untrack(workspace);
        self.store.forget(&stored_name(workspace));
    }

    fn wire(&mut self, pipeline: &Pipeline, labels: &[&str]) -> Result<(), Error> {
        self.wire_all(pipeline, labels).map_err(|error| {
            self.flows.forget(pipeline.what.id);
            spawn_error(SpawnKind::Other, &pipeline.what.label, format!("make its pipes: {error}"))
        })
    }

    fn start_command(&mut self, workspace: &Workspace, command: &Command) {
        let id = command.what.id;
        let program = command.what.command.exec.clone();
        let Some((keeper, launches)) = self.kept(workspace.id) else { return };
        let (stdio, held) = match self.stdio(command) {
            Ok(stdio) => stdio,
            Err(error) => {
                let error = spawn_error(SpawnKind::Other, &program, format!("make its descriptors: {error}"));
                return self.send(Input::StartFailed { command: id, error });
            }
        };
        let number = numbers::launch(id, command.relaunches);
        launches.lock().unwrap_or_else(PoisonError::into_inner).insert(number, id);
        if workspace.spec.explain {
            self.explanations.begin(id);
        }
        let mut spec = CommandSpec { held, ..command_spec(workspace, command) };
        spec.rlimits = rlimits(&command.what.soma, self.cgroups.controllers());
        let attachable = command.what.attachable && command.what.terminal.is_some();
        spec.hold_terminal = attachable.then_some(numbers::TAG_TERMINAL);
        let (logs, attachments) = (self.logs.clone(), self.attachments.clone());
        let (inputs, terminals) = (self.inputs.clone(), Arc::clone(&self.terminals));
        let (cgroups, workspace, soma) = (self.cgroups.clone(), workspace.id, command.what.soma.clone());
        let foreign = command.what.foreign.clone().map(|foreign| {
            (self.foreigners.clone(), foreign, command.what.label.clone(), command.what.command.clone())
        });
        tokio::spawn(async move {
            if let Some((foreigners, foreign, label, command)) = foreign
                && let Err(error) = foreigners.stand_in(&foreign, &label, &command, &mut spec).await
            {
                launches.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                let _ = inputs.send(Input::StartFailed { command: id, error });
                return;
            }
            match make_leaf(&cgroups, workspace, id, soma).await {
                Ok(cgroup) => spec.cgroup = cgroup,
                Err(reason) => {
                    launches.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                    let error = spawn_error(SpawnKind::Other, &program, reason);
                    let _ = inputs.send(Input::StartFailed { command: id, error });
                    return;
                }
            }
            let spawned = keeper.spawn(number, &spec, stdio).await;
            drop(spec);
            let _ = inputs.send(match spawned {
                Ok(spawned) => {
                    if let Some(terminal) = spawned.terminal {
                        if attachable {
                            if let Err(error) = attachments.keep_terminal(id, terminal, &logs) {
                                tracing::error!("keep the terminal of command {id}: {error}; nobody can attach to it");
                            }
                        } else {
                            terminals.lock().unwrap_or_else(PoisonError::into_inner).insert(id, terminal);
                        }
                    }
                    Input::Started { command: id, pid: spawned.pid }
                }
                Err(error) => {
                    launches.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                    cgroups.ended(workspace, id, 0);
                    Input::StartFailed { command: id, error: explain(&program, &error) }
                }
            });
        });
    }

    fn signal(&mut self, workspace: Ulid, command: Ulid, signal: i32) {
        // also what has left the command's process group
        if signal == KILL {
            self.cgroups.kill(workspace, command);
        }
        let Some((keeper, launches)) = self.kept(workspace) else { return };
        let launches = launches.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(number) = launches.iter().find(|(_, id)| **id == command).map(|(number, _)| *number) else { return };
        drop(launches);
        tokio::spawn(async move {
            if let Err(error) = keeper.signal(number, signal).await {
                // it ended in the meantime, which its exit will say
                tracing::debug!("signal {signal} to command {command}: {error}");
            }
        });
    }

    fn look(&mut self, workspace: &Workspace, since: Usec) {
        self.look_at(workspace, since);
    }

    fn sleep(&mut self, workspace: Ulid, asleep: bool) {
        self.settle(workspace, asleep);
    }

    fn sweep(&mut self, workspace: Ulid) {
        self.cgroups.kill_all(workspace);
    }

    fn drop_descriptors(&mut self, command: Ulid) {
        self.nodes.remove(&command);
        if let Some(handed) = self.handed.get_mut(&command) {
            handed.stdio = None;
        }
    }

    fn take_terminal(&mut self, command: Ulid) -> Option<OwnedFd> {
        self.terminals.lock().unwrap_or_else(PoisonError::into_inner).remove(&command)
    }

    fn complete(&mut self, id: Ulid, status: i32, reason: &'static str, message: String) {
        self.kept_stdio.remove(&id);
        self.attachments.forget(id);
        self.logs.finish(id);
        if let Some(pipe) = self.handed.remove(&id).and_then(|h| h.completion) {
            completion::write(pipe, id, status, reason, message);
        }
    }

    fn pipeline_ended(&mut self, pipeline: &Pipeline, since: Usec) {
        let id = pipeline.what.id;
        self.let_go(pipeline.workspace, numbers::number(id));
        let linger = if pipeline.what.tap { FLOW_LINGER } else { Duration::ZERO };
        let rest = linger.saturating_sub(Duration::from_micros(since));
        let flows = self.flows.clone();
        tokio::spawn(async move {
            tokio::time::sleep(rest).await;
            flows.forget(id);
        });
    }

    fn close_flows(&mut self, pipeline: Ulid) {
        self.flows.close(pipeline);
    }

    fn record(&mut self, records: &[Record]) -> bool {
        self.journal.append(records)
    }

    fn rewrite(&mut self, records: &[Record]) {
        self.journal.rewrite(records);
    }

    fn exit_recorded(&mut self, id: Ulid, command: Option<&Command>) {
        // one that nobody remembers any more has no workspace that could be asked either
        let Some(command) = command else { return };
        let Some((keeper, _)) = self.kept(command.workspace) else { return };
        let again = command.what.restart.is_some();
        let ended = command.phase == CommandPhase::Ended;
        let number = numbers::launch(id, command.relaunches);
        let owner = numbers::owner(command, again);
        let drained = self.logs.drained(id);
        tokio::spawn(async move {
            // what the caller waits for must come to its end, though a child of the command may write on
            if ended && owner != number {
                let _ = keeper.acknowledge(owner).await;
            }
            if let Some(mut open) = drained {
                if ended {
                    let _ = keeper.release(owner, numbers::TAG_DONE).await;
                }
                // an error is a log that was forgotten
                let _ = open.wait_for(|open| *open == 0).await;
            }
            // a keeper that has ended remembers nothing
            let _ = keeper.acknowledge(number).await;
        });
    }

    fn forget_flows(&mut self, pipeline: Ulid) {
        self.flows.forget(pipeline);
    }

    fn forget_log(&mut self, command: Ulid) {
        self.explanations.forget(command);
        self.attachments.forget(command);
        self.logs.forget(command);
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

/// The group that a workspace's first process starts in, and how far resources can be limited.
pub(super) async fn make_group(
    cgroups: &Cgroups,
    workspace: Ulid,
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
    let made = tokio::task::spawn_blocking(move || it.make(workspace, &asked))
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

/// The group that a command starts in.
async fn make_leaf(
    cgroups: &Cgroups,
    workspace: Ulid,
    command: Ulid,
    soma: Soma,
) -> Result<Option<Arc<OwnedFd>>, String> {
    let it = cgroups.clone();
    let made = tokio::task::spawn_blocking(move || it.command(workspace, command, &soma)).await;
    match made.map_err(|e| e.to_string()).and_then(|made| made.map_err(|e| e.to_string())) {
        Ok(leaf) => Ok(leaf),
        Err(error) => {
            cgroups.ended(workspace, command, 0);
            Err(error)
        }
    }
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

fn clone_all<F: AsFd>(all: &[Option<F>; 3]) -> io::Result<[Option<OwnedFd>; 3]> {
    let clone = |fd: &Option<F>| fd.as_ref().map(|fd| fd.as_fd().try_clone_to_owned()).transpose();
    Ok([clone(&all[0])?, clone(&all[1])?, clone(&all[2])?])
}

fn spawn_error(kind: SpawnKind, program: &str, reason: String) -> Error {
    Error::Spawn { kind, program: program.to_owned(), reason }
}

/// What a failed start means to the caller.
fn explain(program: &str, error: &SandboxError) -> Error {
    let not_found = io::ErrorKind::NotFound;
    match (error.step(), error.errno().map(io::Error::from_raw_os_error)) {
        (Some(Step::Exec), Some(source)) if source.kind() == not_found => spawn_error(
            SpawnKind::NotFound,
            program,
            "there is no such program in the workspace; it sees the system's /usr and the paths that its spec names"
                .to_owned(),
        ),
        (Some(Step::Process | Step::Cgroup), Some(source)) if source.kind() == io::ErrorKind::WouldBlock => spawn_error(
            SpawnKind::Other,
            program,
            "the workspace has as many processes as it may have; end one, or allow more in soma.cgroup.pids_max of its \
             spec"
                .to_owned(),
        ),
        (Some(Step::Exec), Some(source)) => spawn_error(SpawnKind::NotExecutable, program, source.to_string()),
        _ => spawn_error(SpawnKind::Other, program, error.to_string()),
    }
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

/// What tells programs the way out, in the variables that they look at; some only at those in capitals. Names are left
/// to the proxy where a program can (`socks5h`).
fn way_out() -> impl Iterator<Item = (String, String)> {
    let at = format!("127.0.0.1:{}", shipote_sandbox::DOOR_PROXY);
    let (http, any) = (format!("http://{at}"), format!("socks5h://{at}"));
    let here = "localhost,127.0.0.1,::1".to_owned();
    let pairs = [("http_proxy", http.clone()), ("https_proxy", http), ("all_proxy", any), ("no_proxy", here)];
    pairs.into_iter().flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_uppercase(), value)])
}

fn command_spec(workspace: &Workspace, command: &Command) -> CommandSpec {
    let what = &command.what;
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut env = vec![
        pair("PATH", PATH),
        pair("HOME", "/work"),
        pair("USER", "work"),
        pair("LOGNAME", "work"),
        pair("LANG", "C.UTF-8"),
        pair("SHIPOTE_WORKSPACE", &workspace.name),
        pair("SHIPOTE_COMMAND", &what.id.to_string()),
    ];
    if what.terminal.is_some() {
        env.push(pair("TERM", "xterm-256color"));
    }
    if workspace.spec.permissions.networking == Networking::Outbound {
        env.extend(way_out());
    }
    let own = workspace.spec.env.iter().map(|(k, v)| (k.clone(), v.clone()));
    for (key, value) in own.chain(what.command.envp.iter().cloned()) {
        env.retain(|(k, _)| *k != key);
        env.push((key, value));
    }
    CommandSpec {
        exec: what.command.exec.clone(),
        argv: what.command.argv.clone(),
        env,
        cwd: what.cwd.clone().unwrap_or_default().into(),
        cpu_affinity: what.soma.cpu_affinity.clone().unwrap_or_default(),
        terminal: what.terminal.map(|(cols, rows)| Terminal { cols, rows }),
        ..CommandSpec::default()
    }
}
