//! The services of an embedded appliance, from its supervisor.

use std::path::PathBuf;

use anyhow::{Context, Result};
use shipote_bus::{Service, appliance::Appliance1Proxy, connect, paths};
use zbus::{Connection, fdo::DBusProxy};

use super::{ServiceLine, moment};

/// The workspace protocol's socket beside the bus.
pub(super) fn socket() -> PathBuf {
    paths::embedded_socket(&connect::embedded_runtime())
}

pub(super) async fn services(bus: &Connection) -> Result<Vec<ServiceLine>> {
    let supervisor = Appliance1Proxy::new(bus).await?;
    match supervisor.list_services().await {
        Ok(services) => Ok(services
            .into_iter()
            .map(|s| ServiceLine {
                name: s.name,
                pid: (s.pid != 0).then_some(s.pid),
                state: s.state,
                since: moment(s.since),
                restarts: s.restarts,
                status: s.status,
                ..ServiceLine::default()
            })
            .collect()),
        // A bus that somebody else started services on.
        Err(zbus::Error::FDO(e))
            if matches!(*e, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_)) =>
        {
            unsupervised(bus).await
        }
        Err(error) => Err(error).context("ask the appliance for its services; is `shipote up` still starting?"),
    }
}

/// Without a supervisor only the bus knows who is there.
async fn unsupervised(bus: &Connection) -> Result<Vec<ServiceLine>> {
    let driver = DBusProxy::new(bus).await?;
    let mut lines = Vec::new();
    for service in Service::ALL {
        let pid = driver.get_connection_unix_process_id(service.bus_name().try_into()?).await.ok();
        let state = if pid.is_some() { "running" } else { "stopped" }.to_owned();
        lines.push(ServiceLine { name: service.name().to_owned(), pid, state, ..ServiceLine::default() });
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(lines)
}
