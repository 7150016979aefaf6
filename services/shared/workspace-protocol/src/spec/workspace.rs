//! A workspace and its limits.

use serde::{Deserialize, Serialize};
use ulid::Ulid;

/// A workspace's identity: a string of 26 characters on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkspaceId(pub Ulid);

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkspaceSpec {
    /// Name; need not be unique.
    pub label: String,
    /// Isolation and limits.
    #[serde(default)]
    pub soma: SomaSpec,
    /// What the commands may reach.
    #[serde(default)]
    pub permissions: Permissions,
    /// Milliseconds after which it ends.
    #[serde(default)]
    pub ttl: Option<u64>,
    /// Flows that the workspace shares.
    #[serde(default)]
    pub flow_dirs: Vec<FlowSlot>,
    /// What happens to its files at its end.
    #[serde(default)]
    pub on_exit: ExitPolicy,
    /// What happens where a limit is exceeded.
    #[serde(default)]
    pub quota_enforce: QuotaEnforcement,
}

/// Isolation and limits of processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SomaSpec {
    /// Namespaces that are asked for.
    pub namespaces: NamespaceSet,
    /// setrlimit(2).
    pub rlimits: ResourceLimits,
    /// Control group.
    pub cgroup: CgroupSpec,
    /// Numbers of the processors that may be used; none: all.
    pub cpu_affinity: Option<Vec<u32>>,
}

/// namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub struct NamespaceSet {
    pub mount: bool,
    pub pid: bool,
    pub net: bool,
    pub uts: bool,
    pub ipc: bool,
    pub user: bool,
    pub cgroup: bool,
}

/// setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimits {
    /// Address space of each process, bytes.
    pub mem_bytes: Option<u64>,
    /// Processes and threads.
    pub nproc: Option<u32>,
    /// Descriptors of each process.
    pub nofile: Option<u32>,
}

/// cgroups(7).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupSpec {
    /// Path below the service's own.
    pub path: String,
    /// `cpu.weight`, 1 to 10,000.
    pub cpu_weight: Option<u32>,
    /// `io.weight`, 1 to 10,000.
    pub io_weight: Option<u32>,
}

/// What the commands may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Permissions {
    /// Network.
    pub networking: Networking,
    /// Files of the host beside the read-only system.
    pub filesystem: Filesystem,
    /// Sockets of the host.
    pub ipc: IpcPolicy,
    /// May see the host's processes.
    pub processes: bool,
}

/// Network of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Networking {
    /// No interface.
    #[default]
    None,
    /// A loopback of its own.
    Loopback,
    /// Through the egress proxy.
    Outbound,
    /// The host's.
    Full,
}

/// Files of the host that a workspace sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    /// The system only.
    #[default]
    None,
    /// What the caller can read.
    ReadOnly,
    /// What the caller can write.
    ReadWrite,
}

/// Sockets of the host that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IpcPolicy {
    /// Their names.
    pub allow: Vec<String>,
}

/// A flow that a workspace shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSlot {
    /// Name.
    pub name: String,
    /// In or out.
    #[serde(default)]
    pub direction: FlowDirection,
    /// For whom.
    #[serde(default)]
    pub scope: FlowScope,
}

/// In or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowDirection {
    /// Into the workspace.
    #[default]
    Input,
    /// Out of it.
    Output,
}

/// For whom a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowScope {
    /// The workspace's own commands.
    #[default]
    Workspace,
    /// Everybody.
    Public,
}

/// What happens to a workspace's files at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitPolicy {
    /// They go.
    #[default]
    Reap,
    /// They stay.
    Keep,
    /// They are there again at the next start.
    Snapshot,
}

/// What happens where a limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuotaEnforcement {
    /// Memory.
    pub mem: QuotaAction,
    /// Processes.
    pub nproc: QuotaAction,
}

/// What happens where one limit is exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QuotaAction {
    /// Nothing.
    #[default]
    None,
    /// It is logged.
    Log,
    /// The living commands are ended.
    Kill,
}
