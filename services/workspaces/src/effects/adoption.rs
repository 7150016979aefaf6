//! Taking over what an earlier instance of the service started and what lived on.
//!
//! The service manager's store has a connection to each keeper and each relay. A keeper tells which commands run,
//! which have ended unheard, and gives back the descriptors it held for them: the pipes that their logs come from,
//! what their callers wait on, what they need at their next launch. What the store has and the journal does not know
//! is let go, and ends.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use shipote_bus::words::counted;
use shipote_sandbox::{Adopted, Held, Keeper};
use tokio::task::JoinSet;
use ulid::Ulid;

use super::flows::{Flows, pipeline_of};
use super::keepers::{attend, kept_size, watch_exits};
use super::live::{Kept, Launches, Live, Means, stored_name};
use super::log::Stream;
use super::{Handed, completion, numbers, slots};
use crate::figures::Subject;
use crate::state::{Command, CommandPhase, State, Survivors};

/// How long a keeper may take to tell all it knows.
const TELL_TIME: Duration = Duration::from_secs(20);

impl Live {
    /// The effects, with what lives on of the commands and pipelines that `state` knows.
    ///
    /// # Errors
    /// The folder of the flow sockets cannot be used.
    pub(crate) async fn resume(parts: Means, state: &State) -> io::Result<(Self, Survivors)> {
        let inherited = parts.store.take_inherited();
        let (mut keepers, mut relays) = (Vec::new(), Vec::new());
        for (name, descriptor) in inherited {
            let workspace = name.strip_prefix('k').and_then(|id| Ulid::from_string(id).ok());
            if let Some(id) = workspace.filter(|id| state.workspaces.contains_key(id)) {
                keepers.push((id, descriptor));
            } else if let Some(id) =
                pipeline_of(&name).filter(|id| state.pipelines.contains_key(id) || state.workspaces.contains_key(id))
            {
                relays.push((id, descriptor));
            } else {
                tracing::warn!("{name} was stored, but nothing is known of it: it ends");
                parts.store.forget(&name);
            }
        }
        let living: HashSet<Ulid> = relays.iter().map(|(id, _)| *id).collect();
        let spawner = Arc::new(parts.spawner);
        let flows =
            Flows::open(&parts.runtime, Arc::clone(&spawner), parts.store.clone(), &living, parts.changes.clone())?;
        let mut live = Live::new(
            super::live::Made {
                store: parts.store,
                journal: parts.journal,
                logs: parts.logs,
                protected: parts.protected,
                folders: parts.folders.measured_by(Arc::clone(&spawner)),
                foreigners: parts.foreigners,
                cgroups: parts.cgroups,
                meter: parts.meter,
                inputs: parts.inputs,
            },
            flows,
            spawner,
        );
        let mut survivors = Survivors::default();
        let mut telling = JoinSet::new();
        for (id, socket) in keepers {
            telling.spawn(async move { (id, tokio::time::timeout(TELL_TIME, Keeper::adopt(socket)).await) });
        }
        while let Some(told) = telling.join_next().await {
            match told {
                Ok((id, Ok(Ok(adopted)))) => live.adopt(id, adopted, state, &mut survivors),
                Ok((id, refused)) => {
                    let why = match refused {
                        Ok(Err(error)) => error.to_string(),
                        _ => "it does not answer".to_owned(),
                    };
                    tracing::warn!("take over workspace {id}: {why}");
                    live.store.forget(&stored_name(id));
                }
                Err(error) => tracing::error!("take over a workspace: {error}"),
            }
        }
        for (id, channel) in relays {
            live.adopt_relay(id, channel, state, &mut survivors);
        }
        let (workspaces, running) = (survivors.workspaces.len(), survivors.running.len());
        if workspaces > 0 {
            let (workspaces, running) = (counted(workspaces, "workspace"), counted(running, "command"));
            tracing::info!("took over {workspaces} with {running}");
        }
        Ok((live, survivors))
    }

    fn adopt(&mut self, workspace: Ulid, adopted: Adopted, state: &State, survivors: &mut Survivors) {
        let Adopted { keeper, events, running, ended, held } = adopted;
        keeper.outlive();
        survivors.workspaces.insert(workspace, keeper.mechanisms().to_vec());
        if let Some(known) = state.workspaces.get(&workspace) {
            self.cgroups.adopt(workspace, known.uid, &known.spec.soma);
            let subject = Subject {
                name: known.name.clone(),
                ephemeral: known.ephemeral,
                keeper: keeper.pid(),
                group: self.cgroups.of(workspace),
                share: self.cgroups.share_of(workspace),
                kept: kept_size(&self.folders, known),
                soma: known.spec.soma.clone(),
                quota: known.spec.quota_enforce,
            };
            attend(workspace, subject, (&self.cgroups, &self.meter), &self.inputs);
        }
        let kept = Kept { keeper: Arc::new(keeper), launches: Launches::default(), bed: Arc::default() };
        {
            let mut launches = kept.launches.lock().unwrap_or_else(PoisonError::into_inner);
            for command in state.commands.values().filter(|command| command.workspace == workspace) {
                let (id, number) = (command.what.id, numbers::launch(command.what.id, command.relaunches));
                if let Some(process) = running.iter().find(|process| process.id == number) {
                    survivors.running.insert(id, process.pid);
                    launches.insert(number, id);
                } else if ended.contains(&number) {
                    survivors.ended.insert(id);
                    launches.insert(number, id);
                }
            }
        }
        self.take_back_held(workspace, held, &kept, state);
        // launches before the present ones are of no interest to anybody but their logs
        let known = kept.launches.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keeper = Arc::clone(&kept.keeper);
        let earlier: Vec<u64> = ended.into_iter().filter(|number| !known.contains_key(number)).collect();
        tokio::spawn(async move {
            for number in earlier {
                let _ = keeper.acknowledge(number).await;
            }
        });
        let told = (self.cgroups.clone(), self.explanations.clone());
        tokio::spawn(watch_exits(workspace, events, Arc::clone(&kept.launches), told, self.inputs.clone()));
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).insert(workspace, kept);
    }

    /// Sorts what a keeper held to what it is for.
    fn take_back_held(&mut self, workspace: Ulid, held: Vec<Held>, kept: &Kept, state: &State) {
        let commands = || state.commands.values().filter(|command| command.workspace == workspace);
        let pipelines = || state.pipelines.values().filter(|pipeline| pipeline.workspace == workspace);
        for Held { id: owner, tag, descriptor } in held {
            if owner == numbers::number(workspace) && tag >= numbers::TAG_SLOT {
                self.slots.take_back(workspace, usize::from(tag - numbers::TAG_SLOT), descriptor);
                continue;
            }
            let of_command = commands().find(|command| {
                let again = command.what.restart.is_some();
                let launches = 0..=command.relaunches;
                numbers::owner(command, again) == owner
                    || launches.into_iter().any(|n| numbers::launch(command.what.id, n) == owner)
            });
            let of_pipeline = || pipelines().find(|pipeline| numbers::number(pipeline.what.id) == owner);
            match (of_command, tag) {
                (Some(command), numbers::TAG_STDOUT | numbers::TAG_STDERR) => {
                    let stream = if tag == numbers::TAG_STDOUT { Stream::Stdout } else { Stream::Stderr };
                    self.resume_log(command, stream, descriptor, owner, kept);
                }
                (Some(command), numbers::TAG_INPUT | numbers::TAG_TERMINAL) => {
                    self.take_back_input(command, tag, descriptor, owner, kept);
                }
                (Some(command), numbers::TAG_DONE) if command.phase == CommandPhase::Ended => {
                    let (status, reason) = (command.exit_status.unwrap_or_default(), command.reason);
                    completion::write_again(descriptor, command.what.id, status, reason, &command.message);
                    let keeper = Arc::clone(&kept.keeper);
                    tokio::spawn(async move { keeper.release(owner, numbers::TAG_DONE).await });
                }
                (Some(command), numbers::TAG_DONE) => {
                    let handed = Handed { stdio: None, completion: Some(descriptor) };
                    self.handed.insert(command.what.id, handed);
                }
                (Some(command), tag) => self.keep_stdio(command.what.id, tag, descriptor),
                (None, tag) => {
                    let Some(pipeline) = of_pipeline() else { continue };
                    let id = pipeline.what.id;
                    match (tag, pipeline.exit_status) {
                        (numbers::TAG_DONE, Some(status)) => {
                            completion::write_again(descriptor, id, status, "exited", "");
                        }
                        (numbers::TAG_DONE, None) => {
                            self.handed.insert(id, Handed { stdio: None, completion: Some(descriptor) });
                        }
                        _ => self.keep_stdio(id, tag, descriptor),
                    }
                }
            }
        }
    }

    fn take_back_input(&self, command: &Command, tag: u8, descriptor: OwnedFd, owner: u64, kept: &Kept) {
        let (id, living) = (command.what.id, command.phase != CommandPhase::Ended);
        if tag == numbers::TAG_INPUT {
            if living {
                self.attachments.keep_pipe(id, Arc::new(descriptor), Arc::clone(&kept.keeper), owner);
            }
        } else if !living {
            // what it wrote last
            self.resume_log(command, Stream::Stdout, descriptor, owner, kept);
        } else if let Err(error) = self.attachments.keep_terminal(id, descriptor, &self.logs) {
            tracing::error!("go on with the terminal of command {id}: {error}");
        }
    }

    fn keep_stdio(&mut self, id: Ulid, tag: u8, descriptor: OwnedFd) {
        if let Some(at) = tag.checked_sub(numbers::TAG_FURTHER) {
            let all = self.kept_further.entry(id).or_default();
            if all.len() <= usize::from(at) {
                all.resize(usize::from(at) + 1, None);
            }
            all[usize::from(at)] = Some(Arc::new(descriptor));
            return;
        }
        let at = usize::from(tag.saturating_sub(numbers::TAG_STDIO));
        if let Some(slot) = self.kept_stdio.entry(id).or_default().get_mut(at) {
            *slot = Some(descriptor);
        }
    }

    fn resume_log(&self, command: &Command, stream: Stream, pipe: OwnedFd, owner: u64, kept: &Kept) {
        let id = command.what.id;
        let ended = command.phase == CommandPhase::Ended;
        let more = !ended && (command.what.restart.is_some() || command.pipeline.is_some());
        if let Err(error) = self.logs.resume(id, vec![(stream, Arc::new(pipe))], more) {
            tracing::error!("go on with the log of command {id}: {error}");
        }
        // a launch whose end was recorded is not heard of again
        let present = numbers::launch(id, command.relaunches) == owner;
        if !ended && present {
            return;
        }
        let (keeper, drained) = (Arc::clone(&kept.keeper), self.logs.drained(id));
        tokio::spawn(async move {
            if let Some(mut open) = drained {
                let _ = open.wait_for(|open| *open == 0).await;
            }
            let _ = keeper.acknowledge(owner).await;
        });
    }

    fn adopt_relay(&self, pipeline: Ulid, channel: OwnedFd, state: &State, survivors: &mut Survivors) {
        if let Some(known) = state.workspaces.get(&pipeline) {
            let adopted = slots::adopt(&self.flows, (known.id, &known.name), &known.spec.flow_dirs, channel);
            if let Err(error) = adopted {
                tracing::error!("take over the flows of workspace {}: {error}", known.name);
            }
            return;
        }
        let Some(known) = state.pipelines.get(&pipeline) else { return };
        let labels: Vec<&str> = known
            .nodes
            .iter()
            .map(|node| state.commands.get(node).map_or("", |command| command.what.label.as_str()))
            .collect();
        match self.flows.adopt(known, &labels, channel) {
            Ok(()) => drop(survivors.relays.insert(pipeline)),
            Err(error) => tracing::error!("take over the flows of pipeline {pipeline}: {error}"),
        }
    }
}
