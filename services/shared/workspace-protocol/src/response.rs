//! What the service answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::spec::WorkspaceId;

/// One answer; the order of the variants and of their fields is the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To `Ping`.
    Pong,
    /// To `Health`.
    Health {
        /// Of the service.
        version: String,
        /// Milliseconds since the service started.
        uptime_ms: u64,
        /// Living workspaces.
        alive_workspaces: u32,
        /// Living commands.
        alive_commands: u32,
        /// Pipelines with a living node.
        alive_pipelines: u32,
        /// Tapped edges that still flow.
        active_flows: u32,
        /// There is state that the end of the service would lose.
        dirty: bool,
    },
    /// To `WorkspaceCreate`.
    WorkspaceCreated {
        /// Its name from now on.
        id: WorkspaceId,
        /// Mechanisms of isolation that are degraded or missing, with the reasons.
        warnings: Vec<String>,
    },
    /// To `WorkspaceList`.
    WorkspaceList {
        /// Oldest first.
        items: Vec<WorkspaceSummary>,
    },
    /// To `WorkspaceStop`.
    WorkspaceStopped {
        /// Which.
        id: WorkspaceId,
        /// Processes that were ended.
        reaped: u32,
    },
    /// To `Run`.
    RunStarted {
        /// Where.
        workspace: WorkspaceId,
        /// The command.
        command_id: Ulid,
        /// Its process id on the host.
        pid: i32,
    },
    /// To `PipelineRun` and `PipelineRunSaved`.
    PipelineStarted {
        /// The pipeline.
        pipeline: Ulid,
        /// Label and process id of each node.
        command_pids: Vec<(String, i32)>,
        /// What is known of each tapped edge; empty without taps.
        edges: Vec<EdgeDiscernmentInfo>,
    },
    /// To `Discern`.
    Discernment {
        /// As `Primitive { name: "json" }`.
        ty: String,
        /// 0 to 1.
        confidence: f32,
        /// Media type.
        mime: Option<String>,
        /// View that suits it.
        lens: Option<String>,
    },
    /// To `Capabilities`.
    Capabilities {
        /// Major, minor, patch.
        kernel_version: (u32, u32, u32),
        /// User namespaces: `enforced`, or the state and its reason.
        user_ns: String,
        /// Control groups, version 2: likewise.
        cgroup_v2: String,
        /// The service may make control groups of its own.
        cgroup_delegated: bool,
        /// The service has the capability.
        has_cap_sys_admin: bool,
    },
    /// To `CommandList`.
    CommandList {
        /// Oldest first.
        items: Vec<CommandInfo>,
    },
    /// To `CommandLogs`.
    CommandLogs {
        /// The output's end.
        bytes: Vec<u8>,
    },
    /// To `PipelineSave`.
    PipelineSaved {
        /// Name.
        name: String,
    },
    /// To `PipelineSavedList`.
    PipelineSavedList {
        /// Sorted.
        names: Vec<String>,
    },
    /// To `PipelineDrop`.
    PipelineDropped {
        /// Name.
        name: String,
        /// There was one.
        existed: bool,
    },
    /// To `PipelineStop`.
    PipelineStopped {
        /// Which.
        pipeline: Ulid,
        /// Its nodes.
        reaped: u32,
    },
    /// To `WorkspaceStats`.
    WorkspaceStats {
        /// The figures.
        info: WorkspaceStatsInfo,
    },
    /// To `WorkspaceQuota`.
    WorkspaceQuota {
        /// The report.
        info: QuotaReportInfo,
    },
    /// To `WorkspaceStatsHistory`.
    WorkspaceStatsHistory {
        /// Oldest first.
        samples: Vec<WorkspaceStatsInfo>,
    },
    /// To `WorkspaceFullSummary`.
    WorkspaceFullSummary {
        /// As of `WorkspaceStats`.
        stats: WorkspaceStatsInfo,
        /// As of `WorkspaceQuota`.
        quota: QuotaReportInfo,
        /// As of `CommandList`.
        commands: Vec<CommandInfo>,
        /// Sockets of the tapped edges in it.
        flow_sockets: Vec<PathBuf>,
    },
    /// To `FlowList`.
    FlowList {
        /// By pipeline.
        items: Vec<FlowInfo>,
    },
    /// To `FlowThroughput`.
    FlowThroughput {
        /// By socket.
        items: Vec<FlowThroughputInfo>,
    },
    /// To `FlowDrop`.
    FlowDropped {
        /// Which.
        pipeline: Ulid,
        /// It had flows.
        existed: bool,
    },
    /// To anything that was refused or failed.
    Error {
        /// Operation, object, reason and way out.
        message: String,
    },
}

/// Limits and what is over them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuotaReportInfo {
    /// Bytes of memory.
    pub mem_limit: Option<u64>,
    /// Processes.
    pub nproc_limit: Option<u32>,
    /// One sentence for each limit that is exceeded.
    pub breaches: Vec<String>,
}

fn one() -> u32 {
    1
}

/// What a workspace uses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkspaceStatsInfo {
    /// Living commands.
    pub commands_alive: u32,
    /// Living ones and remembered ended ones.
    pub commands_total: u32,
    /// Resident memory, bytes.
    pub rss_bytes: Option<u64>,
    /// Highest of it, bytes.
    #[serde(default)]
    pub rss_peak_bytes: Option<u64>,
    /// Processor time, microseconds.
    pub cpu_usec: Option<u64>,
    /// Of one processor, since the sample before.
    #[serde(default)]
    pub cpu_percent: Option<f32>,
    /// Processors of the host.
    #[serde(default = "one")]
    pub cpu_cores: u32,
    /// `cgroup` or `proc`.
    pub source: String,
    /// Milliseconds since the workspace was created.
    pub uptime_ms: u64,
}

/// Bytes over one flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FlowThroughputInfo {
    /// Its socket.
    pub socket: PathBuf,
    /// So far.
    pub bytes_total: u64,
    /// Over the last second; once it has ended, over its whole life.
    pub bytes_per_sec: f64,
}

/// The flows of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Which.
    pub pipeline: Ulid,
    /// In the order of its edges.
    pub sockets: Vec<PathBuf>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Its identity.
    pub id: Ulid,
    /// Program's name, or the node's label.
    pub label: String,
    /// On the host; 0 before it started.
    pub pid: i32,
    /// It has not ended.
    pub alive: bool,
    /// Exit code, or 128 + signal.
    pub exit_status: Option<i32>,
    /// Bytes that it has written into its log.
    pub log_bytes: u64,
}

/// What is known of a tapped edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EdgeDiscernmentInfo {
    /// Producer.
    pub from_label: String,
    /// Its output.
    pub from_output: String,
    /// Consumer.
    pub to_label: String,
    /// Its input.
    pub to_input: String,
    /// As `Primitive { name: "json" }`; none: no sample yet.
    pub ty: Option<String>,
    /// Media type.
    pub mime: Option<String>,
    /// View that suits it.
    pub lens: Option<String>,
    /// 0 to 1.
    pub confidence: f32,
    /// Unix stream socket: replay, then the live bytes.
    pub flow_socket: Option<PathBuf>,
}

/// One living workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSummary {
    /// Its identity.
    pub id: WorkspaceId,
    /// As its creator called it; others may be called the same.
    pub label: String,
    /// Living commands.
    pub commands: u32,
    /// Milliseconds since it was created.
    pub uptime_ms: u64,
}
