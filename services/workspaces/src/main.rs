//! `shipote-workspaces`: sandboxed commands and pipelines with tapped flows, on the bus.
//!
//! Rooms: `bus/` authorises and converts, `actor` owns the state, `state/` is the pure state
//! machine, `effects/` does the I/O.
#![forbid(unsafe_code)]

mod actor;
mod bus;
mod effects;
mod error;
mod state;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shipote_bus::Service;
use shipote_confinement::Mechanism;
use shipote_sandbox::{Spawner, SpawnerConfig};
use shipote_service::{Context, Definition, Parts, mechanism_info, run};
use tokio::sync::mpsc;

use crate::actor::{Actor, Call, Handle, figures};
use crate::bus::{Doors, Manager, publish};
use crate::effects::{Live, LogStore};

/// Between SIGTERM and SIGKILL when the service stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

struct Workspaces {
    actor: Handle,
}

impl Parts for Workspaces {
    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        self.actor.ask(|state, _| figures(state)).await.map_err(|e| e.to_string())
    }

    /// Commands get their SIGTERM and a moment; what is left ends with the keepers.
    async fn stop(&self) {
        let names = self.actor.ask(|state, _| state.workspaces.keys().map(ToString::to_string).collect::<Vec<_>>());
        let ends = names.await.unwrap_or_default().into_iter().map(|workspace| {
            let actor = self.actor.clone();
            tokio::spawn(async move { actor.call(Call::StopWorkspace { workspace, grace: STOP_GRACE }).await })
        });
        for end in ends.collect::<Vec<_>>() {
            // one that could not be stopped ends with its keeper
            let _ = end.await;
        }
    }
}

/// What must exist before the service confines itself: landlock would forbid it to mount.
struct Early {
    spawner: Spawner,
    probed: Vec<Mechanism>,
}

async fn start(context: Context, early: Early) -> anyhow::Result<Workspaces> {
    let logs = LogStore::open(&context.paths.state).context("open the folder of the commands' logs")?;
    let (inputs, inputs_received) = mpsc::unbounded_channel();
    let (changes, changed) = mpsc::unbounded_channel();
    let live = Live::new(early.spawner, logs.clone(), &context.paths.runtime, inputs.clone(), changes.clone())
        .context("open the folder of the flow sockets")?;
    let (actor, handle) = Actor::new(live, (inputs, inputs_received), changes);
    tokio::spawn(actor.run());
    let doors =
        Doors { actor: handle.clone(), authority: context.authority.clone(), audit: Arc::clone(&context.audit) };
    tokio::spawn(publish(context.connection.clone(), doors.clone(), changed));
    let capabilities = early.probed.iter().map(mechanism_info).collect();
    let manager = Manager { doors, logs, capabilities };
    context.connection.object_server().at(Service::Workspaces.path(), manager).await?;
    Ok(Workspaces { actor: handle })
}

fn main() -> ExitCode {
    let definition = Definition { service: Service::Workspaces, version: env!("CARGO_PKG_VERSION") };
    run(
        definition,
        |_| {
            let probed = shipote_sandbox::probe(SpawnerConfig::default()).context("probe what the host isolates")?;
            let spawner = Spawner::start(SpawnerConfig::default()).context("start the spawner of sandboxes")?;
            Ok(Early { spawner, probed })
        },
        start,
    )
}
