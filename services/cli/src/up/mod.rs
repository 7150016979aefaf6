//! `shipote up`: the embedded appliance, one foreground process that starts a private bus and the services on it.
//!
//! For: running the very binaries that systemd would run, with the very same environment, where there is no systemd or
//! no root. Not for: doing any of the services' work.
//!
//! Invariants: nobody but the calling user gets in (folders of mode 0700, a bus that admits that uid alone); whatever
//! way this process ends, `kill -9` included, the bus and the services end with it; two appliances never share a
//! folder; what a service has stored is kept while it is down and closed once it is stopped for good.
//!
//! `supervisor` decides, `engine` does; the others are one effect each.

mod appliance;
mod bus;
mod engine;
mod folders;
mod log;
mod notify;
mod orphans;
mod process;
mod ready;
mod store;
mod supervisor;
mod terminal;

pub(crate) use folders::config_folder;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use shipote_bus::{Service, paths};

/// How long the last lines may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Arguments of `shipote up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Where state is kept [default: $XDG_STATE_HOME/shipote, else ~/.local/state/shipote]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where sockets are kept [default: $XDG_RUNTIME_DIR/shipote, else /run/user/UID/shipote, else /tmp/shipote-UID]
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// Start only these of workspaces, machines, proxy and plugins
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    services: Vec<Service>,
    /// A service that does not report for so long is killed and started again: 30s, 2m, or seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::units::whole_seconds)]
    watchdog: u32,
    /// How long each service may take to end before it is killed: 30s, 2m, or seconds
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::units::seconds)]
    grace: Duration,
    /// Say how to reach the appliance in one JSON object, before the line `ready`
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: UpArgs) -> Result<ExitCode> {
    let services = if args.services.is_empty() { Service::ALL.to_vec() } else { args.services };
    let binaries = folders::binaries(&services)?;
    let bus = bus::program()?;
    let folders = folders::Folders::prepare(args.state, args.runtime)?;
    let address = paths::embedded_bus_address(&folders.runtime);
    let (log, written) = log::Log::start(folders.state.join("log")).context("start the log")?;
    let ready = ready::Ready { address, json: args.json };
    let limits = supervisor::Limits { watchdog: Duration::from_secs(args.watchdog.into()), grace: args.grace };
    let groups = [Service::Machines, Service::Workspaces]
        .map(|service| shipote_cgroup::Tree::name(&folders.runtime.join(service.name())));
    let outcome = engine::Engine::run(folders, bus, binaries, ready, log, limits).await;
    // A confined service cannot remove the folder of its own control groups.
    groups.iter().for_each(|name| shipote_cgroup::Tree::discard(name));
    // The services are gone, so what they wrote comes to its end; but a terminal may not take it.
    let _ = tokio::time::timeout(LAST_WORDS, written).await;
    match outcome? {
        None => Ok(ExitCode::SUCCESS),
        Some((unit, why)) => bail!(
            "start the appliance: {unit} failed {} times in a row ({why}); the lines above say why",
            supervisor::GIVE_UP
        ),
    }
}
