//! What of the state outlives the service: records, and what becomes of them when the next instance starts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::commands::STATUS_FAILED;
use super::{
    Command, CommandPhase, Effect, LastEnd, Pipeline, State, Survivors, Timer, Usec, Workspace, WorkspacePhase,
};
use crate::error::Error;

/// Names an object of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Key {
    Workspace(Ulid),
    Command(Ulid),
    Pipeline(Ulid),
}

/// An object as it is now; the last record of an object holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Record {
    Workspace(Box<Workspace>),
    Command(Box<Command>),
    Pipeline(Box<Pipeline>),
    Gone(Key),
}

impl Record {
    /// What it is about.
    pub(crate) fn key(&self) -> Key {
        match self {
            Record::Workspace(workspace) => Key::Workspace(workspace.id),
            Record::Command(command) => Key::Command(command.what.id),
            Record::Pipeline(pipeline) => Key::Pipeline(pipeline.what.id),
            Record::Gone(key) => *key,
        }
    }
}

impl State {
    fn record(&self, key: Key) -> Record {
        let record = match key {
            Key::Workspace(id) => self.workspaces.get(&id).cloned().map(|w| Record::Workspace(Box::new(w))),
            Key::Command(id) => self.commands.get(&id).cloned().map(|c| Record::Command(Box::new(c))),
            Key::Pipeline(id) => self.pipelines.get(&id).cloned().map(|p| Record::Pipeline(Box::new(p))),
        };
        record.unwrap_or(Record::Gone(key))
    }

    /// What was changed since this was asked last.
    pub(crate) fn take_records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.touched).into_iter().map(|key| self.record(key)).collect()
    }

    /// Everything, for a fresh start of the records.
    pub(crate) fn all_records(&self) -> Vec<Record> {
        let keys = self.workspaces.keys().copied().map(Key::Workspace);
        let keys = keys.chain(self.commands.keys().copied().map(Key::Command));
        keys.chain(self.pipelines.keys().copied().map(Key::Pipeline)).map(|key| self.record(key)).collect()
    }

    /// The state that records describe. `Input::Resume` has to follow.
    pub(crate) fn restore(records: impl IntoIterator<Item = Record>) -> Self {
        let mut state = State::default();
        for record in records {
            match record {
                Record::Workspace(workspace) => drop(state.workspaces.insert(workspace.id, *workspace)),
                Record::Command(command) => drop(state.commands.insert(command.what.id, *command)),
                Record::Pipeline(pipeline) => drop(state.pipelines.insert(pipeline.what.id, *pipeline)),
                Record::Gone(Key::Workspace(id)) => drop(state.workspaces.remove(&id)),
                Record::Gone(Key::Command(id)) => drop(state.commands.remove(&id)),
                Record::Gone(Key::Pipeline(id)) => drop(state.pipelines.remove(&id)),
            }
        }
        state.names = state.workspaces.values().map(|w| (w.name.clone(), w.id)).collect();
        let ended = state.commands.values().filter(|c| c.phase == CommandPhase::Ended);
        let by_end: BTreeMap<(Option<Usec>, Ulid), Ulid> = ended.map(|c| ((c.ended, c.what.id), c.what.id)).collect();
        state.history = by_end.into_values().collect();
        let living = state.commands.values().filter(|c| c.phase != CommandPhase::Ended);
        state.living = living.map(|c| (c.workspace, c.what.id)).collect();
        state
    }

    /// Compares what an earlier instance knew with what lives, and goes on from there.
    pub(super) fn resume(&mut self, survivors: &Survivors, now: Usec, out: &mut Vec<Effect>) {
        let after = |at: Usec| Duration::from_micros(at.saturating_sub(now));
        let torn = self.resume_commands(survivors, now, out);
        for pipeline in self.pipelines.keys().copied().collect::<Vec<_>>() {
            self.resume_pipeline(pipeline, torn.contains(&pipeline), survivors, now, out);
        }
        for id in self.workspaces.keys().copied().collect::<Vec<_>>() {
            let Some(mechanisms) = survivors.workspaces.get(&id) else {
                self.lost_workspace(id, now, out);
                continue;
            };
            let Some(workspace) = self.workspace_mut(id) else { continue };
            workspace.mechanisms.clone_from(mechanisms);
            if let Some(ttl) = workspace.spec.ttl {
                let end = workspace.created.saturating_add(ttl.saturating_mul(1000));
                out.push(Effect::After { delay: after(end), input: Timer::Ttl(id) });
            }
            match workspace.phase {
                WorkspacePhase::Starting => self.keeper_ready(id, mechanisms.clone(), now, out),
                WorkspacePhase::Stopping => {
                    // its keeper may never have heard of it
                    let grace = workspace.kill_at.map_or(Duration::ZERO, after);
                    out.push(Effect::EndKeeper { workspace: id, grace });
                    out.push(Effect::WorkspaceChanged { workspace: id });
                }
                WorkspacePhase::Running => {
                    out.push(Effect::WorkspaceChanged { workspace: id });
                    if !self.workspaces[&id].sleep.asleep {
                        self.stir(id, now, out);
                        self.arm(id, now, out);
                    }
                    self.end_if_done(id, now, out);
                }
            }
        }
    }

    /// Returns the pipelines whose launch was cut off: a part of them may run.
    fn resume_commands(&mut self, survivors: &Survivors, now: Usec, out: &mut Vec<Effect>) -> BTreeSet<Ulid> {
        let mut torn = BTreeSet::new();
        let after = |at: Usec| Duration::from_micros(at.saturating_sub(now));
        let living: BTreeSet<Ulid> = self.living.iter().map(|(_, command)| *command).collect();
        for id in living {
            let will_end = survivors.ended.contains(&id);
            let Some(command) = self.commands.get(&id) else { continue };
            let stands = survivors.workspaces.contains_key(&command.workspace);
            let pipeline = command.pipeline.and_then(|pipeline| self.pipelines.get(&pipeline));
            // the pipeline that it was last launched with
            let whole = pipeline.filter(|p| p.launched == command.launched).map(|p| p.what.id);
            let Some(command) = self.command_mut(id).filter(|_| stands) else { continue };
            out.push(Effect::CommandChanged { command: id });
            if let Some(at) = command.deadline {
                out.push(Effect::After { delay: after(at), input: Timer::Deadline(id) });
            }
            if let Some(at) = command.kill_at {
                out.push(Effect::After { delay: after(at), input: Timer::Escalate(id) });
            }
            match (command.phase, survivors.running.get(&id)) {
                (CommandPhase::Waiting, _) => {
                    if let Some(at) = command.restarts.due {
                        out.push(Effect::After { delay: after(at), input: Timer::Relaunch(id) });
                    }
                }
                (CommandPhase::Running, Some(&pid)) => command.pid = pid,
                (CommandPhase::Starting, Some(&pid)) => self.started(id, pid, now, out),
                // its end comes as an input of its own
                (CommandPhase::Running | CommandPhase::Starting, None) if will_end => {}
                // It was to be launched again, and its keeper was not asked for that: it answers one instance before it
                // hears the next. What a launch needs it holds, but for the ends of edges, which are made for all nodes.
                (CommandPhase::Starting, None) if command.relaunches > 0 && command.ending.is_none() => match whole {
                    Some(pipeline) => {
                        command.phase = CommandPhase::Waiting;
                        command.last = Some(LastEnd { status: STATUS_FAILED, reason: "lost" });
                        torn.insert(pipeline);
                    }
                    None => out.push(Effect::StartCommand { command: id }),
                },
                (CommandPhase::Starting, None) => {
                    let name = command.what.label.clone();
                    let text = format!("run {name:?}: the service was restarted before the command had started");
                    self.start_failed(id, Error::Failed(text), now, out);
                }
                (CommandPhase::Running, None) => self.lose(id, now, out),
                (CommandPhase::Ended, _) => {}
            }
        }
        torn
    }

    fn resume_pipeline(&mut self, id: Ulid, torn: bool, survivors: &Survivors, now: Usec, out: &mut Vec<Effect>) {
        let Some(pipeline) = self.pipelines.get(&id) else { return };
        out.push(Effect::PipelineChanged { pipeline: id });
        if pipeline.exit_status.is_some() || !survivors.workspaces.contains_key(&pipeline.workspace) {
            return;
        }
        if let Some(at) = pipeline.restarts.due {
            let delay = Duration::from_micros(at.saturating_sub(now));
            out.push(Effect::After { delay, input: Timer::RelaunchPipeline(id) });
        } else if torn {
            // that launch has failed, and the next is as after any other failure
            for node in pipeline.nodes.clone() {
                self.kill(node, out);
            }
        } else if pipeline.what.has_junctions() && !survivors.relays.contains(&id) {
            let error = Error::Failed("the service was restarted before the pipeline's flows had started".to_owned());
            self.pipeline_broken(id, &error, now, out);
        }
        self.pipeline_progress(id, now, out);
    }
}

/// Words of which there are few, and which live as long as the program.
pub(super) mod word {
    use std::collections::BTreeSet;
    use std::sync::{Mutex, PoisonError};

    use serde::{Deserialize, Deserializer, Serializer};

    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    /// A file with more than this is not one of ours.
    const WORDS_MAX: usize = 64;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    pub(in crate::state) fn serialize<S: Serializer>(word: &&'static str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(word)
    }

    pub(in crate::state) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
        let word = String::deserialize(deserializer)?;
        let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = words.get(word.as_str()) {
            return Ok(known);
        }
        if words.len() >= WORDS_MAX || word.len() > 64 {
            return Ok("lost");
        }
        let word: &'static str = Box::leak(word.into_boxed_str());
        words.insert(word);
        Ok(word)
    }
}

/// A failure, of which only the text is kept.
pub(super) mod failure {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::error::Error;

    pub(in crate::state) fn serialize<S: Serializer>(error: &Option<Error>, serializer: S) -> Result<S::Ok, S::Error> {
        error.as_ref().map(ToString::to_string).serialize(serializer)
    }

    pub(in crate::state) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Error>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(Error::Failed))
    }
}
