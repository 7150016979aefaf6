//! Answers the workers' questions for upstreams that are known by name: asks the service that owns the name.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use shipote_bus::workspaces::{ManagerProxy, WorkspacesError};
use shipote_proxy::Ask;
use shipote_rules::UpstreamAddress;
use tokio::sync::{Semaphore, mpsc};
use zbus::proxy::CacheProperties;

/// Questions that are on the bus at once: no service is asked for more than it can answer within a client's patience.
const AT_ONCE: usize = 64;

/// Answers as long as the engine asks.
pub(crate) async fn answer(connection: zbus::Connection, mut asked: mpsc::Receiver<Ask>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(ask) = asked.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Whoever asked may have lost its patience meanwhile.
        if ask.answer.is_closed() {
            continue;
        }
        let connection = connection.clone();
        tokio::spawn(async move {
            let told = connect(&connection, &ask.address).await;
            // It may be gone by now; then the connection is closed again.
            let _ = ask.answer.send(told);
            drop(place);
        });
    }
}

async fn connect(connection: &zbus::Connection, address: &UpstreamAddress) -> Result<OwnedFd, String> {
    let UpstreamAddress::Workspace { name, port } = address else {
        return Err(format!("{address} is no name that the bus knows"));
    };
    let proxy = ManagerProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|e| format!("reach the workspaces service: {e}"))?;
    match proxy.connect(name, *port, BTreeMap::new()).await {
        Ok(socket) => Ok(socket.into()),
        Err(WorkspacesError::ZBus(error)) => Err(shipote_bus::error::describe(&error)),
        Err(error) => Err(zbus::DBusError::description(&error).unwrap_or("refused without a reason").to_owned()),
    }
}
