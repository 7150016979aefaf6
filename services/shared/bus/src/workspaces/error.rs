//! What `org.shipote.Workspaces1` answers when it refuses. The text is the whole
//! reason, fit to be shown as it is.

/// Errors of `org.shipote.Workspaces1`.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.shipote.Workspaces1.Error")]
pub enum WorkspacesError {
    /// The bus itself failed.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// No workspace has this name or id.
    NoSuchWorkspace(String),
    /// No command has this id.
    NoSuchCommand(String),
    /// No pipeline has this id.
    NoSuchPipeline(String),
    /// A living workspace has this name.
    NameTaken(String),
    /// The spec cannot be honoured; names file, line and key.
    InvalidSpec(String),
    /// An argument is out of range.
    InvalidArgument(String),
    /// The program could not be started; the text names the step.
    SpawnFailed(String),
    /// The program is not in the workspace (`ENOENT`).
    CommandNotFound(String),
    /// The program is there but may not be executed (`EACCES`, `ENOEXEC`).
    CommandNotExecutable(String),
    /// The host cannot isolate as strictly as was asked.
    NotEnforced(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// The object is in a state in which this cannot be done.
    WrongState(String),
    /// Nobody takes the connection at the published port.
    ConnectFailed(String),
    /// It sleeps, and was not to be woken.
    Asleep(String),
    /// A bound of the service is reached.
    LimitReached(String),
    /// The audit record cannot be taken and is required.
    AuditUnavailable(String),
    /// Something inside the service failed.
    Failed(String),
}
