//! Dictionaries of `org.shipote.Machines1`. Every one may gain keys.

use zbus::{DeserializeDict, SerializeDict, Type};

/// A machine, in lists.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct MachineInfo {
    /// Name, unique.
    pub name: String,
    /// `stopped`, `starting`, `running`, `stopping`, `failing` or `failed`.
    pub state: String,
    /// Why it ended last; empty while it runs.
    pub reason: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
}
