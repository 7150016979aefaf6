//! Dictionaries of `org.shipote.Workspaces1`. Every one may gain keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zbus::{DeserializeDict, SerializeDict, Type};

/// A workspace, in lists.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct WorkspaceInfo {
    /// ULID.
    pub id: String,
    /// Name, unique among the living.
    pub name: String,
    /// `starting`, `running`, `sleeping` or `stopping`.
    pub state: String,
    /// Living commands.
    pub commands: u32,
    /// Microseconds since the epoch.
    pub created: u64,
    /// Milliseconds since it was created.
    pub uptime_ms: u64,
    /// User that created it.
    pub uid: u32,
    /// It was made for one command and ends with it.
    pub ephemeral: bool,
    /// How often it has fallen asleep.
    pub sleeps: Option<u64>,
    /// What the last waking took, microseconds; 0: it was never woken.
    pub wake_usec: Option<u64>,
    /// Bytes of memory that it gave back when it fell asleep last.
    pub given_back: Option<u64>,
    /// Labels of its spec.
    pub labels: BTreeMap<String, String>,
}

/// A command, living or ended.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct CommandInfo {
    /// ULID.
    pub id: String,
    /// Workspace's name.
    pub workspace: String,
    /// Program's name, or the node's label in a pipeline.
    pub label: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Process id on the host; 0 before it started.
    pub pid: i32,
    /// `starting`, `running`, `waiting` (for its next start) or `ended`.
    pub state: String,
    /// Exit code, or 128 + signal; absent while it lives.
    pub exit_status: Option<i32>,
    /// `exited`, `signalled`, `timeout`, `stopped`, `out-of-memory`, `process-limit`, `quota`, `spawn-failed` or `lost`;
    /// empty while it lives.
    pub reason: String,
    /// When it was started, microseconds since the epoch.
    pub started: u64,
    /// When it ended, microseconds since the epoch; absent while it lives.
    pub ended: Option<u64>,
    /// How often it was started again, under the same id and into the same log.
    pub restarts: u32,
    /// User that started it.
    pub uid: u32,
    /// Pipeline it is a node of; empty: none.
    pub pipeline: String,
    /// Bytes of output kept in its log; absent where its output went to descriptors of the caller.
    pub log_bytes: Option<u64>,
}

/// A pipeline.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct PipelineInfo {
    /// ULID.
    pub id: String,
    /// Label of the spec.
    pub label: String,
    /// Workspace's name.
    pub workspace: String,
    /// `running` or `ended`.
    pub state: String,
    /// Highest exit status of its nodes; absent while one lives.
    pub exit_status: Option<i32>,
    /// Label, command id and process id of each node.
    pub nodes: Vec<(String, String, i32)>,
    /// Number of tapped edges.
    pub taps: u32,
    /// When it was started, microseconds since the epoch.
    pub started: u64,
    /// User that started it.
    pub uid: u32,
}

/// A tapped edge of a pipeline.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct FlowInfo {
    /// Number of the edge in its pipeline, from 0.
    pub edge: u32,
    /// Pipeline's id.
    pub pipeline: String,
    /// Producer's label.
    pub from: String,
    /// Producer's output.
    pub from_output: String,
    /// Consumer's label.
    pub to: String,
    /// Consumer's input.
    pub to_input: String,
    /// Discerned type, as `Primitive { name: "json" }`; empty before the sample is whole.
    pub ty: String,
    /// MIME type; empty: not known.
    pub mime: String,
    /// Lens for viewing it; empty: none.
    pub lens: String,
    /// Confidence of the discernment, 0 to 1.
    pub confidence: f64,
    /// Bytes that went over the edge.
    pub bytes_total: u64,
    /// Bytes a second: over the last second while it flows, over its whole life once it ended.
    pub bytes_per_sec: f64,
    /// Unix stream socket with the bytes: replay, then live.
    pub socket: String,
    /// Subscribers now.
    pub subscribers: u32,
    /// Subscribers that were cut off because they fell behind.
    pub dropped: u64,
    /// Bytes of the flow, up to then, that those had not been sent.
    pub lost_bytes: u64,
    /// The last 16 of them: process id of who had connected (0: not known), and the bytes that it had not been sent.
    pub cut_off: Vec<(u32, u64)>,
    /// `flowing` or `ended`.
    pub state: String,
}

/// Answer of `Discern`.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DiscernmentInfo {
    /// As `Primitive { name: "json" }`.
    pub ty: String,
    /// 0 to 1.
    pub confidence: f64,
    /// MIME type, where one is known.
    pub mime: Option<String>,
    /// Lens for viewing it, where one fits.
    pub lens: Option<String>,
}

/// Options of `Run`.
#[derive(Debug, Clone, PartialEq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct RunOptions {
    /// Environment, each `KEY=VALUE`.
    pub env: Option<Vec<String>>,
    /// Working folder inside the workspace; default `/work`.
    pub cwd: Option<String>,
    /// Columns and rows: the command gets a terminal of the workspace, whose master is
    /// returned as the second descriptor; no descriptors are handed over then.
    pub terminal: Option<(u16, u16)>,
    /// Milliseconds after which the command is ended; exit status 124.
    pub timeout_ms: Option<u64>,
    /// Refuse to start where a mechanism of isolation is degraded or missing.
    pub strict: Option<bool>,
    /// Label in lists; default the program's name.
    pub label: Option<String>,
    /// Spec (TOML) of the workspace that is made for this command; only where `workspace` is empty.
    pub spec: Option<String>,
    /// Limits of this command (TOML, the keys of a spec's `[soma]`), on top of its workspace's.
    pub soma: Option<String>,
    /// Say what it is refused.
    pub explain: Option<bool>,
    /// Start it again when it fails (TOML, the keys of a spec's `[restart]`; empty: the defaults).
    pub restart: Option<String>,
    /// Keep its standard input open, or its terminal, for `OpenInput`; no descriptors are handed over then.
    pub attachable: Option<bool>,
    /// A command component of the plugin registry instead of a program: `NAME`, `NAME@^1` or `sha256:HEX`; the words
    /// of `argv` are its arguments.
    pub wasm: Option<String>,
    /// Folders of the workspace that the component is given, by absolute path; absent: none.
    pub dirs: Option<Vec<String>>,
}

/// One thing that a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct RefusalInfo {
    /// Name of the system call.
    pub system_call: String,
    /// Path inside the workspace or network address; empty: neither.
    pub object: String,
    /// The error that the command saw, as `EACCES`.
    pub error: String,
    /// `system-call`, `absent`, `read-only`, `permission`, `network`, or `more`: there were more than are told.
    pub why: String,
    /// What would allow it, where anything does.
    pub way_out: String,
}

/// How a command or pipeline ended: one line of JSON on the completion descriptor, then
/// end of file. End of file without a line: the service went away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// ULID of the command or pipeline.
    pub id: String,
    /// Exit code, or 128 + signal.
    pub exit_status: i32,
    /// As in [`CommandInfo::reason`].
    pub reason: String,
    /// What a person should know of it; empty: nothing.
    #[serde(default)]
    pub message: String,
}
