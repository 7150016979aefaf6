//! `org.shipote.Appliance1`: the supervisor on its own bus.

use std::sync::{Arc, Mutex, PoisonError};

use shipote_bus::{
    Service,
    appliance::ServiceStatus,
    names::{APPLIANCE_BUS_NAME, APPLIANCE_PATH},
};
use tokio::sync::mpsc::Sender;
use zbus::{Connection, fdo};

use super::supervisor::Event;

/// What the supervisor last published.
pub(super) type Published = Arc<Mutex<Vec<ServiceStatus>>>;

struct Manager {
    published: Published,
    wishes: Sender<Event>,
}

impl Manager {
    fn published(&self) -> Vec<ServiceStatus> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn wish(&self, event: Event) -> fdo::Result<()> {
        self.wishes.send(event).await.map_err(|_| fdo::Error::Failed("the appliance is stopping".to_owned()))
    }
}

#[zbus::interface(name = "org.shipote.Appliance1.Manager")]
impl Manager {
    /// The services, in the order of their names.
    fn list_services(&self) -> Vec<ServiceStatus> {
        self.published()
    }

    /// Ends a service and starts it again. Answers once the service has been told to end.
    async fn restart_service(&self, name: &str) -> fdo::Result<()> {
        let service: Service =
            name.parse().map_err(|e: shipote_bus::names::UnknownService| fdo::Error::InvalidArgs(e.to_string()))?;
        if !self.published().iter().any(|s| s.name == name) {
            return Err(fdo::Error::InvalidArgs(format!("{name} is not one of this appliance's services")));
        }
        self.wish(Event::Restart(service)).await
    }

    /// Stops the whole appliance, services first, then the bus. Answers at once.
    async fn stop(&self) -> fdo::Result<()> {
        self.wish(Event::Stop).await
    }

    /// The services, in the order of their names.
    #[zbus(property)]
    fn services(&self) -> Vec<ServiceStatus> {
        self.published()
    }
}

/// Connects to the bus and serves the object there.
pub(super) async fn serve(address: String, published: Published, wishes: Sender<Event>) -> zbus::Result<Connection> {
    zbus::connection::Builder::address(shipote_bus::connect::parse(&address)?)
        .serve_at(APPLIANCE_PATH, Manager { published, wishes })
        .name(APPLIANCE_BUS_NAME)
        .build()
        .await
}

/// Tells the bus that the services have changed.
pub(super) async fn changed(connection: Connection) {
    let emitted = async {
        let manager = connection.object_server().interface::<_, Manager>(APPLIANCE_PATH).await?;
        manager.get().await.services_changed(manager.signal_emitter()).await
    };
    // The bus is gone or going; the next connection starts from the published state anyway.
    let _ = emitted.await;
}
