//! What `org.shipote.Machines1` answers when it refuses. The text is the whole reason, fit to be shown as it is.

/// Errors of `org.shipote.Machines1`.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.shipote.Machines1.Error")]
pub enum MachinesError {
    /// The bus itself failed.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// No machine has this name.
    NoSuchMachine(String),
    /// A machine has this name.
    NameTaken(String),
    /// No snapshot has this name.
    NoSuchSnapshot(String),
    /// The spec cannot be honoured; names the key.
    InvalidSpec(String),
    /// An argument is out of range.
    InvalidArgument(String),
    /// The machine is in a state in which this cannot be done.
    WrongState(String),
    /// The machine sleeps and could not be woken; why.
    WakeFailed(String),
    /// The guest does not take the connection.
    ConnectFailed(String),
    /// It sleeps, and was not to be woken.
    Asleep(String),
    /// A bound of the service is reached.
    LimitReached(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// The audit record cannot be taken and is required.
    AuditUnavailable(String),
    /// Something inside the service failed.
    Failed(String),
}
