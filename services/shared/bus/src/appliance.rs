//! `org.shipote.Appliance1`: what the supervisor of the embedded appliance (`shipote up`) says of the services that
//! it runs. On a host with systemd there is no such object: there, systemd answers the same questions.

use zbus::{DeserializeDict, SerializeDict, Type};

/// Interface at [`crate::names::APPLIANCE_PATH`].
pub const MANAGER_INTERFACE: &str = "org.shipote.Appliance1.Manager";

/// One service under the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Default, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ServiceStatus {
    /// Short name: `workspaces`.
    pub name: String,
    /// Process id; 0 while there is no process.
    pub pid: u32,
    /// `starting`, `running`, `stopping`, `failed` (it will be started again) or `stopped`.
    pub state: String,
    /// When that state began, microseconds since the epoch.
    pub since: u64,
    /// How often the supervisor started it again.
    pub restarts: u32,
    /// What the service last said of itself (`STATUS=`, sd_notify(3)), or why it failed.
    pub status: String,
}

/// Client of the supervisor.
#[zbus::proxy(
    interface = "org.shipote.Appliance1.Manager",
    default_service = "org.shipote.Appliance1",
    default_path = "/org/shipote/Appliance1"
)]
pub trait Appliance1 {
    /// The services, in the order of their names.
    fn list_services(&self) -> zbus::Result<Vec<ServiceStatus>>;

    /// Ends a service and starts it again. Answers once the service has been told to end.
    fn restart_service(&self, name: &str) -> zbus::Result<()>;

    /// Stops the whole appliance, services first, then the bus. Answers at once.
    fn stop(&self) -> zbus::Result<()>;

    /// The same as [`list_services`](Self::list_services), with change signals.
    #[zbus(property)]
    fn services(&self) -> zbus::Result<Vec<ServiceStatus>>;
}
