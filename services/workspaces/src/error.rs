//! Why the workspaces service refuses or fails: one enum, turned into a D-Bus error in one
//! place.

use shipote_bus::workspaces::WorkspacesError;

/// A refusal or a failure; the text names operation, object, reason and way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("workspace {0:?} does not exist; `shipote workspace ls` shows those that do")]
    NoSuchWorkspace(String),
    #[error("command {0:?} does not exist; `shipote ps` shows those that do")]
    NoSuchCommand(String),
    #[error("pipeline {0:?} does not exist or has ended; `shipote pipeline ls` shows those that do")]
    NoSuchPipeline(String),
    #[error("saved pipeline {0:?} does not exist; `shipote pipeline saved` shows those that do")]
    NoSuchSavedPipeline(String),
    #[error("create workspace {0:?}: the name is taken by a living workspace; stop it or choose another name")]
    NameTaken(String),
    #[error("{0}")]
    InvalidSpec(String),
    #[error("{0}")]
    InvalidArgument(String),
    #[error("run {program:?}: {reason}")]
    Spawn { kind: SpawnKind, program: String, reason: String },
    #[error("create workspace {name:?}: {reason}")]
    Keeper { name: String, reason: String },
    #[error("create workspace {name:?}: {reason}; drop --strict to run with what the host can do")]
    NotEnforced { name: String, reason: String },
    #[error("{0}")]
    NotAuthorized(String),
    #[error("{0}")]
    WrongState(String),
    #[error("connect to port {port} of workspace {name:?}: {reason}; does its server listen?")]
    Connect { name: String, port: u16, reason: String },
    #[error("workspace {0:?} sleeps")]
    Asleep(String),
    #[error("{0}")]
    LimitReached(String),
    #[error("{0}; the mutation is refused because audit records are required")]
    Audit(String),
    #[error("{0}")]
    Failed(String),
}

/// What a failed start of a program means to its caller: 127, 126 or 125.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SpawnKind {
    NotFound,
    NotExecutable,
    Other,
}

impl From<Error> for WorkspacesError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NoSuchWorkspace(_) => WorkspacesError::NoSuchWorkspace(text),
            Error::NoSuchCommand(_) => WorkspacesError::NoSuchCommand(text),
            Error::NoSuchPipeline(_) | Error::NoSuchSavedPipeline(_) => WorkspacesError::NoSuchPipeline(text),
            Error::NameTaken(_) => WorkspacesError::NameTaken(text),
            Error::InvalidSpec(_) => WorkspacesError::InvalidSpec(text),
            Error::InvalidArgument(_) => WorkspacesError::InvalidArgument(text),
            Error::Spawn { kind: SpawnKind::NotFound, .. } => WorkspacesError::CommandNotFound(text),
            Error::Spawn { kind: SpawnKind::NotExecutable, .. } => WorkspacesError::CommandNotExecutable(text),
            Error::Spawn { kind: SpawnKind::Other, .. } | Error::Keeper { .. } => WorkspacesError::SpawnFailed(text),
            Error::NotEnforced { .. } => WorkspacesError::NotEnforced(text),
            Error::NotAuthorized(_) => WorkspacesError::NotAuthorized(text),
            Error::WrongState(_) => WorkspacesError::WrongState(text),
            Error::Connect { .. } => WorkspacesError::ConnectFailed(text),
            Error::Asleep(_) => WorkspacesError::Asleep(text),
            Error::LimitReached(_) => WorkspacesError::LimitReached(text),
            Error::Audit(_) => WorkspacesError::AuditUnavailable(text),
            Error::Failed(_) => WorkspacesError::Failed(text),
        }
    }
}

impl From<shipote_service::NotAuthorized> for Error {
    fn from(error: shipote_service::NotAuthorized) -> Self {
        Error::NotAuthorized(error.to_string())
    }
}
