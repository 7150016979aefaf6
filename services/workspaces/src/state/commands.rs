//! Commands: start, signals, deadlines, the end and what is remembered of it.

use std::time::Duration;

use shipote_bus::spec::WorkspaceSpec;
use ulid::Ulid;

use super::{
    COMMANDS_MAX, Command, CommandPhase, Effect, Ending, HISTORY_MAX, LimitNote, NewCommand, NewPipeline, Outcome,
    RequestId, State, Target, Timer, Usec, WorkspacePhase,
};
use crate::error::Error;

/// Between SIGTERM and SIGKILL where the caller names no grace.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Exit status of a command that overran its time, as of timeout(1).
const STATUS_TIMEOUT: i32 = 124;
/// Exit status of a command that never ran, as of env(1): not found, not executable, else.
const STATUS_NOT_FOUND: i32 = 127;
const STATUS_NOT_EXECUTABLE: i32 = 126;
const STATUS_FAILED: i32 = 125;
/// 128 + SIGKILL: what happened to commands whose workspace is gone.
const STATUS_LOST: i32 = 137;

impl State {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run(
        &mut self,
        request: RequestId,
        target: Target,
        strict: bool,
        uid: u32,
        commands: Vec<NewCommand>,
        pipeline: Option<NewPipeline>,
        now: Usec,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        if self.living + commands.len() > COMMANDS_MAX {
            return Err(Error::LimitReached(format!(
                "run: {COMMANDS_MAX} commands are living; wait for one to end or end one"
            )));
        }
        let id = match target {
            Target::Existing(name) => {
                let workspace = self.find_workspace(&name)?;
                if workspace.phase == WorkspacePhase::Stopping {
                    return Err(Error::WrongState(format!("run in workspace {name:?}: it is being stopped")));
                }
                if strict && let Some(weak) = workspace.mechanisms.iter().find(|m| !m.is_enforced()) {
                    let reason = format!("{} is {}: {}", weak.name, weak.state, weak.reason);
                    return Err(Error::NotEnforced { name, reason });
                }
                check_within(&workspace.spec, &commands)?;
                workspace.id
            }
            Target::Ephemeral { id, spec } => {
                check_within(&spec, &commands)?;
                self.create(id, spec.label.clone(), *spec, strict, uid, true, now, out)?;
                id
            }
        };
        let workspace = &self.workspaces[&id];
        let (name, ready) = (workspace.name.clone(), workspace.phase == WorkspacePhase::Running);
        let pipeline_id = pipeline.as_ref().map(|p| p.id);
        let nodes: Vec<Ulid> = commands.iter().map(|c| c.id).collect();
        for what in commands {
            let command = Command {
                workspace: id,
                workspace_name: name.clone(),
                pipeline: pipeline_id,
                uid,
                phase: CommandPhase::Starting,
                pid: 0,
                started: now,
                ended: None,
                exit_status: None,
                reason: "",
                message: String::new(),
                ending: None,
                reply: if pipeline_id.is_none() { Some(request) } else { None },
                what,
            };
            self.living += 1;
            self.commands.insert(command.what.id, command);
        }
        match pipeline {
            Some(what) => self.add_pipeline(request, what, id, name, nodes, uid, now, ready, out),
            None if ready => out.extend(nodes.into_iter().map(|command| Effect::StartCommand { command })),
            None => {}
        }
        Ok(())
    }

    /// The keeper is ready: start what waited for it.
    pub(super) fn start_waiting(&mut self, workspace: Ulid, out: &mut Vec<Effect>) {
        let pipelines: Vec<Ulid> = self
            .pipelines
            .values()
            .filter(|p| p.workspace == workspace && p.reply.is_some())
            .map(|p| p.what.id)
            .collect();
        out.extend(pipelines.into_iter().map(|pipeline| Effect::Wire { pipeline }));
        out.extend(
            self.living_in(workspace)
                .filter(|c| c.phase == CommandPhase::Starting)
                .map(|c| Effect::StartCommand { command: c.what.id }),
        );
        self.end_if_done(workspace, out);
    }

    /// The keeper never came: what waited for it fails with its error.
    pub(super) fn fail_waiting(&mut self, workspace: Ulid, error: &Error, now: Usec, out: &mut Vec<Effect>) {
        let waiting: Vec<Ulid> = self.living_in(workspace).map(|c| c.what.id).collect();
        for command in waiting {
            self.start_failed(command, error.clone(), now, out);
        }
    }

    pub(super) fn started(&mut self, id: Ulid, pid: i32, out: &mut Vec<Effect>) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        if command.phase != CommandPhase::Starting {
            return;
        }
        command.phase = CommandPhase::Running;
        command.pid = pid;
        if let Some(request) = command.reply.take() {
            out.push(Effect::Reply { request, result: Ok(Outcome::Started(id)) });
        }
        if let Some(delay) = command.what.timeout {
            out.push(Effect::After { delay, input: Timer::Deadline(id) });
        }
        let ending = command.ending;
        let pipeline = command.pipeline;
        out.push(Effect::CommandChanged { command: id });
        // it was told to end before it had begun
        if ending.is_some() {
            self.send(id, libc_signal::TERM, out);
            out.push(Effect::After { delay: GRACE, input: Timer::Escalate(id) });
        }
        if let Some(pipeline) = pipeline {
            self.pipeline_progress(pipeline, out);
        }
    }

    pub(super) fn start_failed(&mut self, id: Ulid, error: Error, now: Usec, out: &mut Vec<Effect>) {
        use crate::error::SpawnKind;
        let Some(command) = self.commands.get_mut(&id) else { return };
        if command.phase != CommandPhase::Starting {
            return;
        }
        let status = match &error {
            Error::Spawn { kind: SpawnKind::NotFound, .. } => STATUS_NOT_FOUND,
            Error::Spawn { kind: SpawnKind::NotExecutable, .. } => STATUS_NOT_EXECUTABLE,
            _ => STATUS_FAILED,
        };
        command.message = error.to_string();
        let reply = command.reply.take();
        let pipeline = command.pipeline;
        out.push(Effect::DropDescriptors { command: id });
        if let Some(pipeline) = pipeline {
            self.pipeline_failed(pipeline, &error, out);
        }
        self.finish(id, status, "spawn-failed", now, out);
        if let Some(request) = reply {
            out.push(Effect::Reply { request, result: Err(error) });
        }
    }

    pub(super) fn exited(
        &mut self,
        id: Ulid,
        status: i32,
        signalled: bool,
        limits: LimitNote,
        now: Usec,
        out: &mut Vec<Effect>,
    ) {
        let Some(command) = self.commands.get_mut(&id).filter(|c| c.phase != CommandPhase::Ended) else { return };
        if command.message.is_empty() {
            command.message = limits.message;
        }
        let (status, reason) = match command.ending {
            Some(Ending::Timeout) => (STATUS_TIMEOUT, "timeout"),
            Some(Ending::Stopped) => (status, "stopped"),
            Some(Ending::Quota) => (status, "quota"),
            None if !limits.reason.is_empty() => (status, limits.reason),
            None if signalled => (status, "signalled"),
            None => (status, "exited"),
        };
        // the exit may overtake the answer to the start
        if command.phase == CommandPhase::Starting {
            self.started(id, 0, out);
        }
        self.finish(id, status, reason, now, out);
    }

    /// The workspace is gone and took the command with it.
    pub(super) fn lose(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.commands.get(&id) else { return };
        let reason = match command.ending {
            Some(Ending::Quota) => "quota",
            Some(_) => "stopped",
            None => "lost",
        };
        if command.phase == CommandPhase::Starting {
            let name = command.workspace_name.clone();
            self.start_failed(id, Error::WrongState(format!("run in workspace {name:?}: it was stopped")), now, out);
        } else {
            self.finish(id, STATUS_LOST, reason, now, out);
        }
    }

    pub(super) fn signal(&mut self, name: &str, signal: i32, out: &mut Vec<Effect>) -> Result<Outcome, Error> {
        if !(1..=64).contains(&signal) {
            return Err(Error::InvalidArgument(format!("signal {signal}: signals are 1 to 64, see signal(7)")));
        }
        let command = self.find_command(name)?;
        let (id, phase) = (command.what.id, command.phase);
        match phase {
            CommandPhase::Running => {}
            CommandPhase::Ended => return Err(Error::WrongState(format!("signal command {name}: it has ended"))),
            CommandPhase::Starting => {
                return Err(Error::WrongState(format!("signal command {name}: it has not started yet; ask again")));
            }
        }
        self.send(id, signal, out);
        Ok(Outcome::Done)
    }

    /// SIGTERM now, SIGKILL after the grace.
    pub(super) fn end_command(&mut self, id: Ulid, ending: Ending, grace: Duration, out: &mut Vec<Effect>) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        if command.phase == CommandPhase::Ended {
            return;
        }
        command.ending.get_or_insert(ending);
        if command.phase == CommandPhase::Running {
            let signal = if grace.is_zero() { libc_signal::KILL } else { libc_signal::TERM };
            self.send(id, signal, out);
            if !grace.is_zero() {
                out.push(Effect::After { delay: grace, input: Timer::Escalate(id) });
            }
        }
    }

    /// Ends the living commands of a workspace at once; the workspace stays.
    pub(super) fn quota_reached(&mut self, workspace: Ulid, message: &str, out: &mut Vec<Effect>) {
        let living: Vec<Ulid> = self.living_in(workspace).map(|c| c.what.id).collect();
        for id in living {
            if let Some(command) = self.commands.get_mut(&id)
                && command.ending.is_none()
            {
                message.clone_into(&mut command.message);
            }
            self.end_command(id, Ending::Quota, Duration::ZERO, out);
        }
        out.push(Effect::Sweep { workspace });
    }

    pub(super) fn escalate(&mut self, id: Ulid, out: &mut Vec<Effect>) {
        if self.commands.get(&id).is_some_and(|c| c.phase == CommandPhase::Running) {
            self.send(id, libc_signal::KILL, out);
        }
    }

    fn send(&self, id: Ulid, signal: i32, out: &mut Vec<Effect>) {
        if let Some(command) = self.commands.get(&id) {
            out.push(Effect::Signal { workspace: command.workspace, command: id, signal });
        }
    }

    fn finish(&mut self, id: Ulid, status: i32, reason: &'static str, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.commands.get_mut(&id) else { return };
        if command.phase == CommandPhase::Ended {
            return;
        }
        command.phase = CommandPhase::Ended;
        command.exit_status = Some(status);
        command.reason = reason;
        command.ended = Some(now);
        let (workspace, pipeline, message) = (command.workspace, command.pipeline, command.message.clone());
        self.living -= 1;
        out.push(Effect::Complete { id, status, reason, message });
        out.push(Effect::CommandChanged { command: id });
        self.history.push_back(id);
        if let Some(pipeline) = pipeline {
            self.pipeline_progress(pipeline, out);
        }
        self.end_if_done(workspace, out);
        self.trim_history(out);
    }

    fn trim_history(&mut self, out: &mut Vec<Effect>) {
        while self.history.len() > HISTORY_MAX {
            // a living pipeline still needs to know how its nodes ended
            let settled = |id: &Ulid| {
                let pipeline = self.commands.get(id).and_then(|c| c.pipeline).and_then(|p| self.pipelines.get(&p));
                pipeline.is_none_or(|p| p.exit_status.is_some())
            };
            let Some(id) = self.history.iter().position(settled).and_then(|at| self.history.remove(at)) else { return };
            if let Some(command) = self.commands.remove(&id) {
                if let Some(pipeline) = command.pipeline {
                    self.pipeline_forget(pipeline, out);
                }
                out.push(Effect::CommandForgotten { command: id });
            }
        }
    }
}

/// A command may be given less than its workspace, never more.
fn check_within(workspace: &WorkspaceSpec, commands: &[NewCommand]) -> Result<(), Error> {
    for command in commands {
        let within = command.soma.check_within(&workspace.soma, "soma");
        within.map_err(|error| Error::InvalidSpec(format!("run {:?}: {error}", command.label)))?;
    }
    Ok(())
}

/// Signal numbers that the kernel gives every architecture we run on.
mod libc_signal {
    pub(super) const KILL: i32 = 9;
    pub(super) const TERM: i32 = 15;
}
