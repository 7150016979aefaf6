//! What can go wrong with a machine.

use std::path::PathBuf;

/// Every error names the operation, its object and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No machine has this name.
    #[error("machine {0}: there is none of this name; `shipote machine ls` shows all")]
    NoSuchMachine(String),
    /// A machine has this name already.
    #[error("create machine {0}: the name is taken; choose another or remove that one")]
    NameTaken(String),
    /// No snapshot has this name.
    #[error("snapshot {0}: there is none of this name; `shipote machine snapshot ls` shows all")]
    NoSuchSnapshot(String),
    /// A snapshot has this name already.
    #[error("take snapshot {0}: the name is taken; choose another or remove that one")]
    SnapshotTaken(String),
    /// The spec cannot be honoured.
    #[error("machine {name}: {problem}")]
    InvalidSpec {
        /// Machine.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The machine is in a state in which this cannot be done.
    #[error("{operation} machine {name}: it is {state}")]
    WrongState {
        /// What was asked for.
        operation: &'static str,
        /// Machine.
        name: String,
        /// Its state.
        state: String,
    },
    /// The machine sleeps, and was not to be woken.
    #[error("machine {0} sleeps")]
    Asleep(String),
    /// The machine sleeps and could not be woken, or ended before it ran.
    #[error("wake machine {name}: {reason}")]
    Wake {
        /// Machine.
        name: String,
        /// Why.
        reason: String,
    },
    /// As many machines exist as may.
    #[error("create machine {name}: there are {limit} already, which is the limit; remove one")]
    LimitReached {
        /// Machine.
        name: String,
        /// How many may exist.
        limit: usize,
    },
    /// What machines are started with is not there.
    #[error("find the machines' image: {path} is missing; make it with `cargo xtask image` and name its folder in SHIPOTE_MACHINE_IMAGE", path = .0.display())]
    NoImage(PathBuf),
    /// A folder that no machine may have.
    #[error("share the folder {folder}: no machine may have it; name it, or a folder above it, in `volumes` of section [machines] in shipote.toml (and in the unit's ReadWritePaths=)", folder = .0.display())]
    NotShared(PathBuf),
    /// The guest didn't take a connection.
    #[error("connect to machine {name}, port {port}: {reason}")]
    Connect {
        /// Machine.
        name: String,
        /// Vsock port.
        port: u32,
        /// Why.
        reason: String,
    },
    /// A file or process operation failed.
    #[error("{operation} {object}: {source}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        object: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The service is ending.
    #[error("the machines service is stopping")]
    Stopping,
}

impl Error {
    /// For `map_err`.
    pub fn io(operation: &'static str, object: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Io { operation, object, source }
    }
}
