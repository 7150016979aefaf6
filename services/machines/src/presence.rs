//! Whether another service is on the bus, as it comes and goes.

use futures_util::StreamExt as _;
use shipote_bus::Service;
use tokio::sync::watch;

/// Follows a service for as long as anybody looks; it is away until it has been found.
pub(crate) fn watch(connection: zbus::Connection, service: Service) -> watch::Receiver<bool> {
    let (there, told) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            followed = follow(&connection, service, &there) => if let Err(error) = followed {
                tracing::error!("see whether {} is on the bus: {error}", service.bus_name());
            },
            () = there.closed() => {}
        }
    });
    told
}

async fn follow(connection: &zbus::Connection, service: Service, there: &watch::Sender<bool>) -> zbus::Result<()> {
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    // Listened for before it is asked for, so that nothing is missed in between.
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, service.bus_name())]).await?;
    there.send_replace(bus.name_has_owner(service.bus_name().try_into()?).await?);
    while let Some(change) = owners.next().await {
        there.send_replace(change.args()?.new_owner.is_some());
    }
    Ok(())
}
