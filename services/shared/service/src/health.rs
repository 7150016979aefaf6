//! `org.shipote.Service1`, served at every service's root object.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use shipote_bus::service::{Health, MechanismInfo};
use shipote_confinement::Mechanism;
use zbus::fdo;

use crate::Parts;

/// A mechanism as it goes over the bus.
#[must_use]
pub fn mechanism_info(mechanism: &Mechanism) -> MechanismInfo {
    MechanismInfo { name: mechanism.name.clone(), state: mechanism.state.to_string(), reason: mechanism.reason.clone() }
}

pub(crate) struct HealthInterface<P> {
    pub(crate) parts: Arc<P>,
    pub(crate) version: &'static str,
    pub(crate) started: Instant,
    pub(crate) since: u64,
    pub(crate) confinement: Arc<[Mechanism]>,
}

/// Microseconds since the epoch.
pub(crate) fn now_usec() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

#[zbus::interface(name = "org.shipote.Service1")]
impl<P: Parts> HealthInterface<P> {
    /// State, version, uptime and figures. Answered by the service's state actor: an answer
    /// means that the service works, not merely that it is on the bus.
    async fn health(&self) -> fdo::Result<Health> {
        let figures = self.parts.figures().await.map_err(fdo::Error::Failed)?;
        Ok(Health {
            state: "running".to_owned(),
            version: self.version.to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            pid: std::process::id(),
            figures,
        })
    }

    /// Version of the service.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        self.version.to_owned()
    }

    /// When it became ready, microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn since(&self) -> u64 {
        self.since
    }

    /// How the service itself is confined: name, `enforced`, `degraded` or `missing`, and
    /// the reason.
    #[zbus(property(emits_changed_signal = "const"))]
    fn confinement(&self) -> Vec<MechanismInfo> {
        self.confinement.iter().map(mechanism_info).collect()
    }
}
