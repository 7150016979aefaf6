//! Dictionaries of `org.shipote.Machines1`. Every one may gain keys.

use std::collections::BTreeMap;

use zbus::{DeserializeDict, SerializeDict, Type};

/// A machine, in lists.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct MachineInfo {
    /// Name, unique.
    pub name: String,
    /// `stopped`, `starting`, `running`, `paused`, `sleeping`, `stopping`, `failing` or `failed`.
    pub state: String,
    /// Why it ended last; empty while it runs.
    pub reason: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What of it its guest is asked to make do with now, MiB.
    pub memory_target_mib: u32,
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
    /// When it is ended and removed, seconds since the epoch; 0: never.
    pub expires_unix: u64,
    /// Labels of its spec.
    pub labels: BTreeMap<String, String>,
    /// Seconds in which nobody needed it after which it falls asleep; 0: never.
    pub idle_s: u32,
    /// How often it fell asleep since the service began.
    pub sleeps: u64,
    /// What the last waking took, microseconds.
    pub wake_usec: u64,
    /// Bytes of memory that it gave back when it fell asleep last.
    pub memory_given_back: u64,
}

/// What a machine takes of the host.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct MachineDetails {
    /// Name.
    pub name: String,
    /// As in [`MachineInfo`].
    pub state: String,
    /// Processes of the monitor, the vsock device and what serves volumes; none where it doesn't run.
    pub pids: Vec<i32>,
    /// Memory of the processes, bytes: as their control group counts it, else resident.
    pub memory_bytes: u64,
    /// Memory that its guest has now, bytes, as its balloon says; 0 where it doesn't run.
    pub guest_memory_bytes: u64,
    /// What it is asked to make do with, bytes.
    pub guest_memory_target_bytes: u64,
    /// Processor time of the processes, microseconds.
    pub cpu_usec: u64,
    /// What its spec names and it cannot have at present, with the reason; absent where it has all.
    pub unavailable: Option<Vec<String>>,
    /// How the processes are confined: mechanism, `enforced`, `degraded` or `missing`, reason.
    pub confinement: Vec<(String, String, String)>,
}

/// A snapshot of a machine's disk.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct SnapshotInfo {
    /// Name, unique.
    pub name: String,
    /// Machine that it is of, which may be gone.
    pub machine: String,
    /// Seconds since 1970.
    pub created: u64,
    /// How the disk was: `stopped` (the machine had powered off), `synced` (all written, then held) or `cut` (as after a
    /// power cut).
    pub consistency: String,
    /// The disk's size in MiB.
    pub disk_mib: u32,
    /// What it takes of the host's disk, bytes; what is shared with other copies counts in full.
    pub bytes: u64,
}
