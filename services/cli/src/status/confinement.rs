//! What a service says of itself: its version, and how it is confined.

use std::time::Duration;

use serde::Serialize;
use shipote_bus::{Service, service::Service1Proxy};
use zbus::{Connection, proxy::CacheProperties};

use super::ServiceLine;

/// A service that takes longer is shown as not answering.
const ANSWER: Duration = Duration::from_secs(2);

/// One mechanism.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) mechanism: String,
    /// `enforced`, `degraded` or `missing`.
    pub(super) state: String,
    pub(super) reason: String,
}

/// Adds to a running service's line what the service says; a service that does not answer is said to be such.
pub(super) async fn complete(bus: &Connection, line: &mut ServiceLine) {
    let Ok(service) = line.name.parse::<Service>() else { return };
    if line.state != "running" {
        return;
    }
    let asked = async {
        let proxy = Service1Proxy::builder(bus)
            .destination(service.bus_name())
            .path(service.path())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        proxy.health().await?;
        Ok::<_, zbus::Error>((proxy.version().await?, proxy.confinement().await?))
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok((version, confinement))) => {
            line.version = Some(version);
            line.confinement =
                confinement.into_iter().map(|m| Line { mechanism: m.name, state: m.state, reason: m.reason }).collect();
        }
        Ok(Err(error)) => line.status = format!("does not answer: {}", shipote_bus::error::describe(&error)),
        Err(_) => line.status = format!("has not answered within {} s", ANSWER.as_secs()),
    }
}
