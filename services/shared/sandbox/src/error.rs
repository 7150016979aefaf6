//! What can go wrong with a workspace or a command.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// The step at which a workspace or a command failed to come up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// Making the namespaces.
    Namespaces,
    /// Mapping user and group ids.
    Ids,
    /// Building the root.
    Root,
    /// Mounting one thing in it.
    Mount,
    /// A granted or hidden path.
    Path,
    /// Bringing the network up.
    Network,
    /// Landlock.
    Landlock,
    /// The seccomp filter.
    Seccomp,
    /// Dropping capabilities.
    Capabilities,
    /// A resource limit or the CPU affinity.
    Limits,
    /// The cgroup.
    Cgroup,
    /// Starting a process.
    Process,
    /// The terminal.
    Terminal,
    /// Standard or further descriptors.
    Descriptors,
    /// The working directory.
    Directory,
    /// Executing the program; the way to tell exit status 127 (not found) from 126.
    Exec,
    /// A request that makes no sense, such as an id in use.
    Request,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "make namespaces",
            Self::Ids => "map ids",
            Self::Root => "build root",
            Self::Mount => "mount",
            Self::Path => "grant path",
            Self::Network => "set up network",
            Self::Landlock => "apply landlock",
            Self::Seccomp => "install seccomp filter",
            Self::Capabilities => "drop capabilities",
            Self::Limits => "set limit",
            Self::Cgroup => "enter cgroup",
            Self::Process => "start process",
            Self::Terminal => "open terminal",
            Self::Descriptors => "pass descriptors",
            Self::Directory => "enter directory",
            Self::Exec => "execute",
            Self::Request => "read request",
        })
    }
}

/// A failure as it travels between the processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
    pub(crate) object: String,
}

impl Failure {
    pub(crate) fn new(step: Step, object: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self { step, errno: error.into().raw_os_error().unwrap_or(libc::EIO), object: object.into() }
    }
}

/// A workspace or command that could not be made, or is no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The spawner could not be started.
    #[error("start spawner: {0}")]
    Spawner(io::Error),
    /// The spawner is gone; the service has to be restarted to make workspaces again.
    #[error("ask spawner: {0}; restart the service")]
    SpawnerGone(io::Error),
    /// A step failed, in the keeper or in the command before it ran its program.
    #[error("{step} {object}: {source}")]
    Step {
        /// What was being done.
        step: Step,
        /// To what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A strict workspace could not be made because a mechanism is not fully enforced.
    #[error("make workspace: {0}; allow it without strict, or change the host")]
    Strict(String),
    /// The workspace has ended.
    #[error("the workspace has ended")]
    Ended,
    /// No live command has that id.
    #[error("no command {0} in the workspace")]
    NoSuchCommand(u64),
    /// The specification makes no sense.
    #[error("{0}")]
    Spec(String),
}

impl SandboxError {
    /// The kernel's error number, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Step { source, .. } | Self::Spawner(source) | Self::SpawnerGone(source) => source.raw_os_error(),
            _ => None,
        }
    }

    /// The step that failed, where it was one.
    pub fn step(&self) -> Option<Step> {
        if let Self::Step { step, .. } = self { Some(*step) } else { None }
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        let source = io::Error::from_raw_os_error(failure.errno);
        Self::Step { step: failure.step, object: failure.object, source }
    }
}
