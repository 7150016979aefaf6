//! What `shipote-runner` is told: the job of a command that is no program of its workspace but a WASI component, a filter
//! component or a command in a machine.
//!
//! For the workspaces service, which writes jobs, and the runner, which reads them. Not for deciding who may run what.
//!
//! The runner is started inside the workspace like every other command: same namespaces, same limits, same standard
//! descriptors. It has two descriptors more, because nothing of it lies in the workspace's root: [`PROGRAM`], its own
//! program, and [`GIVEN`], what the job is about: compiled code in a sealed memfd, or a connection to a machine's agent.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Descriptor of the runner's own program.
pub const PROGRAM: i32 = 3;
/// Descriptor of what the job is about.
pub const GIVEN: i32 = 4;
/// Path by which the runner is executed.
pub const PROGRAM_PATH: &str = "/proc/self/fd/3";
/// Name of the runner's binary; it lies beside the services'.
pub const BINARY: &str = "shipote-runner";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// Run a command component (`wasi:cli/run@0.2`); [`GIVEN`] is its compiled code.
    Component(Component),
    /// Pass standard input through a filter component (`shipote:filter@0.1.0`) to standard output; [`GIVEN`] is its
    /// compiled code.
    Filter(Filter),
    /// Run a command in a machine; [`GIVEN`] is a greeted connection to port 6000 of its agent.
    Machine(MachineCommand),
}

/// A command component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Name for messages, also the first of its arguments.
    pub name: String,
    /// Arguments behind the name.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Folders of the workspace that it is given, under their own paths; none: no file at all.
    pub dirs: Vec<String>,
    /// Bytes of memory that it may have.
    pub memory_bytes: u64,
    /// Fuel for all that it does, as its policy gives it; 0: none is counted.
    pub fuel: u64,
}

/// A filter component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Name for messages.
    pub name: String,
    /// Arguments of `start`.
    pub args: Vec<String>,
    /// Bytes of memory that it may have.
    pub memory_bytes: u64,
    /// Milliseconds that a call may take.
    pub deadline_ms: u64,
    /// Fuel for a call, as its policy gives it; 0: none is counted.
    pub fuel: u64,
}

/// A command in a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineCommand {
    /// The machine's name, for messages.
    pub machine: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment beside the machine's own.
    pub env: Vec<(String, String)>,
    /// Image of the machine to run it in; absent: the agent's own root.
    pub image: Option<String>,
}

impl Job {
    /// The runner's one argument.
    #[must_use]
    pub fn to_argument(&self) -> String {
        // strings, numbers and lists of them always have a JSON form
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`Job::to_argument`] wrote.
    ///
    /// # Errors
    /// Where it is something else, with the place in the text.
    pub fn from_argument(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_read_as_it_was_written() {
        let machine = MachineCommand {
            machine: "db".to_owned(),
            command: vec!["sh".to_owned(), "-c".to_owned(), "echo \"é\"".to_owned()],
            env: vec![("A".to_owned(), "b=c".to_owned())],
            image: None,
        };
        let job = Job::Machine(machine);
        assert_eq!(Job::from_argument(&job.to_argument()).unwrap(), job);
        assert!(Job::from_argument("{\"rm\": {}}").is_err());
    }
}
