//! `shipote-workspaces`: sandboxed commands and pipelines with tapped flows, on the bus.
//!
//! Rooms: `bus/` and `socket/` are the doors, which authorise and convert, `actor` owns the state, `state/` is the pure state
//! machine, `effects/` does the I/O.
#![forbid(unsafe_code)]

mod actor;
mod allowance;
mod audited;
mod bus;
mod config;
mod effects;
mod error;
mod figures;
mod helper;
mod metrics;
mod protected;
mod relay;
mod request;
mod saved;
mod socket;
mod state;

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shipote_bus::Service;
use shipote_bus::paths::{BUS_ADDRESS_ENV, SOCKET_NAME, ServicePaths};
use shipote_confinement::Mechanism;
use shipote_metrics::Bound;
use shipote_sandbox::{Spawner, SpawnerConfig};
use shipote_service::{Context, Definition, Parts, mechanism_info, run};
use tokio::sync::mpsc;
use ulid::Ulid;

use crate::actor::{Actor, Call, Handle, figures};
use crate::allowance::Allowance;
use crate::bus::{Doors, Egress, Figures, Manager, SavedPipelines, publish};
use crate::config::Section;
use crate::effects::{Ahead, Cgroups, Foreigners, Journal, KeptFolders, Live, LogStore, Means, Runner};
use crate::figures::{Meter, run_sampler};
use crate::protected::Protected;
use crate::saved::Saved;
use crate::socket::{Door, Taken};
use crate::state::State;

/// Between SIGTERM and SIGKILL when the service stops.
const STOP_GRACE: Duration = Duration::from_secs(2);

struct Workspaces {
    actor: Handle,
    ahead: Ahead,
    cgroups: Cgroups,
    /// The workspace socket, ours as long as the service lives.
    _socket: Taken,
    /// Workspaces go on without us.
    outlived: bool,
}

impl Parts for Workspaces {
    fn judge(paths: &ServicePaths) -> anyhow::Result<()> {
        Section::load(&paths.config)?.admin(paths).context("workspaces.admin")?;
        Ok(())
    }

    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        self.actor.ask(|state, _| figures(state)).await.map_err(|e| e.to_string())
    }

    /// Where the service manager keeps our connections nothing is ended here: whether this is a restart, only the
    /// manager knows. If it is none it closes what it keeps, and each keeper gives its commands their SIGTERM and a
    /// moment. Without a store they get that from here.
    async fn stop(&self) {
        self.ahead.close().await;
        if self.outlived {
            return;
        }
        let names = self.actor.ask(|state, _| state.workspaces.keys().map(ToString::to_string).collect::<Vec<_>>());
        let ends = names.await.unwrap_or_default().into_iter().map(|workspace| {
            let actor = self.actor.clone();
            tokio::spawn(async move { actor.call(Call::StopWorkspace { workspace, grace: STOP_GRACE }).await })
        });
        for end in ends.collect::<Vec<_>>() {
            // one that could not be stopped ends with its keeper
            let _ = end.await;
        }
        self.cgroups.close();
    }
}

/// What must exist before the service confines itself: landlock would forbid it to mount.
struct Early {
    cgroups: Cgroups,
    allowance: Allowance,
    spawner: Spawner,
    probed: Vec<Mechanism>,
    /// What stands in for components and programs of machines; landlock would forbid it to be opened.
    runner: Runner,
    /// The admin page; landlock would forbid it a port.
    admin: Option<Bound>,
}

async fn start(context: Context, early: Early) -> anyhow::Result<Workspaces> {
    let embedded = std::env::var_os(BUS_ADDRESS_ENV).is_some();
    // first: what follows clears away what an earlier instance left, which must not be a living one's
    let handed = context.store.take_listener(SOCKET_NAME);
    let mut socket = Taken::take(&context.paths.runtime, embedded, handed).context("take the workspace socket")?;
    let saved = Saved::open(&context.paths.state).context("open the saved pipelines")?;
    let logs = LogStore::open(&context.paths.state).context("open the folder of the commands' logs")?;
    let (inputs, inputs_received) = mpsc::unbounded_channel();
    let (changes, changed) = mpsc::unbounded_channel();
    let protected = Protected::new(&context.paths);
    let (journal, records) = Journal::open(&context.paths.state).context("open the journal")?;
    let state = State::restore(records);
    let meter = Meter::open(&context.paths.state).context("open the folder of the histories")?;
    let folders = KeptFolders::open(&context.paths.state).context("open the folder of what workspaces leave")?;
    let means = Means {
        spawner: early.spawner,
        store: context.store.clone(),
        journal,
        cgroups: early.cgroups.clone(),
        meter: meter.clone(),
        logs: logs.clone(),
        runtime: context.paths.runtime.clone(),
        protected: protected.clone(),
        folders,
        foreigners: Foreigners::new(context.connection.clone(), early.runner),
        inputs: inputs.clone(),
        changes: changes.clone(),
    };
    let (live, survivors) = Live::resume(means, &state).await.context("take over what lived on")?;
    let living: HashSet<Ulid> = survivors.workspaces.keys().copied().collect();
    meter.clear_except(&living);
    let groups = early.cgroups.clone();
    tokio::task::spawn_blocking(move || groups.clear_except(&living)).await?;
    let sampler_inputs = inputs.clone();
    let (flow_news, explanations, attachments) = (live.flow_news(), live.explanations(), live.attachments());
    let ahead = live.ahead();
    let (actor, handle) = Actor::new(live, (inputs, inputs_received), changes, state);
    tokio::spawn(actor.run(survivors));
    tokio::spawn(run_sampler(meter.clone(), handle.clone(), sampler_inputs));
    let doors =
        Doors { actor: handle.clone(), authority: context.authority.clone(), audit: Arc::clone(&context.audit) };
    tokio::spawn(publish(context.connection.clone(), doors.clone(), changed));
    let capabilities: Vec<_> = early.probed.iter().map(mechanism_info).collect();
    let door = Door {
        actor: handle.clone(),
        audit: Arc::clone(&context.audit),
        logs: logs.clone(),
        meter: meter.clone(),
        saved: saved.clone(),
        protected: protected.clone(),
        allowance: early.allowance,
        capabilities: capabilities.clone(),
        flow_news,
        started: Instant::now(),
    };
    let listener = socket.listener().context("serve the workspace socket")?;
    tokio::spawn(socket::serve(Arc::new(door), listener, embedded));
    let manager =
        Manager { doors, logs, explanations, attachments, capabilities, protected, allowance: early.allowance };
    if let Some(admin) = early.admin {
        let (actor, meter) = (handle.clone(), meter.clone());
        tokio::spawn(async move {
            let page = move || metrics::page(actor.clone(), meter.clone());
            if let Err(error) = shipote_metrics::serve(admin, page).await {
                tracing::warn!("serve the admin page: {error}");
            }
        });
    }
    let server = context.connection.object_server();
    server.at(Service::Workspaces.path(), Egress { doors: manager.doors.clone() }).await?;
    server.at(Service::Workspaces.path(), Figures { doors: manager.doors.clone(), meter }).await?;
    server.at(Service::Workspaces.path(), SavedPipelines { doors: manager.doors.clone(), saved }).await?;
    server.at(Service::Workspaces.path(), manager).await?;
    let outlived = context.store.is_available();
    Ok(Workspaces { actor: handle, ahead, cgroups: early.cgroups, _socket: socket, outlived })
}

fn main() -> ExitCode {
    let definition = Definition { service: Service::Workspaces, version: env!("CARGO_PKG_VERSION") };
    run(
        definition,
        |paths| {
            let section = Section::load(&paths.config).context("read the configuration")?;
            let admin = section.admin(paths).context("read the configuration: workspaces.admin")?;
            let cgroups = Cgroups::open(&paths.runtime, Allowance::of_user(&section));
            let mut probed =
                shipote_sandbox::probe(SpawnerConfig::default()).context("probe what the host isolates")?;
            if let Some(known) = probed.iter_mut().find(|m| m.name == "cgroup") {
                *known = cgroups.mechanism();
            }
            let spawner = Spawner::start_with(SpawnerConfig::default(), helper::help)
                .context("start the spawner of sandboxes")?;
            // after the fork: it is not the spawner's
            let admin = admin.bind().unwrap_or_else(|error| {
                tracing::warn!("{error}; the figures are on the bus only");
                None
            });
            let (allowance, runner) = (Allowance::new(&section, &cgroups), Runner::find());
            Ok(Early { allowance, cgroups, spawner, probed, runner, admin })
        },
        start,
    )
}
