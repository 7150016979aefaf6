//! Commands: start, signals, deadlines, the end and what is remembered of it.

use std::time::Duration;

use shipote_bus::spec::WorkspaceSpec;
use ulid::Ulid;

use super::restart::Restarts;
use super::{
    COMMANDS_MAX, Command, CommandPhase, Effect, Ending, HISTORY_MAX, Key, LastEnd, LimitNote, NewCommand, NewPipeline,
    Outcome, RequestId, State, Target, Timer, Usec, WorkspacePhase,
};
use crate::error::Error;

/// Between SIGTERM and SIGKILL where the caller names no grace.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// Exit status of a command that overran its time, as of timeout(1).
const STATUS_TIMEOUT: i32 = 124;
/// Exit status of a command that never ran, as of env(1): not found, not executable, else.
const STATUS_NOT_FOUND: i32 = 127;
const STATUS_NOT_EXECUTABLE: i32 = 126;
pub(super) const STATUS_FAILED: i32 = 125;
/// 128 + SIGKILL: what happened to commands whose workspace is gone.
const STATUS_LOST: i32 = 137;

/// A duration in the state's unit.
pub(super) fn usec(duration: Duration) -> Usec {
    Usec::try_from(duration.as_micros()).unwrap_or(Usec::MAX)
}

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
        if self.living() + commands.len() > COMMANDS_MAX {
            return Err(Error::LimitReached(format!(
                "run: {COMMANDS_MAX} commands are living; wait for one to end or end one"
            )));
        }
        self.check_share_of_commands(uid, commands.len())?;
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
        self.stir(id, now, out);
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
                launched: now,
                relaunches: 0,
                restarts: Restarts::default(),
                last: None,
                deadline: None,
                kill_at: None,
                ending: None,
                reply: if pipeline_id.is_none() { Some(request) } else { None },
                what,
            };
            self.living.insert((command.workspace, command.what.id));
            self.touched.insert(Key::Command(command.what.id));
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
    pub(super) fn start_waiting(&mut self, workspace: Ulid, now: Usec, out: &mut Vec<Effect>) {
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
        self.end_if_done(workspace, now, out);
    }

    /// The keeper never came: what waited for it fails with its error.
    pub(super) fn fail_waiting(&mut self, workspace: Ulid, error: &Error, now: Usec, out: &mut Vec<Effect>) {
        let waiting: Vec<Ulid> = self.living_in(workspace).map(|c| c.what.id).collect();
        for command in waiting {
            self.start_failed(command, error.clone(), now, out);
        }
    }

    pub(super) fn started(&mut self, id: Ulid, pid: i32, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.command_mut(id) else { return };
        if command.phase != CommandPhase::Starting {
            return;
        }
        command.phase = CommandPhase::Running;
        command.pid = pid;
        command.launched = now;
        if let Some(request) = command.reply.take() {
            out.push(Effect::Reply { request, result: Ok(Outcome::Started(id)) });
        }
        // a command that is restarted has its time for all launches together
        if let (Some(delay), None) = (command.what.timeout, command.deadline) {
            command.deadline = Some(now.saturating_add(usec(delay)));
            out.push(Effect::After { delay, input: Timer::Deadline(id) });
        }
        if command.ending.is_some() {
            command.kill_at = Some(now.saturating_add(usec(GRACE)));
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
            self.pipeline_progress(pipeline, now, out);
        }
    }

    pub(super) fn start_failed(&mut self, id: Ulid, error: Error, now: Usec, out: &mut Vec<Effect>) {
        use crate::error::SpawnKind;
        let Some(command) = self.command_mut(id) else { return };
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
            self.pipeline_failed(pipeline, &error, now, out);
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
        let living = self.commands.get(&id).is_some_and(|c| c.phase != CommandPhase::Ended);
        let Some(command) = self.command_mut(id).filter(|_| living) else { return };
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
            self.started(id, 0, now, out);
        }
        // one that has ended already is told again by a keeper that was taken over
        if self.commands.get(&id).is_none_or(|command| command.phase != CommandPhase::Running) {
            return;
        }
        if !self.wait(id, status, reason, now, out) {
            self.finish(id, status, reason, now, out);
        }
    }

    /// Has a command that ended wait for its next launch, if there may be one; false where it has ended for good.
    fn wait(&mut self, id: Ulid, status: i32, reason: &'static str, now: Usec, out: &mut Vec<Effect>) -> bool {
        let Some(command) = self.commands.get(&id).filter(|command| command.ending.is_none()) else { return false };
        let pipeline = command.pipeline;
        let with_pipeline = pipeline
            .and_then(|p| self.pipelines.get(&p))
            .is_some_and(|p| p.what.restart.is_some() && p.failure.is_none() && p.stoppers.is_empty());
        let running = self.workspaces.get(&command.workspace).is_some_and(|w| w.phase == WorkspacePhase::Running);
        let Some(command) = self.command_mut(id) else { return false };
        let alone = if status != 0 && running { command.what.restart } else { None };
        let pause = alone.and_then(|policy| command.restarts.after_failure(&policy, command.launched, now));
        if pause.is_none() && !(with_pipeline && running) {
            return false;
        }
        command.phase = CommandPhase::Waiting;
        command.last = Some(LastEnd { status, reason });
        out.push(Effect::CommandChanged { command: id });
        match (pause, pipeline) {
            (Some(delay), _) => out.push(Effect::After { delay, input: Timer::Relaunch(id) }),
            (None, Some(pipeline)) => self.pipeline_progress(pipeline, now, out),
            (None, None) => {}
        }
        true
    }

    /// Starts a command again.
    pub(super) fn relaunch(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.command_mut(id) else { return };
        if command.phase != CommandPhase::Waiting {
            return;
        }
        command.phase = CommandPhase::Starting;
        command.pid = 0;
        command.launched = now;
        command.relaunches = command.relaunches.saturating_add(1);
        command.restarts.due = None;
        command.message.clear();
        out.push(Effect::CommandChanged { command: id });
        out.push(Effect::StartCommand { command: id });
    }

    /// Ends a command that waits, with the end that it waits with.
    pub(super) fn finish_waiting(&mut self, id: Ulid, stopped: Option<&'static str>, now: Usec, out: &mut Vec<Effect>) {
        let waiting = self.commands.get(&id).filter(|command| command.phase == CommandPhase::Waiting);
        let Some(last) = waiting.and_then(|command| command.last) else { return };
        self.finish(id, last.status, stopped.unwrap_or(last.reason), now, out);
    }

    /// The workspace is gone and took the command with it.
    pub(super) fn lose(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.commands.get(&id) else { return };
        let reason = match command.ending {
            Some(Ending::Quota) => "quota",
            Some(_) => "stopped",
            None => "lost",
        };
        if command.phase == CommandPhase::Waiting {
            self.finish_waiting(id, Some(reason), now, out);
        } else if command.phase == CommandPhase::Starting {
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
            CommandPhase::Waiting => {
                return Err(Error::WrongState(format!("signal command {name}: it waits for its next launch; stop it")));
            }
            CommandPhase::Ended => return Err(Error::WrongState(format!("signal command {name}: it has ended"))),
            CommandPhase::Starting => {
                return Err(Error::WrongState(format!("signal command {name}: it has not started yet; ask again")));
            }
        }
        self.send(id, signal, out);
        Ok(Outcome::Done)
    }

    /// SIGTERM now, SIGKILL after the grace. Asked again, the shortest grace holds.
    pub(super) fn end_command(&mut self, id: Ulid, ending: Ending, grace: Duration, now: Usec, out: &mut Vec<Effect>) {
        let Some(command) = self.command_mut(id) else { return };
        if command.phase == CommandPhase::Ended {
            return;
        }
        command.ending.get_or_insert(ending);
        let workspace = command.workspace;
        self.stir(workspace, now, out);
        let Some(command) = self.command_mut(id) else { return };
        if command.phase == CommandPhase::Waiting {
            let reason = match command.ending {
                Some(Ending::Timeout) => "timeout",
                Some(Ending::Quota) => "quota",
                _ => "stopped",
            };
            return self.finish_waiting(id, Some(reason), now, out);
        }
        let kill_at = now.saturating_add(usec(grace));
        if command.phase == CommandPhase::Running {
            if command.kill_at.is_some_and(|earlier| earlier <= kill_at) {
                return;
            }
            command.kill_at = Some(kill_at);
        }
        if command.phase == CommandPhase::Running {
            let signal = if grace.is_zero() { libc_signal::KILL } else { libc_signal::TERM };
            self.send(id, signal, out);
            if !grace.is_zero() {
                out.push(Effect::After { delay: grace, input: Timer::Escalate(id) });
            }
        }
    }

    /// Ends the living commands of a workspace at once; the workspace stays.
    pub(super) fn quota_reached(&mut self, workspace: Ulid, message: &str, now: Usec, out: &mut Vec<Effect>) {
        let living: Vec<Ulid> = self.living_in(workspace).map(|c| c.what.id).collect();
        for id in living {
            if let Some(command) = self.command_mut(id)
                && command.ending.is_none()
            {
                message.clone_into(&mut command.message);
            }
            self.end_command(id, Ending::Quota, Duration::ZERO, now, out);
        }
        out.push(Effect::Sweep { workspace });
    }

    /// SIGKILL to a command that runs.
    pub(super) fn kill(&self, id: Ulid, out: &mut Vec<Effect>) {
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
        let Some(command) = self.command_mut(id) else { return };
        if command.phase == CommandPhase::Ended {
            return;
        }
        command.phase = CommandPhase::Ended;
        command.last = None;
        command.restarts.due = None;
        command.exit_status = Some(status);
        command.reason = reason;
        command.ended = Some(now);
        let (workspace, pipeline, message) = (command.workspace, command.pipeline, command.message.clone());
        self.living.remove(&(workspace, id));
        out.push(Effect::Complete { id, status, reason, message });
        out.push(Effect::CommandChanged { command: id });
        self.history.push_back(id);
        if let Some(pipeline) = pipeline {
            self.pipeline_progress(pipeline, now, out);
        }
        self.end_if_done(workspace, now, out);
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
                self.touched.insert(Key::Command(id));
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
