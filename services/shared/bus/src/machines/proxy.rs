//! Client proxy. The documentation of each method is the interface's own.

use std::collections::BTreeMap;

use zbus::OwnedFd;

use crate::service::MechanismInfo;

use super::{MachineDetails, MachineInfo, MachinesError, SnapshotInfo};

type Options<'a> = BTreeMap<&'a str, zbus::Variant<'a>>;

/// Client of the root object.
#[zbus::proxy(
    interface = "org.shipote.Machines1.Manager",
    default_service = "org.shipote.Machines1",
    default_path = "/org/shipote/Machines1"
)]
pub trait Machines {
    /// See the interface.
    fn create(&self, name: &str, spec: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn start(&self, name: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn stop(&self, name: &str, grace_ms: u64, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn pause(&self, name: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn resume(&self, name: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn inspect(&self, name: &str, options: Options<'_>) -> Result<MachineDetails, MachinesError>;
    /// See the interface.
    fn delete(&self, name: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn list(&self, options: Options<'_>) -> Result<Vec<MachineInfo>, MachinesError>;
    /// See the interface.
    fn snapshot(&self, name: &str, snapshot: &str, options: Options<'_>) -> Result<SnapshotInfo, MachinesError>;
    /// See the interface.
    fn list_snapshots(&self, options: Options<'_>) -> Result<Vec<SnapshotInfo>, MachinesError>;
    /// See the interface.
    fn delete_snapshot(&self, snapshot: &str, options: Options<'_>) -> Result<(), MachinesError>;
    /// See the interface.
    fn connect(&self, name: &str, port: u32, options: Options<'_>) -> Result<OwnedFd, MachinesError>;
    /// See the interface.
    fn reach(&self, name: &str, port: u16, options: Options<'_>) -> Result<OwnedFd, MachinesError>;
    /// See the interface.
    fn capabilities(&self) -> Result<Vec<MechanismInfo>, MachinesError>;
    /// See the interface.
    fn publish(
        &self,
        name: &str,
        add: &[&str],
        remove: &[&str],
        options: Options<'_>,
    ) -> Result<Vec<String>, MachinesError>;
    /// See the interface.
    fn set_memory(&self, name: &str, bytes: u64, options: Options<'_>) -> Result<u64, MachinesError>;
    /// See the interface.
    fn workload_token(&self, name: &str, options: Options<'_>) -> Result<String, MachinesError>;
    /// See the interface.
    fn console(&self, name: &str, options: Options<'_>) -> Result<OwnedFd, MachinesError>;
    /// See the interface.
    #[zbus(signal)]
    fn health_changed(&self, name: String, health: String, reason: String) -> zbus::Result<()>;
    /// See the interface.
    #[zbus(signal)]
    fn state_changed(&self, name: String, state: String, reason: String) -> zbus::Result<()>;
}
