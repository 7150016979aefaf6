//! Dictionaries of `org.shipote.Machines1`. Every one may gain keys.

use zbus::{DeserializeDict, SerializeDict, Type};

/// A machine, in lists.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct MachineInfo {
    /// Name, unique.
    pub name: String,
    /// `stopped`, `starting`, `running`, `paused`, `stopping`, `failing` or `failed`.
    pub state: String,
    /// Why it ended last; empty while it runs.
    pub reason: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Disk in MiB; 0: none.
    pub disk_mib: u32,
    /// What it publishes: `HOST:GUEST` or `GUEST`.
    pub publish: Vec<String>,
    /// `starting`, `healthy` or `unhealthy`; empty where nobody looks.
    pub health: String,
    /// Why it is unhealthy; empty otherwise.
    pub health_reason: String,
}

/// What a machine takes of the host.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct MachineDetails {
    /// Name.
    pub name: String,
    /// As in [`MachineInfo`].
    pub state: String,
    /// The monitor's process and the vsock device's; none where it doesn't run.
    pub pids: Vec<i32>,
    /// Resident memory of the processes, bytes.
    pub memory_bytes: u64,
    /// Processor time of the processes, microseconds.
    pub cpu_usec: u64,
    /// How the processes are confined: mechanism, `enforced`, `degraded` or `missing`, reason.
    pub confinement: Vec<(String, String, String)>,
}
