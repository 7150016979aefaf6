//! What a client asks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::spec::{PipelineSpec, WorkspaceId, WorkspaceSpec};

/// Milliseconds between SIGTERM and SIGKILL where a text names none.
fn grace() -> u64 {
    1000
}

/// One question; the order of the variants and of their fields is the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Is somebody there?
    Ping,
    /// Version, uptime and counts.
    Health,
    /// Makes a workspace. Labels may repeat: the id in the answer is what names it.
    WorkspaceCreate {
        /// What it is to be.
        spec: WorkspaceSpec,
    },
    /// Living workspaces.
    WorkspaceList,
    /// Ends a workspace and all that runs in it.
    WorkspaceStop {
        /// Which.
        id: WorkspaceId,
        /// Milliseconds between SIGTERM and SIGKILL; 0: SIGKILL at once.
        #[serde(default = "grace")]
        grace_ms: u64,
    },
    /// Starts a command in a workspace; answered when it runs.
    Run {
        /// Where.
        workspace: WorkspaceId,
        /// Path, or a name looked up in the workspace's own `PATH`.
        exec: String,
        /// Arguments without the program's name.
        argv: Vec<String>,
        /// Environment, name and value.
        envp: Vec<(String, String)>,
        /// Start it again when it ends with another status than 0.
        #[serde(default)]
        restart_on_failure: bool,
    },
    /// Starts a pipeline; answered when all its nodes run.
    PipelineRun {
        /// What.
        spec: PipelineSpec,
        /// Sample, discern, meter and offer every edge.
        tap: bool,
        /// Put for `${KEY}` in the strings of the spec.
        #[serde(default)]
        vars: BTreeMap<String, String>,
    },
    /// What kind of data some bytes are.
    Discern {
        /// The data's beginning.
        sample: Vec<u8>,
        /// The name that it goes by.
        hint_path: Option<PathBuf>,
    },
    /// What the host allows.
    Capabilities,
    /// Commands of a workspace, living and ended.
    CommandList {
        /// Which.
        workspace: WorkspaceId,
    },
    /// Kept output of a command.
    CommandLogs {
        /// Where it runs or ran.
        workspace: WorkspaceId,
        /// Which.
        command: Ulid,
        /// Only so many of the last bytes; 0: all that is kept and fits in a frame.
        tail_bytes: usize,
        /// `stdout`, `stderr`, or `both` (the same as nothing): in order of arrival.
        stream: String,
    },
    /// Keeps a pipeline under a name; one of that name is replaced.
    PipelineSave {
        /// Name.
        name: String,
        /// What.
        spec: PipelineSpec,
    },
    /// Names of the kept pipelines.
    PipelineSavedList,
    /// Forgets a kept pipeline.
    PipelineDrop {
        /// Which.
        name: String,
    },
    /// Starts a kept pipeline.
    PipelineRunSaved {
        /// Which.
        name: String,
        /// As in [`Request::PipelineRun`].
        tap: bool,
        /// As in [`Request::PipelineRun`].
        #[serde(default)]
        vars: BTreeMap<String, String>,
    },
    /// What a workspace uses.
    WorkspaceStats {
        /// Which.
        workspace: WorkspaceId,
    },
    /// What a workspace uses against what it may.
    WorkspaceQuota {
        /// Which.
        workspace: WorkspaceId,
    },
    /// What a workspace used, sampled by the service.
    WorkspaceStatsHistory {
        /// Which.
        workspace: WorkspaceId,
        /// Only so many of the last samples; 0: all.
        tail: usize,
    },
    /// Figures, quota, commands and flows of a workspace at once.
    WorkspaceFullSummary {
        /// Which.
        workspace: WorkspaceId,
    },
    /// Ends the commands of a pipeline; its workspace stays.
    PipelineStop {
        /// Which.
        pipeline: Ulid,
        /// As in [`Request::WorkspaceStop`].
        #[serde(default = "grace")]
        grace_ms: u64,
    },
    /// Pipelines with their flow sockets.
    FlowList,
    /// Bytes over each flow.
    FlowThroughput,
    /// Closes the flow sockets of a pipeline; the pipeline goes on.
    FlowDrop {
        /// Which.
        pipeline: Ulid,
    },
}
