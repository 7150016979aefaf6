//! What the state machine holds, what goes in and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shipote_bus::spec::{
    DiscernPolicy, Foreign, FurtherFlows, NodeCommand, RestartPolicy, Soma, ValidatedEdge, WorkspaceSpec,
};
use shipote_confinement::Mechanism;
use ulid::Ulid;

use super::changes::{EgressChange, PublishChange};
use super::persist;
use super::restart::Restarts;
use super::sleep::Sleep;
use crate::error::Error;

/// Ties a reply to the call that waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RequestId(pub(crate) u64);

/// Microseconds since the epoch.
pub(crate) type Usec = u64;

/// One of few words.
pub(crate) type Word = &'static str;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum WorkspacePhase {
    Starting,
    Running,
    Stopping,
}

impl Workspace {
    /// `starting`, `running`, `sleeping` or `stopping`.
    pub(crate) fn state(&self) -> &'static str {
        if self.sleep.asleep { "sleeping" } else { self.phase.as_str() }
    }
}

impl WorkspacePhase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WorkspacePhase::Starting => "starting",
            WorkspacePhase::Running => "running",
            WorkspacePhase::Stopping => "stopping",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) id: Ulid,
    pub(crate) name: String,
    pub(crate) spec: WorkspaceSpec,
    pub(crate) strict: bool,
    pub(crate) uid: u32,
    pub(crate) phase: WorkspacePhase,
    pub(crate) created: Usec,
    /// Made for one command or pipeline; ends with the last of them.
    pub(crate) ephemeral: bool,
    pub(crate) mechanisms: Vec<Mechanism>,
    /// When what is left of it is killed, once it is being stopped.
    #[serde(default)]
    pub(super) kill_at: Option<Usec>,
    #[serde(default)]
    pub(crate) sleep: Sleep,
    #[serde(skip)]
    pub(super) creators: Vec<RequestId>,
    #[serde(skip)]
    pub(super) stoppers: Vec<RequestId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CommandPhase {
    /// Its workspace is not ready, or the keeper has not answered.
    Starting,
    Running,
    /// Between two launches: it failed and is started again, or the other nodes of its pipeline are waited for.
    Waiting,
    Ended,
}

impl CommandPhase {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            CommandPhase::Starting => "starting",
            CommandPhase::Running => "running",
            CommandPhase::Waiting => "waiting",
            CommandPhase::Ended => "ended",
        }
    }
}

/// What to start, as a caller asks for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewCommand {
    pub(crate) id: Ulid,
    pub(crate) label: String,
    pub(crate) command: NodeCommand,
    /// What stands behind it, where it is no program of the workspace.
    #[serde(default)]
    pub(crate) foreign: Option<Foreign>,
    /// Inputs and outputs beside the standard three.
    #[serde(default)]
    pub(crate) further: FurtherFlows,
    /// Limits, on top of the workspace's.
    pub(crate) soma: Soma,
    pub(crate) cwd: Option<String>,
    pub(crate) terminal: Option<(u16, u16)>,
    pub(crate) timeout: Option<Duration>,
    /// Whether, and how, it is started again after a failure.
    #[serde(default)]
    pub(crate) restart: Option<RestartPolicy>,
    /// Its standard input, or its terminal, is kept for callers who come later.
    #[serde(default)]
    pub(crate) attachable: bool,
    /// Its input and output are its caller's, who waits for it.
    #[serde(default)]
    pub(crate) foreground: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) what: NewCommand,
    pub(crate) workspace: Ulid,
    pub(crate) workspace_name: String,
    pub(crate) pipeline: Option<Ulid>,
    pub(crate) uid: u32,
    pub(crate) phase: CommandPhase,
    pub(crate) pid: i32,
    pub(crate) started: Usec,
    pub(crate) ended: Option<Usec>,
    pub(crate) exit_status: Option<i32>,
    #[serde(with = "persist::word")]
    pub(crate) reason: Word,
    pub(crate) message: String,
    /// When it was launched last.
    #[serde(default)]
    pub(crate) launched: Usec,
    /// How often it was launched again, alone or with its pipeline.
    #[serde(default)]
    pub(crate) relaunches: u32,
    #[serde(default)]
    pub(crate) restarts: Restarts,
    /// How the last launch ended, while it waits for the next.
    #[serde(default)]
    pub(super) last: Option<LastEnd>,
    /// When its time is over.
    #[serde(default)]
    pub(super) deadline: Option<Usec>,
    /// When it is killed, once it was told to end.
    #[serde(default)]
    pub(super) kill_at: Option<Usec>,
    pub(super) ending: Option<Ending>,
    #[serde(skip)]
    pub(super) reply: Option<RequestId>,
}

/// How a launch ended that may not have been the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastEnd {
    pub(crate) status: i32,
    #[serde(with = "persist::word")]
    pub(crate) reason: Word,
}

/// Why a command is being ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending {
    Timeout,
    Stopped,
    /// Its workspace has reached a limit that ends its commands.
    Quota,
}

/// What limits had to do with the end of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LimitNote {
    /// The limit that ended it or kept it from working: `out-of-memory` or `process-limit`; empty: none.
    pub(crate) reason: &'static str,
    /// What a person should know of it; empty: nothing.
    pub(crate) message: String,
}

/// A pipeline as it is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NewPipeline {
    pub(crate) id: Ulid,
    pub(crate) label: String,
    pub(crate) edges: Vec<ValidatedEdge>,
    pub(crate) discern: DiscernPolicy,
    pub(crate) tap: bool,
    /// Whether, and how, all of it is started again when all nodes have ended and one failed.
    #[serde(default)]
    pub(crate) restart: Option<RestartPolicy>,
}

impl NewPipeline {
    /// Some output is tapped or has several consumers, so that something stands between the nodes.
    pub(crate) fn has_junctions(&self) -> bool {
        let ends = |i: usize| (self.edges[i].from, &self.edges[i].from_output);
        let shared = |i: usize| (0..i).any(|j| ends(j) == ends(i));
        !self.edges.is_empty() && (self.tap || (0..self.edges.len()).any(shared))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pipeline {
    pub(crate) what: NewPipeline,
    pub(crate) workspace: Ulid,
    pub(crate) workspace_name: String,
    pub(crate) nodes: Vec<Ulid>,
    pub(crate) uid: u32,
    pub(crate) started: Usec,
    pub(crate) exit_status: Option<i32>,
    #[serde(default)]
    pub(crate) ended: Option<Usec>,
    /// When all of it was launched last.
    #[serde(default)]
    pub(crate) launched: Usec,
    #[serde(default)]
    pub(crate) restarts: Restarts,
    #[serde(skip)]
    pub(super) reply: Option<RequestId>,
    #[serde(skip)]
    pub(super) stoppers: Vec<RequestId>,
    #[serde(with = "persist::failure")]
    pub(super) failure: Option<Error>,
}

/// The workspace that a run is to happen in.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A living one, by name or id.
    Existing(String),
    /// One of its own, which ends with it.
    Ephemeral { id: Ulid, spec: Box<WorkspaceSpec> },
}

/// What happens to the state machine.
#[derive(Debug)]
pub(crate) enum Input {
    Create {
        request: RequestId,
        id: Ulid,
        spec: Box<WorkspaceSpec>,
        strict: bool,
        uid: u32,
        /// A taken name gets a number (`demo~2`) instead of a refusal.
        numbered: bool,
    },
    KeeperReady {
        workspace: Ulid,
        mechanisms: Vec<Mechanism>,
    },
    KeeperFailed {
        workspace: Ulid,
        error: Error,
    },
    KeeperGone {
        workspace: Ulid,
    },
    KeeperEnded {
        workspace: Ulid,
        reaped: u32,
    },
    Run {
        request: RequestId,
        target: Target,
        strict: bool,
        uid: u32,
        commands: Vec<NewCommand>,
        pipeline: Option<NewPipeline>,
    },
    Started {
        command: Ulid,
        pid: i32,
    },
    StartFailed {
        command: Ulid,
        error: Error,
    },
    Exited {
        command: Ulid,
        status: i32,
        signalled: bool,
        limits: LimitNote,
    },
    /// A limit was reached whose quota ends the commands.
    QuotaReached {
        workspace: Ulid,
        message: String,
    },
    Signal {
        request: RequestId,
        command: String,
        signal: i32,
    },
    StopWorkspace {
        request: RequestId,
        workspace: String,
        grace: Duration,
    },
    ChangeEgress {
        request: RequestId,
        workspace: String,
        change: EgressChange,
    },
    ChangePublished {
        request: RequestId,
        workspace: String,
        change: PublishChange,
    },
    StopPipeline {
        request: RequestId,
        pipeline: String,
        grace: Duration,
    },
    Deadline {
        command: Ulid,
    },
    Escalate {
        command: Ulid,
    },
    TtlExpired {
        workspace: Ulid,
    },
    /// Somebody needs a workspace.
    Wake {
        request: RequestId,
        workspace: String,
    },
    IdleDue {
        workspace: Ulid,
    },
    /// Whether something goes on in a workspace that seems idle since then.
    Looked {
        workspace: Ulid,
        busy: bool,
        since: Usec,
    },
    /// With the bytes that it gave back.
    Slept {
        workspace: Ulid,
        given_back: Result<u64, String>,
    },
    Woken {
        workspace: Ulid,
        usec: u64,
        failed: Option<String>,
    },
    /// The pause before the next launch is over.
    Relaunch {
        command: Ulid,
    },
    RelaunchPipeline {
        pipeline: Ulid,
    },
    /// What carries a pipeline's flows could not be started or is gone.
    PipelineBroken {
        pipeline: Ulid,
        error: Error,
    },
    /// An earlier instance's state was read: what has become of it meanwhile.
    Resume {
        survivors: Box<Survivors>,
    },
}

/// What lives on of what an earlier instance of the service started.
#[derive(Debug, Default)]
pub(crate) struct Survivors {
    /// Workspaces, with how they are isolated.
    pub(crate) workspaces: BTreeMap<Ulid, Vec<Mechanism>>,
    /// Commands that run, with their pid.
    pub(crate) running: BTreeMap<Ulid, i32>,
    /// Commands whose end will be told.
    pub(crate) ended: BTreeSet<Ulid>,
    /// Pipelines whose flows are carried on.
    pub(crate) relays: BTreeSet<Ulid>,
}

/// What the state machine wants done.
#[derive(Debug)]
pub(crate) enum Effect {
    StartKeeper {
        workspace: Ulid,
    },
    EndKeeper {
        workspace: Ulid,
        grace: Duration,
    },
    /// Make the pipes of a pipeline whose workspace is ready.
    Wire {
        pipeline: Ulid,
    },
    StartCommand {
        command: Ulid,
    },
    /// Look whether something goes on in it; answers `Looked`.
    Look {
        workspace: Ulid,
        since: Usec,
    },
    /// Put it to sleep; answers `Slept`.
    Freeze {
        workspace: Ulid,
    },
    /// Wake it; answers `Woken`.
    Thaw {
        workspace: Ulid,
    },
    Signal {
        workspace: Ulid,
        command: Ulid,
        signal: i32,
    },
    /// End what commands that have ended left behind in a workspace.
    Sweep {
        workspace: Ulid,
    },
    After {
        delay: Duration,
        input: Timer,
    },
    Reply {
        request: RequestId,
        result: Result<Outcome, Error>,
    },
    /// The command will not start: drop the descriptors that were handed over for it.
    DropDescriptors {
        command: Ulid,
    },
    /// Write the completion of a command or pipeline to whoever waits.
    Complete {
        id: Ulid,
        status: i32,
        reason: &'static str,
        message: String,
    },
    WorkspaceChanged {
        workspace: Ulid,
    },
    WorkspaceGone {
        workspace: Ulid,
    },
    CommandChanged {
        command: Ulid,
    },
    CommandForgotten {
        command: Ulid,
    },
    PipelineChanged {
        pipeline: Ulid,
    },
    PipelineForgotten {
        pipeline: Ulid,
    },
}

/// A timer that comes back as an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Timer {
    Deadline(Ulid),
    Escalate(Ulid),
    Ttl(Ulid),
    Idle(Ulid),
    Relaunch(Ulid),
    RelaunchPipeline(Ulid),
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Created(Ulid),
    Started(Ulid),
    PipelineStarted(Ulid),
    Reaped(u32),
    FlowsDropped(bool),
    Awake,
    /// What a workspace may reach now.
    Egress(Vec<String>),
    /// The ports that a workspace publishes now.
    Published(Vec<u16>),
    Done,
}
