//! Figures of workspaces: dictionaries and client of `org.shipote.Workspaces1.Figures`. Every dictionary may gain keys.

use std::collections::BTreeMap;

use zbus::{DeserializeDict, SerializeDict, Type};

use super::WorkspacesError;

/// What a workspace uses. A figure that the host does not have is absent, never zero.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct WorkspaceStats {
    /// ULID.
    pub id: String,
    /// Name, unique among the living.
    pub name: String,
    /// When it was read, microseconds since the epoch.
    pub at: u64,
    /// `cgroup`, or `proc` where the host delegates none that counts memory.
    pub source: String,
    /// Living commands.
    pub commands_alive: u32,
    /// Living ones and remembered ended ones.
    pub commands_total: u32,
    /// Milliseconds since it was created.
    pub uptime_ms: u64,
    /// Processors that the service may use.
    pub cpu_cores: u32,
    /// Bytes of memory now: of the control group, file cache and scratch included; from `/proc` what is resident.
    pub memory_bytes: Option<u64>,
    /// Most of it so far, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Limit of it, bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes of memory now of all workspaces of its user together.
    pub user_memory_bytes: Option<u64>,
    /// Limit of that, bytes; absent for root and the service's own user, who have none.
    pub user_memory_limit_bytes: Option<u64>,
    /// Bytes of swap now.
    pub swap_bytes: Option<u64>,
    /// Processor time, microseconds.
    pub cpu_usec: Option<u64>,
    /// Of one processor, since the sample before.
    pub cpu_percent: Option<f64>,
    /// Time that `cpu_max` has held it back, microseconds.
    pub throttled_usec: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Processes and threads now; from `/proc` processes only.
    pub pids: Option<u64>,
    /// Most of them so far.
    pub pids_peak: Option<u64>,
    /// Limit of them.
    pub pids_limit: Option<u64>,
    /// Percent of the last ten seconds in which a process waited for a processor (PSI, `some avg10`).
    pub cpu_pressure: Option<f64>,
    /// The same for memory.
    pub memory_pressure: Option<f64>,
    /// The same for block devices.
    pub io_pressure: Option<f64>,
    /// Processes that the kernel ended for want of memory.
    pub oom_kills: Option<u64>,
    /// Times that memory ran out at the limit.
    pub memory_limit_hits: Option<u64>,
    /// Processes that were refused at the limit.
    pub process_limit_hits: Option<u64>,
}

/// Limits of a workspace, what happens at them, and what is over them or was.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct WorkspaceQuota {
    /// Name of the workspace.
    pub name: String,
    /// Bytes of memory.
    pub memory_limit_bytes: Option<u64>,
    /// Processes.
    pub process_limit: Option<u32>,
    /// `none`, `log` or `kill`.
    pub memory_action: String,
    /// `none`, `log` or `kill`.
    pub process_action: String,
    /// One sentence for each limit that is exceeded, or was held by the kernel.
    pub breaches: Vec<String>,
}

type Options<'a> = BTreeMap<&'a str, zbus::Variant<'a>>;

/// Client of the figures, at the root object. The documentation of each method is the interface's own.
#[zbus::proxy(
    interface = "org.shipote.Workspaces1.Figures",
    default_service = "org.shipote.Workspaces1",
    default_path = "/org/shipote/Workspaces1"
)]
pub trait Figures {
    /// See the interface.
    fn stats(&self, workspace: &str, options: Options<'_>) -> Result<Vec<WorkspaceStats>, WorkspacesError>;
    /// See the interface.
    fn quota(&self, workspace: &str, options: Options<'_>) -> Result<WorkspaceQuota, WorkspacesError>;
    /// See the interface.
    fn history(&self, workspace: &str, tail: u32, options: Options<'_>)
    -> Result<Vec<WorkspaceStats>, WorkspacesError>;
}
