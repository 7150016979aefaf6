//! The effects as they really are: sandbox, pipes, logs.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
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
use tokio::sync::{mpsc, watch};
use ulid::Ulid;

use super::breach;
use super::cgroups::{Cgroups, describe, rlimits};
use super::flows::Flows;
use super::wiring::{NodeDescriptors, wire};
use super::{Effects, Explanations, Handed, LogStore, completion};
use crate::actor::{Change, FlowSource};
use crate::error::{Error, SpawnKind};
use crate::figures::{Meter, Subject};
use crate::state::{Command, Input, Pipeline, Workspace};

/// Size of the private scratch where the spec names none.
const SCRATCH: u64 = 256 * 1024 * 1024;
/// How long the flows of an ended pipeline still serve their replay.
const FLOW_LINGER: Duration = Duration::from_secs(300);
/// SIGKILL, the same on every architecture.
const KILL: i32 = 9;
/// Where programs are looked up inside a workspace.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// A living keeper and the numbers under which it knows our commands.
#[derive(Debug)]
struct Kept {
    keeper: Arc<Keeper>,
    numbers: Arc<Mutex<Numbers>>,
}

/// The keeper counts; we have ULIDs.
#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    of: HashMap<Ulid, u64>,
    by: HashMap<u64, Ulid>,
}

/// What a task tells `Live` of a keeper that came up.
type Keepers = Arc<Mutex<HashMap<Ulid, Kept>>>;
type Terminals = Arc<Mutex<HashMap<Ulid, OwnedFd>>>;

/// By what workspaces are made.
pub(crate) struct Means {
    pub(crate) spawner: Spawner,
    pub(crate) cgroups: Cgroups,
    pub(crate) meter: Meter,
    /// Hidden in every workspace that sees files of the host.
    pub(crate) hidden: Arc<[PathBuf]>,
}

/// The effects, live.
pub(crate) struct Live {
    spawner: Arc<Spawner>,
    /// Hidden in every workspace that sees files of the host.
    protected: Arc<[PathBuf]>,
    cgroups: Cgroups,
    meter: Meter,
    logs: LogStore,
    flows: Flows,
    inputs: mpsc::UnboundedSender<Input>,
    keepers: Keepers,
    handed: HashMap<Ulid, Handed>,
    nodes: HashMap<Ulid, NodeDescriptors>,
    terminals: Terminals,
    explanations: Explanations,
}

impl Live {
    pub(crate) fn new(
        means: Means,
        logs: LogStore,
        runtime: &std::path::Path,
        inputs: mpsc::UnboundedSender<Input>,
        changes: mpsc::UnboundedSender<Change>,
    ) -> io::Result<Self> {
        Ok(Live {
            spawner: Arc::new(means.spawner),
            protected: means.hidden,
            cgroups: means.cgroups,
            meter: means.meter,
            logs,
            flows: Flows::open(runtime, changes)?,
            inputs,
            keepers: Keepers::default(),
            handed: HashMap::new(),
            nodes: HashMap::new(),
            terminals: Terminals::default(),
            explanations: Explanations::default(),
        })
    }

    /// Changes whenever something becomes known of a flow.
    pub(crate) fn flow_news(&self) -> watch::Receiver<()> {
        self.flows.news()
    }

    /// What commands were refused.
    pub(crate) fn explanations(&self) -> Explanations {
        self.explanations.clone()
    }

    fn kept(&self, workspace: Ulid) -> Option<(Arc<Keeper>, Arc<Mutex<Numbers>>)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(&workspace).map(|k| (Arc::clone(&k.keeper), Arc::clone(&k.numbers)))
    }

    /// Standard descriptors of a command: an edge's, the caller's, or its log's.
    fn stdio(&mut self, command: &Command) -> io::Result<Stdio> {
        let id = command.what.id;
        let mut own = self.nodes.remove(&id).unwrap_or_default();
        if let Some([stdin, stdout, stderr]) = self.handed.get_mut(&id).and_then(|h| h.stdio.take()) {
            own.stdin.get_or_insert(stdin);
            own.stdout.get_or_insert(stdout);
            own.stderr.get_or_insert(stderr);
        }
        let missing: Vec<u8> = [(1, own.stdout.is_none()), (2, own.stderr.is_none())]
            .into_iter()
            .filter_map(|(stream, missing)| missing.then_some(stream))
            .collect();
        if !missing.is_empty() && command.what.terminal.is_none() {
            let ends = self.logs.capture(id, &missing)?;
            for (stream, end) in missing.into_iter().zip(ends) {
                *(if stream == 1 { &mut own.stdout } else { &mut own.stderr }) = Some(end);
            }
        }
        Ok(Stdio { stdin: own.stdin, stdout: own.stdout, stderr: own.stderr })
    }

    fn wire_all(&mut self, pipeline: &Pipeline, labels: &[&str]) -> io::Result<()> {
        let what = &pipeline.what;
        let mut wiring = wire(pipeline.nodes.len(), &what.edges, what.tap)?;
        if let Some([stdin, stdout, stderr]) = self.handed.get_mut(&what.id).and_then(|h| h.stdio.take()) {
            // one reader only: two nodes reading one input would each get some of it
            if let Some(first) = wiring.nodes.iter_mut().find(|n| n.stdin.is_none()) {
                first.stdin = Some(stdin);
            }
            for node in &mut wiring.nodes {
                if node.stdout.is_none() {
                    node.stdout = Some(stdout.try_clone()?);
                }
                if node.stderr.is_none() {
                    node.stderr = Some(stderr.try_clone()?);
                }
            }
        }
        self.flows.start(pipeline, labels, wiring.junctions)?;
        self.nodes.extend(pipeline.nodes.iter().copied().zip(wiring.nodes));
        Ok(())
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
}

impl Effects for Live {
    fn hand_over(&mut self, id: Ulid, handed: Handed) {
        self.handed.insert(id, handed);
    }

    fn take_back(&mut self, id: Ulid) {
        self.handed.remove(&id);
    }

    fn start_keeper(&mut self, workspace: &Workspace) {
        let id = workspace.id;
        let name = workspace.name.clone();
        let (quota, ephemeral) = (workspace.spec.quota_enforce, workspace.ephemeral);
        let soma = workspace.spec.soma.clone();
        let mut spec = sandbox_spec(&workspace.name, &workspace.spec, workspace.strict, &self.protected);
        spec.rlimits = rlimits(&soma, self.cgroups.controllers());
        let (spawner, keepers, inputs) = (Arc::clone(&self.spawner), Arc::clone(&self.keepers), self.inputs.clone());
        let (cgroups, meter) = (self.cgroups.clone(), self.meter.clone());
        let explanations = self.explanations.clone();
        tokio::spawn(async move {
            let cgroup = match make_group(&cgroups, id, &name, &soma, spec.strict).await {
                Ok((keeper, mechanism)) => {
                    spec.cgroup = keeper;
                    mechanism
                }
                Err(error) => {
                    let _ = inputs.send(Input::KeeperFailed { workspace: id, error });
                    return;
                }
            };
            let _ = inputs.send(match spawner.workspace(&spec).await {
                Ok((keeper, exits)) => {
                    let mut mechanisms = keeper.mechanisms().to_vec();
                    // the keeper knows that it has one, not what that can do
                    if let Some(known) = mechanisms.iter_mut().find(|m| m.name == cgroup.name) {
                        *known = cgroup;
                    }
                    let (name, soma) = (name.clone(), soma.clone());
                    let group = cgroups.of(id);
                    let subject = Subject {
                        name: name.clone(),
                        ephemeral,
                        keeper: keeper.pid(),
                        group: group.clone(),
                        soma: soma.clone(),
                        quota,
                    };
                    meter.track(id, subject);
                    if let Some(group) = group.filter(|_| breach::is_wanted(quota)) {
                        let watched = breach::Watched { workspace: id, name, soma, quota };
                        let task = tokio::spawn(breach::watch(group, watched, inputs.clone()));
                        cgroups.attend(id, task.abort_handle());
                    }
                    let numbers = Arc::<Mutex<Numbers>>::default();
                    let told = (cgroups, explanations);
                    tokio::spawn(watch_exits(id, exits, Arc::clone(&numbers), told, inputs.clone()));
                    let kept = Kept { keeper: Arc::new(keeper), numbers };
                    keepers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, kept);
                    Input::KeeperReady { workspace: id, mechanisms }
                }
                Err(SandboxError::Strict(reason)) => {
                    Input::KeeperFailed { workspace: id, error: Error::NotEnforced { name, reason } }
                }
                Err(error) => {
                    Input::KeeperFailed { workspace: id, error: Error::Keeper { name, reason: error.to_string() } }
                }
            });
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
        let Some((keeper, numbers)) = self.kept(workspace.id) else { return };
        let stdio = match self.stdio(command) {
            Ok(stdio) => stdio,
            Err(error) => {
                let error = spawn_error(SpawnKind::Other, &program, format!("make its log: {error}"));
                return self.send(Input::StartFailed { command: id, error });
            }
        };
        let number = {
            let mut numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
            numbers.next += 1;
            let number = numbers.next;
            numbers.of.insert(id, number);
            numbers.by.insert(number, id);
            number
        };
        if workspace.spec.explain {
            self.explanations.begin(id);
        }
        let mut spec = command_spec(workspace, command);
        spec.rlimits = rlimits(&command.what.soma, self.cgroups.controllers());
        let (inputs, terminals) = (self.inputs.clone(), Arc::clone(&self.terminals));
        let (cgroups, workspace, soma) = (self.cgroups.clone(), workspace.id, command.what.soma.clone());
        tokio::spawn(async move {
            match make_leaf(&cgroups, workspace, id, soma).await {
                Ok(cgroup) => spec.cgroup = cgroup,
                Err(reason) => {
                    let error = spawn_error(SpawnKind::Other, &program, reason);
                    let _ = inputs.send(Input::StartFailed { command: id, error });
                    return;
                }
            }
            let _ = inputs.send(match keeper.spawn(number, &spec, stdio).await {
                Ok(spawned) => {
                    if let Some(terminal) = spawned.terminal {
                        terminals.lock().unwrap_or_else(PoisonError::into_inner).insert(id, terminal);
                    }
                    Input::Started { command: id, pid: spawned.pid }
                }
                Err(error) => {
                    let mut numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
                    numbers.of.remove(&id);
                    numbers.by.remove(&number);
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
        let Some((keeper, numbers)) = self.kept(workspace) else { return };
        let Some(number) = numbers.lock().unwrap_or_else(PoisonError::into_inner).of.get(&command).copied() else {
            return;
        };
        tokio::spawn(async move {
            if let Err(error) = keeper.signal(number, signal).await {
                // it ended in the meantime, which its exit will say
                tracing::debug!("signal {signal} to command {command}: {error}");
            }
        });
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
        if let Some(pipe) = self.handed.remove(&id).and_then(|h| h.completion) {
            completion::write(pipe, id, status, reason, message);
        }
    }

    fn pipeline_ended(&mut self, pipeline: Ulid) {
        let flows = self.flows.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FLOW_LINGER).await;
            flows.forget(pipeline);
        });
    }

    fn forget_flows(&mut self, pipeline: Ulid) {
        self.flows.forget(pipeline);
    }

    fn forget_log(&mut self, command: Ulid) {
        self.explanations.forget(command);
        self.logs.forget(command);
    }
}

async fn watch_exits(
    workspace: Ulid,
    mut exits: ExitStream,
    numbers: Arc<Mutex<Numbers>>,
    (cgroups, explanations): (Cgroups, Explanations),
    inputs: mpsc::UnboundedSender<Input>,
) {
    while let Some(event) = exits.next().await {
        let input = match event {
            Event::Exited { id, code, signal, .. } => {
                let mut numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(command) = numbers.by.remove(&id) else { continue };
                numbers.of.remove(&command);
                let status = signal.map_or(code.unwrap_or_default(), |signal| 128 + signal);
                let limits = cgroups.ended(workspace, command, status);
                Input::Exited { command, status, signalled: signal.is_some(), limits }
            }
            Event::Refused { id, refusal } => {
                let numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(command) = numbers.by.get(&id) {
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
async fn make_group(
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
            // outbound is refused by the spec's validation
            Networking::None | Networking::Outbound => Network::None,
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
