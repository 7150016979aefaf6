//! `org.shipote.Service1`: what every service says of itself, at its root object.

use serde::{Deserialize, Serialize};
use zbus::{DeserializeDict, SerializeDict, Type};

/// Answer of `Health`.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Health {
    /// `running`, or `stopping` once the service has begun to end.
    pub state: String,
    /// Version of the service (`CARGO_PKG_VERSION`).
    pub version: String,
    /// Milliseconds since it became ready.
    pub uptime_ms: u64,
    /// Process id.
    pub pid: u32,
    /// Figures of the service itself, such as `workspaces` or `commands`.
    pub figures: std::collections::BTreeMap<String, u64>,
}

/// One mechanism of confinement: its name, `enforced`, `degraded` or `missing`, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct MechanismInfo {
    /// Name of the mechanism, such as `landlock` or `user-namespace`.
    pub name: String,
    /// `enforced`, `degraded` or `missing`.
    pub state: String,
    /// Why it is not enforced in full, or what exactly is.
    pub reason: String,
}

/// Client of `org.shipote.Service1`. Destination and path are the service's.
#[zbus::proxy(interface = "org.shipote.Service1")]
pub trait Service1 {
    /// State, version, uptime and figures, answered by the service's state actor: an
    /// answer means that the service works, not merely that it is on the bus.
    fn health(&self) -> zbus::Result<Health>;

    /// Version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    /// When it became ready, microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn since(&self) -> zbus::Result<u64>;

    /// How the service itself is confined.
    #[zbus(property(emits_changed_signal = "const"))]
    fn confinement(&self) -> zbus::Result<Vec<MechanismInfo>>;
}
