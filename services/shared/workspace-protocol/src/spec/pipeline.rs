//! A pipeline.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{SomaSpec, WorkspaceId};

fn backoff() -> u64 {
    200
}

fn max_backoff() -> u64 {
    30_000
}

/// Commands and the flows between them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineSpec {
    /// Name.
    pub label: String,
    /// Where it runs.
    pub workspace: WorkspaceId,
    /// Commands.
    #[serde(default)]
    pub nodes: Vec<CommandRef>,
    /// Pipes between them.
    #[serde(default)]
    pub edges: Vec<FlowEdge>,
    /// How tapped edges are treated.
    #[serde(default)]
    pub discern: DiscernPolicy,
    /// Start it again when all nodes have ended and one failed.
    #[serde(default)]
    pub restart_on_failure: bool,
    /// Milliseconds before the first restart; doubled at each.
    #[serde(default = "backoff")]
    pub restart_backoff_ms: u64,
    /// Milliseconds before a restart at most.
    #[serde(default = "max_backoff")]
    pub restart_max_backoff_ms: u64,
    /// Restarts at most; 0: no limit.
    #[serde(default)]
    pub restart_max: u32,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRef {
    /// Name, unique in the pipeline.
    pub label: String,
    /// What it runs.
    pub payload: Payload,
    /// Limits beside the workspace's.
    #[serde(default)]
    pub soma: SomaSpec,
    /// Inputs and outputs; none declared: `stdin`, `stdout` and `stderr`.
    #[serde(default)]
    pub flows: Flows,
    /// What happens when it ends.
    #[serde(default)]
    pub supervision: Supervision,
}

/// What a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    /// A WebAssembly module.
    Wasm {
        /// Of the module.
        module_sha256: [u8; 32],
        /// Exported function.
        entry: String,
    },
    /// A program.
    Native {
        /// Path, or a name looked up in the workspace's own `PATH`.
        exec: String,
        /// Arguments without the program's name.
        #[serde(default)]
        argv: Vec<String>,
        /// Environment, name and value.
        #[serde(default)]
        envp: Vec<(String, String)>,
    },
    /// Nothing.
    Virtual,
    /// A program that expects services of the system.
    Legacy {
        /// As of `Native`.
        exec: String,
        /// As of `Native`.
        #[serde(default)]
        argv: Vec<String>,
        /// Services that are imitated.
        #[serde(default)]
        fakes: BTreeSet<Fake>,
    },
}

/// A service of the system that is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fake {
    /// `org.freedesktop.login1`.
    SystemdLogind,
    /// `org.freedesktop.hostname1`.
    SystemdHostnamed,
    /// sd_notify(3).
    SystemdNotify,
}

/// What happens when a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervision {
    /// It is started again.
    Restart {
        /// Milliseconds before the first restart.
        initial: u64,
        /// Milliseconds before a restart at most.
        max: u64,
    },
    /// It has ended.
    #[default]
    OneShot,
    /// Somebody else sees to it.
    Delegate,
}

/// Declared inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Flows {
    /// Inputs; the first is standard input, each further one a descriptor that `SHIPOTE_FLOW_NAME` names.
    pub input: Vec<Flow>,
    /// Outputs; the first is standard output, as above.
    pub output: Vec<Flow>,
}

/// A declared input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Name that edges refer to.
    pub name: String,
    /// What its author says of its data; shown where `enrich_producer` is false.
    #[serde(rename = "type")]
    pub ty: TypeRef,
    /// A place that it is bound to.
    #[serde(default)]
    pub pin_to: Option<String>,
}

/// A declared type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TypeRef {
    /// As `json`.
    Primitive {
        /// Which.
        name: String,
    },
    /// A type of a WIT package.
    Wit {
        /// `namespace:name`.
        package: String,
        /// Interface in it.
        #[serde(default)]
        interface: Option<String>,
        /// Type in that.
        name: String,
    },
}

/// A pipe from a node's output to another's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowEdge {
    /// Producer's position, from 0.
    pub from: usize,
    /// Its output.
    #[serde(default = "stdout")]
    pub from_output: String,
    /// Consumer's position, from 0.
    pub to: usize,
    /// Its input.
    #[serde(default = "stdin")]
    pub to_input: String,
}

fn stdout() -> String {
    "stdout".to_owned()
}

fn stdin() -> String {
    "stdin".to_owned()
}

/// How tapped edges are treated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiscernPolicy {
    /// Bytes of the beginning that are looked at.
    pub sample_bytes: usize,
    /// Show what was found as the type of an edge; else what its producer declares.
    pub enrich_producer: bool,
    /// Chunks that a late subscriber still gets.
    pub replay_chunks: usize,
    /// Bytes that a late subscriber still gets; 0: no limit.
    pub replay_bytes: usize,
    /// Rate limit in bytes a second; 0: none.
    pub max_bytes_per_sec: u64,
}

impl Default for DiscernPolicy {
    fn default() -> Self {
        DiscernPolicy {
            sample_bytes: 4096,
            enrich_producer: true,
            replay_chunks: 32,
            replay_bytes: 0,
            max_bytes_per_sec: 0,
        }
    }
}
