//! What happens to machines without anybody's call: told on the bus, and recorded where it is a mutation.

use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::Service;
use shipote_machines::actor::Change;
use shipote_machines::idle::How;
use tokio::sync::mpsc;
use zbus::object_server::SignalEmitter;

use super::{Egress, Manager};

/// Passes changes on to the bus, and those that are nobody's doing to the record, for as long as the actor lives.
pub(crate) async fn publish(
    connection: zbus::Connection,
    audit: Arc<Audit>,
    mut changes: mpsc::UnboundedReceiver<Change>,
) {
    while let Some(change) = changes.recv().await {
        let (shown, health) = match change {
            Change::State(shown) => (shown, false),
            Change::Health(shown) => (shown, true),
            Change::Egress(id) => {
                let told =
                    async { Egress::changed(&SignalEmitter::new(&connection, Service::Machines.path())?, &id).await };
                if let Err(error) = told.await {
                    tracing::warn!("tell the bus that a machine goes out otherwise than before: {error}");
                }
                continue;
            }
            Change::Expired { name, outcome } => {
                record(&audit, Event::MachineDelete, &name, &outcome);
                if let Err(error) = removed(&connection, name).await {
                    tracing::warn!("tell the bus of a machine's end: {error}");
                }
                continue;
            }
            Change::Sleep { name, how, asleep, outcome } => {
                record_sleep(&audit, &name, (how, asleep), &outcome);
                continue;
            }
        };
        let (word, reason) = match &shown.health {
            Some(health_is) if health => (health_is.as_str(), health_is.reason()),
            _ => (shown.word(), shown.reason.as_str()),
        };
        tracing::info!("machine {} is {word}{}{reason}", shown.name, if reason.is_empty() { "" } else { ": " });
        let (name, word, reason) = (shown.name.clone(), word.to_owned(), reason.to_owned());
        let told = async {
            let emitter = SignalEmitter::new(&connection, Service::Machines.path())?;
            if health {
                Manager::health_changed(&emitter, name, word, reason).await
            } else {
                Manager::state_changed(&emitter, name, word, reason).await
            }
        };
        if let Err(error) = told.await {
            tracing::warn!("tell the bus of a machine's state: {error}");
        }
    }
}

/// A machine falls asleep and is woken by what it is asked for: nobody's mutation, but one.
fn record_sleep(audit: &Audit, name: &str, (how, asleep): (How, bool), outcome: &Result<(), String>) {
    let event = match (how, asleep) {
        (How::Pause, true) => Event::MachinePause,
        (How::Pause, false) => Event::MachineResume,
        (How::Stop, true) => Event::MachineStop,
        (How::Stop, false) => Event::MachineStart,
    };
    record(audit, event, name, outcome);
}

fn record(audit: &Audit, event: Event, name: &str, outcome: &Result<(), String>) {
    let own = rustix::process::getuid().as_raw();
    if let Err(error) = audit.record(&Record::new(event, name, own, Door::Itself).outcome(outcome)) {
        tracing::error!("record {event:?} of {name}: {error}");
    }
}

/// Tells that a machine whose time was over is no more.
async fn removed(connection: &zbus::Connection, name: String) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, Service::Machines.path())?;
    Manager::state_changed(&emitter, name, "removed".to_owned(), "its time was over".to_owned()).await
}
