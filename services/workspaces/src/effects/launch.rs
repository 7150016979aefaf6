//! Launching commands: their descriptors, their leaf, their environment, and what a failed start means.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, PoisonError};

use shipote_bus::spec::{Networking, Soma};
use shipote_sandbox::{CommandSpec, SandboxError, Stdio, Step, Terminal};
use ulid::Ulid;

use super::cgroups::{Cgroups, rlimits};
use super::live::{Live, clone_all};
use super::log::Stream;
use super::wiring::NodeDescriptors;
use super::{numbers, slots};
use crate::error::{Error, SpawnKind};
use crate::state::{Command, Input, Workspace};

/// Where programs are looked up inside a workspace.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin";

/// Descriptors of a command beside the standard three, by name.
type Further = Vec<(String, Arc<OwnedFd>)>;

/// Descriptors that a keeper is to hold, by owner and tag.
type ToHold = Vec<(u64, u8, Arc<OwnedFd>)>;

impl Live {
    /// Standard descriptors of a command: an edge's, the caller's, or its log's; and what its keeper is to hold.
    fn stdio(&mut self, command: &Command) -> io::Result<(Stdio, Further, ToHold)> {
        let id = command.what.id;
        let again = command.what.restart.is_some();
        let owner = numbers::owner(command, again);
        let joined = self.nodes.remove(&id);
        if joined.is_some() {
            // anew, with its whole pipeline: the ends of the launch before lead nowhere
            self.kept_stdio.remove(&id);
            self.kept_further.remove(&id);
        }
        let mut own = joined.unwrap_or_default();
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
        let further = self.further(command, &mut own, owner, &mut held)?;
        Ok((Stdio { stdin: own.stdin, stdout: own.stdout, stderr: own.stderr }, further, held))
    }

    /// Inputs and outputs beside the standard three, in the order in which they are declared. An input that no edge leads
    /// to is empty, an output that no edge takes goes where standard error goes.
    fn further(
        &mut self,
        command: &Command,
        own: &mut NodeDescriptors,
        owner: u64,
        held: &mut ToHold,
    ) -> io::Result<Further> {
        let (id, flows) = (command.what.id, &command.what.further);
        let kept = self.kept_further.remove(&id).unwrap_or_default();
        let (mut all, mut keep) = (Further::new(), Vec::new());
        for (at, name) in flows.names().enumerate() {
            let wired = own.further.iter().position(|(wired, _)| wired == name);
            let joined = match wired {
                Some(wired) => Some(Arc::new(own.further.swap_remove(wired).1)),
                None => kept.get(at).cloned().flatten(),
            };
            keep.push(joined.clone());
            let end = match joined {
                Some(joined) => joined,
                None if at < flows.inputs.len() => Arc::new(File::open("/dev/null")?.into()),
                None => Arc::new(match &own.stderr {
                    Some(stderr) => stderr.try_clone()?,
                    None => File::options().write(true).open("/dev/null")?.into(),
                }),
            };
            all.push((name.to_owned(), end));
        }
        if command.what.restart.is_some() && keep.iter().any(Option::is_some) {
            let joined = (numbers::TAG_FURTHER..).zip(&keep).filter_map(|(tag, end)| Some((owner, tag, end.clone()?)));
            held.extend(joined);
            self.kept_further.insert(id, keep);
        }
        Ok(all)
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

    pub(super) fn launch(&mut self, workspace: &Workspace, command: &Command) {
        let id = command.what.id;
        let program = command.what.command.exec.clone();
        let Some((keeper, launches)) = self.kept(workspace.id) else { return };
        let (stdio, further, held) = match self.stdio(command) {
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
        self.slots.give(workspace.id, &workspace.spec.flow_dirs, &mut spec);
        further.into_iter().for_each(|(name, end)| slots::give(&mut spec, &name, end));
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

pub(super) fn spawn_error(kind: SpawnKind, program: &str, reason: String) -> Error {
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
