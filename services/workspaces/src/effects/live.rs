//! The effects as they really are: sandbox, pipes, logs.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shipote_bus::workspaces::FlowInfo;
use shipote_sandbox::{Keeper, Spawner};
use shipote_service::FdStore;
use tokio::sync::{mpsc, watch};
use ulid::Ulid;

use super::ahead::{Ahead, Raiser};
use super::cgroups::Cgroups;
use super::flows::Flows;
use super::launch::spawn_error;
use super::lingering::{LINGER, Lingering};
use super::numbers;
use super::sleep::Bed;
use super::slots::Slots;
use super::wiring::NodeDescriptors;
use super::{Attachments, Effects, Explanations, Foreigners, Handed, Journal, KeptFolders, LogStore, completion};
use crate::actor::{BoxFuture, Change, FlowSource};
use crate::error::{Error, SpawnKind};
use crate::figures::Meter;
use crate::protected::Protected;
use crate::state::{Command, CommandPhase, Input, Pipeline, Record, Target, Usec, Workspace};

/// SIGKILL, the same on every architecture.
const KILL: i32 = 9;

/// Commands by the number under which a keeper knows their present launch.
pub(super) type Launches = Arc<Mutex<HashMap<u64, Ulid>>>;

/// A living keeper and the launches it tells the ends of.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) keeper: Arc<Keeper>,
    pub(super) launches: Launches,
    pub(super) bed: Arc<Bed>,
}

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
    pub(super) protected: Protected,
    /// `/work` of those that leave something.
    pub(super) folders: KeptFolders,
    /// Components, and programs of machines.
    pub(super) foreigners: Foreigners,
    pub(super) cgroups: Cgroups,
    pub(super) meter: Meter,
    pub(super) logs: LogStore,
    pub(super) flows: Flows,
    /// What workspaces share of flows.
    pub(super) slots: Slots,
    pub(super) inputs: mpsc::UnboundedSender<Input>,
    pub(super) keepers: Keepers,
    pub(super) handed: HashMap<Ulid, Handed>,
    /// Standard descriptors of what may be launched again.
    pub(super) kept_stdio: HashMap<Ulid, [Option<OwnedFd>; 3]>,
    /// Their inputs and outputs beside the standard three, as of `kept_stdio`.
    pub(super) kept_further: HashMap<Ulid, Vec<Option<Arc<OwnedFd>>>>,
    pub(super) nodes: HashMap<Ulid, NodeDescriptors>,
    pub(super) terminals: Terminals,
    pub(super) attachments: Attachments,
    pub(super) explanations: Explanations,
    pub(super) ahead: Ahead,
    /// Pipelines that have ended, whose flows are still served.
    lingering: Lingering,
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
            slots: Slots::default(),
            inputs: made.inputs,
            keepers: Keepers::default(),
            handed: HashMap::new(),
            kept_stdio: HashMap::new(),
            kept_further: HashMap::new(),
            nodes: HashMap::new(),
            terminals: Terminals::default(),
            attachments: Attachments::default(),
            explanations: Explanations::default(),
            ahead,
            lingering: Lingering::default(),
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

    pub(super) fn kept(&self, workspace: Ulid) -> Option<(Arc<Keeper>, Launches)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(&workspace).map(|k| (Arc::clone(&k.keeper), Arc::clone(&k.launches)))
    }

    pub(super) fn bed(&self, workspace: Ulid) -> Option<(Arc<Keeper>, Arc<Bed>)> {
        let keepers = self.keepers.lock().unwrap_or_else(PoisonError::into_inner);
        keepers.get(&workspace).map(|k| (Arc::clone(&k.keeper), Arc::clone(&k.bed)))
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

    pub(super) fn send(&self, input: Input) {
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

    fn lend(&mut self, target: &mut Target, strict: bool, uid: u32) {
        if let (Target::Ephemeral { id, spec }, false) = (target, strict) {
            self.ahead.lend(id, spec, uid);
        }
    }

    fn start_keeper(&mut self, workspace: &Workspace) {
        self.bring_up(workspace);
    }

    fn end_keeper(&mut self, workspace: Ulid, grace: Duration) {
        let kept = self.kept(workspace);
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let reaped = match kept {
                Some((keeper, _)) => {
                    // the ends of its flows, which are for nobody any more
                    let _ = keeper.acknowledge(numbers::number(workspace)).await;
                    keeper.end(grace).await.unwrap_or_else(|error| {
                        // it is gone already, and the kernel has ended all that was in it
                        tracing::debug!("end workspace {workspace}: {error}");
                        0
                    })
                }
                None => 0,
            };
            let _ = inputs.send(Input::KeeperEnded { workspace, reaped });
        });
    }

    fn forget_keeper(&mut self, workspace: Ulid) {
        self.keepers.lock().unwrap_or_else(PoisonError::into_inner).remove(&workspace);
        self.cgroups.remove(workspace);
        self.meter.untrack(workspace);
        self.slots.close(&self.flows, workspace);
        self.store.forget(&stored_name(workspace));
        self.ahead.ended();
    }

    fn wire(&mut self, pipeline: &Pipeline, labels: &[&str]) -> Result<(), Error> {
        self.wire_all(pipeline, labels).map_err(|error| {
            self.flows.forget(pipeline.what.id);
            spawn_error(SpawnKind::Other, &pipeline.what.label, format!("make its pipes: {error}"))
        })
    }

    fn start_command(&mut self, workspace: &Workspace, command: &Command) {
        self.launch(workspace, command);
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
        self.kept_further.remove(&id);
        self.attachments.forget(id);
        self.logs.finish(id);
        if let Some(pipe) = self.handed.remove(&id).and_then(|h| h.completion) {
            completion::write(pipe, id, status, reason, message);
        }
    }

    fn pipeline_ended(&mut self, pipeline: &Pipeline, since: Usec) {
        let id = pipeline.what.id;
        self.let_go(pipeline.workspace, numbers::number(id));
        let linger = if pipeline.what.tap { LINGER } else { Duration::ZERO };
        let rest = linger.saturating_sub(Duration::from_micros(since));
        let until = tokio::time::Instant::now() + rest;
        if !rest.is_zero()
            && let Some(oldest) = self.lingering.add(id, until)
        {
            tracing::info!("the flows of pipeline {oldest}, which has ended, make place for those of a later one");
            self.flows.forget(oldest);
        }
        let flows = self.flows.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(until).await;
            flows.forget(id);
        });
    }

    fn close_flows(&mut self, pipeline: Ulid) {
        if self.lingering.remove(pipeline) {
            self.flows.forget(pipeline);
        } else {
            self.flows.close(pipeline);
        }
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
        // The next launch of one that waits with its whole pipeline is joined by new pipes; the others wait for the end
        // of these.
        let rests = command.phase == CommandPhase::Waiting && command.restarts.due.is_none();
        if rests {
            self.kept_stdio.remove(&id);
            self.kept_further.remove(&id);
        }
        let number = numbers::launch(id, command.relaunches);
        let owner = numbers::owner(command, again);
        let drained = self.logs.drained(id);
        tokio::spawn(async move {
            // what the caller waits for must come to its end, though a child of the command may write on
            if (ended || rests) && owner != number {
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

pub(super) fn clone_all<F: AsFd>(all: &[Option<F>; 3]) -> io::Result<[Option<OwnedFd>; 3]> {
    let clone = |fd: &Option<F>| fd.as_ref().map(|fd| fd.as_fd().try_clone_to_owned()).transpose();
    Ok([clone(&all[0])?, clone(&all[1])?, clone(&all[2])?])
}
