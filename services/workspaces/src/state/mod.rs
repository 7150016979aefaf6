//! The state machine of the workspaces service: pure, no I/O, no clock of its own.
//!
//! ```text
//! workspace   Starting --KeeperReady--> Running --StopWorkspace/ttl/last ephemeral command--> Stopping --KeeperEnded--> gone
//!                 \--KeeperFailed--> gone   \--KeeperGone--> gone
//!
//! command     Starting --Started--> Running --Exited--> Ended --(history full)--> forgotten
//!                 \--StartFailed--> Ended  |   \--workspace gone--> Ended (lost)
//!                 ^                        v failed, and restarted; or a node whose pipeline is
//!                 \------Relaunch------ Waiting --stopped, no more restarts--> Ended
//! ```
//!
//! A pipeline that is restarted waits until all its nodes wait, and launches them together.
//!
//! What a service that is killed must find again is in the [`Record`]s that each step leaves behind;
//! [`State::restore`] makes the state of them and `Input::Resume` compares it with what lives.
//!
//! Invariants, property-tested: every request is answered exactly once; a command that is
//! not ended has a living workspace; an ended command never changes; completion is said
//! exactly once for each command and pipeline; an ephemeral workspace does not outlive its
//! last command; the records of all steps make the same state again.

mod changes;
mod commands;
mod persist;
mod pipelines;
mod restart;
mod share;
mod sleep;
mod types;
mod workspaces;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use ulid::Ulid;

use crate::error::Error;
pub(crate) use changes::{EgressChange, PublishChange};
pub(crate) use persist::{Key, Record};
pub(crate) use share::manages;
pub(crate) use sleep::Sleep;
pub(crate) use types::*;

/// Ended commands that stay listed.
pub(crate) const HISTORY_MAX: usize = 1000;
/// Living workspaces at once.
pub(crate) const WORKSPACES_MAX: usize = 4096;
/// Living commands at once.
pub(crate) const COMMANDS_MAX: usize = 8192;

/// Everything the service knows.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) workspaces: BTreeMap<Ulid, Workspace>,
    pub(crate) commands: BTreeMap<Ulid, Command>,
    pub(crate) pipelines: BTreeMap<Ulid, Pipeline>,
    names: HashMap<String, Ulid>,
    /// Ended commands, oldest first.
    history: VecDeque<Ulid>,
    /// Commands that have not ended, by workspace: a look at one is not to go through all that have.
    living: BTreeSet<(Ulid, Ulid)>,
    /// What was changed since the records were taken.
    touched: BTreeSet<Key>,
}

impl State {
    /// Takes one input at the time `now` and says what is to be done, in this order.
    pub(crate) fn handle(&mut self, input: Input, now: Usec) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match input {
            Input::Create { request, id, spec, strict, uid, numbered } => {
                let name = if numbered { self.free_name(&spec.label) } else { spec.label.clone() };
                match self.create(id, name, *spec, strict, uid, false, now, out) {
                    Ok(()) => self.await_creation(id, request),
                    Err(error) => out.push(Effect::Reply { request, result: Err(error) }),
                }
            }
            Input::KeeperReady { workspace, mechanisms } => self.keeper_ready(workspace, mechanisms, now, out),
            Input::KeeperFailed { workspace, error } => self.keeper_failed(workspace, &error, now, out),
            Input::KeeperGone { workspace } => self.keeper_gone(workspace, now, out),
            Input::KeeperEnded { workspace, reaped } => self.keeper_ended(workspace, reaped, now, out),
            Input::Run { request, target, strict, uid, commands, pipeline } => {
                if let Err(error) = self.run(request, target, strict, uid, commands, pipeline, now, out) {
                    out.push(Effect::Reply { request, result: Err(error) });
                }
            }
            Input::Started { command, pid } => {
                self.stir_of(command, now, out);
                self.started(command, pid, now, out);
            }
            Input::StartFailed { command, error } => self.start_failed(command, error, now, out),
            Input::Exited { command, status, signalled, limits } => {
                self.stir_of(command, now, out);
                self.exited(command, status, signalled, limits, now, out);
            }
            Input::QuotaReached { workspace, message } => self.quota_reached(workspace, &message, now, out),
            Input::Signal { request, command, signal } => {
                if let Ok(id) = self.find_command(&command).map(|c| c.what.id) {
                    self.stir_of(id, now, out);
                }
                let result = self.signal(&command, signal, out);
                out.push(Effect::Reply { request, result });
            }
            Input::StopWorkspace { request, workspace, grace } => {
                self.stop_workspace(request, &workspace, grace, now, out);
            }
            Input::ChangeEgress { request, workspace, change } => {
                let result = self.change_egress(&workspace, change, out);
                out.push(Effect::Reply { request, result });
            }
            Input::ChangePublished { request, workspace, change } => {
                let result = self.change_published(&workspace, change, out);
                out.push(Effect::Reply { request, result });
            }
            Input::StopPipeline { request, pipeline, grace } => {
                self.stop_pipeline(request, &pipeline, grace, now, out);
            }
            Input::Deadline { command } => {
                self.end_command(command, Ending::Timeout, commands::GRACE, now, out);
            }
            Input::Escalate { command } => self.kill(command, out),
            Input::Wake { request, workspace } => match self.wake(request, &workspace, now, out) {
                Ok(Some(outcome)) => out.push(Effect::Reply { request, result: Ok(outcome) }),
                Ok(None) => {}
                Err(error) => out.push(Effect::Reply { request, result: Err(error) }),
            },
            Input::IdleDue { workspace } => self.idle_due(workspace, now, out),
            Input::Looked { workspace, busy, since } => self.looked(workspace, busy, since, now, out),
            Input::Slept { workspace, given_back } => self.slept(workspace, given_back, now, out),
            Input::Woken { workspace, usec, failed } => self.woken(workspace, usec, failed.as_deref(), out),
            Input::TtlExpired { workspace } => self.begin_stop(workspace, commands::GRACE, now, out),
            Input::Relaunch { command } => self.relaunch(command, now, out),
            Input::RelaunchPipeline { pipeline } => self.relaunch_pipeline(pipeline, now, out),
            Input::PipelineBroken { pipeline, error } => self.pipeline_broken(pipeline, &error, now, out),
            Input::Resume { survivors } => self.resume(&survivors, now, out),
        }
        effects
    }

    /// A workspace to be changed; the change is recorded.
    fn workspace_mut(&mut self, id: Ulid) -> Option<&mut Workspace> {
        self.touched.insert(Key::Workspace(id));
        self.workspaces.get_mut(&id)
    }

    /// A command to be changed; the change is recorded.
    fn command_mut(&mut self, id: Ulid) -> Option<&mut Command> {
        self.touched.insert(Key::Command(id));
        self.commands.get_mut(&id)
    }

    /// A pipeline to be changed; the change is recorded.
    fn pipeline_mut(&mut self, id: Ulid) -> Option<&mut Pipeline> {
        self.touched.insert(Key::Pipeline(id));
        self.pipelines.get_mut(&id)
    }

    /// A living workspace, by name or id.
    pub(crate) fn find_workspace(&self, name: &str) -> Result<&Workspace, Error> {
        // ids first: nobody must be able to take another workspace's place by calling one like its id
        parse_id(name)
            .and_then(|id| self.workspaces.get(&id))
            .or_else(|| self.names.get(name).and_then(|id| self.workspaces.get(id)))
            .ok_or_else(|| Error::NoSuchWorkspace(name.to_owned()))
    }

    /// A command, living or ended, by id or by an unambiguous end of it.
    pub(crate) fn find_command(&self, name: &str) -> Result<&Command, Error> {
        find_by_id(&self.commands, name).ok_or_else(|| Error::NoSuchCommand(name.to_owned()))
    }

    /// A pipeline, by id or by an unambiguous end of it.
    pub(crate) fn find_pipeline(&self, name: &str) -> Result<&Pipeline, Error> {
        find_by_id(&self.pipelines, name).ok_or_else(|| Error::NoSuchPipeline(name.to_owned()))
    }

    /// A pipeline that runs, by id, by an unambiguous end of it, or by a name that no other one that runs has.
    pub(crate) fn find_running_pipeline(&self, name: &str) -> Result<&Pipeline, Error> {
        // ids first: nobody must be able to take another pipeline's place by calling one like its id
        if let Some(found) = find_by_id(&self.pipelines, name).filter(|pipeline| pipeline.exit_status.is_none()) {
            return Ok(found);
        }
        let runs = |pipeline: &&Pipeline| pipeline.exit_status.is_none() && pipeline.what.label == name;
        let called: Vec<&Pipeline> = self.pipelines.values().filter(runs).collect();
        match called[..] {
            [] => Err(Error::NoSuchPipeline(name.to_owned())),
            [one] => Ok(one),
            _ => {
                let ids: Vec<String> = called.iter().map(|pipeline| pipeline.what.id.to_string()).collect();
                let text = format!("pipeline {name:?}: {} run by that name; give the id of one: ", ids.len());
                Err(Error::InvalidArgument(text + &ids.join(", ")))
            }
        }
    }

    /// Living commands of a workspace.
    pub(crate) fn living_in(&self, workspace: Ulid) -> impl Iterator<Item = &Command> {
        let all = (workspace, Ulid::from(0))..=(workspace, Ulid::from(u128::MAX));
        self.living.range(all).filter_map(|(_, command)| self.commands.get(command))
    }

    /// Living commands of all workspaces.
    pub(crate) fn living(&self) -> usize {
        self.living.len()
    }
}

fn parse_id(text: &str) -> Option<Ulid> {
    Ulid::from_string(&text.to_ascii_uppercase()).ok()
}

/// Ids are long: the last six characters or more do where they are unambiguous.
fn find_by_id<'m, T>(map: &'m BTreeMap<Ulid, T>, text: &str) -> Option<&'m T> {
    if let Some(id) = parse_id(text) {
        return map.get(&id);
    }
    if text.len() < 6 {
        return None;
    }
    let wanted = text.to_ascii_uppercase();
    let mut found = map.iter().filter(|(id, _)| id.to_string().ends_with(&wanted));
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}
