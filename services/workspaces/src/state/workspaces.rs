//! Workspaces: creation, keepers, the end.

use std::time::Duration;

use shipote_bus::spec::WorkspaceSpec;
use shipote_confinement::Mechanism;
use ulid::Ulid;

use super::commands::usec;
use super::{
    Effect, Ending, Key, Outcome, RequestId, Sleep, State, Timer, Usec, WORKSPACES_MAX, Workspace, WorkspacePhase,
};
use crate::error::Error;

impl State {
    /// The label, or where it is taken the label with the lowest free number. Labels have no `~`, so a numbered
    /// name never meets a label.
    pub(super) fn free_name(&self, label: &str) -> String {
        let numbered = (2..).map(|n: u32| format!("{label}~{n}"));
        let mut names = std::iter::once(label.to_owned()).chain(numbered);
        names.find(|name| !self.names.contains_key(name)).unwrap_or_else(|| label.to_owned())
    }

    /// Adds a workspace and has its keeper started.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn create(
        &mut self,
        id: Ulid,
        name: String,
        spec: WorkspaceSpec,
        strict: bool,
        uid: u32,
        ephemeral: bool,
        now: Usec,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        if self.names.contains_key(&name) {
            return Err(Error::NameTaken(name));
        }
        if self.workspaces.len() >= WORKSPACES_MAX {
            return Err(Error::LimitReached(format!(
                "create workspace {name:?}: {WORKSPACES_MAX} workspaces are living; stop one first"
            )));
        }
        self.check_share_of_workspaces(uid, &name)?;
        if let Some(ttl) = spec.ttl {
            out.push(Effect::After { delay: Duration::from_millis(ttl), input: Timer::Ttl(id) });
        }
        self.names.insert(name.clone(), id);
        let workspace = Workspace {
            id,
            name,
            spec,
            strict,
            uid,
            phase: WorkspacePhase::Starting,
            created: now,
            ephemeral,
            mechanisms: Vec::new(),
            kill_at: None,
            sleep: Sleep::default(),
            creators: Vec::new(),
            stoppers: Vec::new(),
        };
        self.touched.insert(Key::Workspace(id));
        self.workspaces.insert(id, workspace);
        out.push(Effect::StartKeeper { workspace: id });
        Ok(())
    }

    pub(super) fn await_creation(&mut self, id: Ulid, request: RequestId) {
        if let Some(workspace) = self.workspaces.get_mut(&id) {
            workspace.creators.push(request);
        }
    }

    pub(super) fn keeper_ready(&mut self, id: Ulid, mechanisms: Vec<Mechanism>, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspace_mut(id) else { return };
        workspace.mechanisms = mechanisms;
        if workspace.phase == WorkspacePhase::Stopping {
            // it was told to end before it stood
            out.push(Effect::EndKeeper { workspace: id, grace: Duration::ZERO });
            return;
        }
        workspace.phase = WorkspacePhase::Running;
        for request in std::mem::take(&mut workspace.creators) {
            out.push(Effect::Reply { request, result: Ok(Outcome::Created(id)) });
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        self.stir(id, now, out);
        self.arm(id, now, out);
        self.start_waiting(id, now, out);
    }

    pub(super) fn keeper_failed(&mut self, id: Ulid, error: &Error, now: Usec, out: &mut Vec<Effect>) {
        self.fail_waiting(id, error, now, out);
        self.remove_workspace(id, Some(error), 0, now, out);
    }

    pub(super) fn keeper_gone(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        // an asked-for end is reported by `keeper_ended`, which also knows how many were reaped
        if self.workspaces.get(&id).is_some_and(|w| w.phase != WorkspacePhase::Stopping) {
            let error = Error::Failed("the workspace's keeper died".to_owned());
            self.remove_workspace(id, Some(&error), 0, now, out);
        }
    }

    /// An earlier instance's workspace did not live on.
    pub(super) fn lost_workspace(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let error = Error::Failed("the workspace ended while the service was restarted".to_owned());
        self.remove_workspace(id, Some(&error), 0, now, out);
    }

    pub(super) fn keeper_ended(&mut self, id: Ulid, reaped: u32, now: Usec, out: &mut Vec<Effect>) {
        self.remove_workspace(id, None, reaped, now, out);
    }

    pub(super) fn stop_workspace(
        &mut self,
        request: RequestId,
        name: &str,
        grace: Duration,
        now: Usec,
        out: &mut Vec<Effect>,
    ) {
        match self.find_workspace(name).map(|w| w.id) {
            Ok(id) => {
                if let Some(workspace) = self.workspace_mut(id) {
                    workspace.stoppers.push(request);
                }
                self.begin_stop(id, grace, now, out);
            }
            Err(error) => out.push(Effect::Reply { request, result: Err(error) }),
        }
    }

    /// Ends a workspace. Asked again, the shortest grace holds.
    pub(super) fn begin_stop(&mut self, id: Ulid, grace: Duration, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspace_mut(id) else { return };
        let kill_at = now.saturating_add(usec(grace));
        if workspace.sleep.asleep {
            // frozen, it could not end
            workspace.sleep.asleep = false;
            out.push(Effect::Thaw { workspace: id });
        }
        let before = workspace.phase;
        let shorter = workspace.kill_at.is_none_or(|earlier| kill_at < earlier);
        if before == WorkspacePhase::Stopping && !(shorter && workspace.kill_at.is_some()) {
            return;
        }
        workspace.phase = WorkspacePhase::Stopping;
        // one that does not stand yet is ended at once when it does
        if before != WorkspacePhase::Starting {
            workspace.kill_at = Some(kill_at);
            out.push(Effect::EndKeeper { workspace: id, grace });
        }
        if before == WorkspacePhase::Stopping {
            return;
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        let living: Vec<Ulid> = self.living_in(id).map(|c| c.what.id).collect();
        for command in living {
            let Some(command) = self.command_mut(command) else { continue };
            command.ending.get_or_insert(Ending::Stopped);
            let id = command.what.id;
            // what waits for a launch has none any more
            self.finish_waiting(id, Some("stopped"), now, out);
        }
    }

    /// An ephemeral workspace ends with its last command.
    pub(super) fn end_if_done(&mut self, id: Ulid, now: Usec, out: &mut Vec<Effect>) {
        let ephemeral = self.workspaces.get(&id).is_some_and(|w| w.ephemeral && w.phase == WorkspacePhase::Running);
        if ephemeral && self.living_in(id).next().is_none() {
            self.begin_stop(id, Duration::ZERO, now, out);
        }
    }

    fn remove_workspace(&mut self, id: Ulid, error: Option<&Error>, reaped: u32, now: Usec, out: &mut Vec<Effect>) {
        let Some(workspace) = self.workspaces.remove(&id) else { return };
        self.touched.insert(Key::Workspace(id));
        self.names.remove(&workspace.name);
        let left: Vec<Ulid> = self.living_in(id).map(|c| c.what.id).collect();
        for command in left {
            self.lose(command, now, out);
        }
        let gone = || {
            error.cloned().unwrap_or_else(|| {
                Error::WrongState(format!("create workspace {:?}: it was stopped before it was ready", workspace.name))
            })
        };
        for &request in &workspace.sleep.wakers {
            let error = Error::WrongState(format!("wake workspace {:?}: it has ended", workspace.name));
            out.push(Effect::Reply { request, result: Err(error) });
        }
        for &request in &workspace.creators {
            out.push(Effect::Reply { request, result: Err(gone()) });
        }
        for &request in &workspace.stoppers {
            out.push(Effect::Reply { request, result: Ok(Outcome::Reaped(reaped)) });
        }
        out.push(Effect::WorkspaceGone { workspace: id });
    }
}
