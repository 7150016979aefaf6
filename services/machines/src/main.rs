//! `shipote-machines`: microVMs, on the bus. The work is done in the library; here is the door.
#![forbid(unsafe_code)]

mod bus;
mod config;
mod presence;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use shipote_bus::Service;
use shipote_bus::paths::{self, ServicePaths};
use shipote_machines::actor::{Handle, Shown};
use shipote_machines::groups::Groups;
use shipote_machines::kept::KeptWays;
use shipote_machines::launcher::{LEASE, Qemu};
use shipote_machines::lifeline::Lifeline;
use shipote_machines::snapshots::Snapshots;
use shipote_machines::store::Store;
use shipote_machines::users::Users;
use shipote_machines::{keeper, take};
use shipote_service::{Context, Definition, Parts, run_with};
use tokio::sync::mpsc;

use crate::bus::{Egress, Manager, publish};
use crate::config::Section;

/// What is done before the service confines itself.
struct Early {
    section: Section,
    groups: Groups,
}

struct Machines {
    actor: Handle,
    /// Somebody else ends the machines once the service is stopped for good.
    leaves: bool,
}

impl Parts for Machines {
    fn judge(paths: &ServicePaths) -> anyhow::Result<()> {
        Section::load(&paths.config).map(drop)
    }

    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        let machines = self.actor.list().await.map_err(|error| error.to_string())?;
        let count = |is: fn(&&Shown) -> bool| machines.iter().filter(is).count() as u64;
        Ok(BTreeMap::from([
            ("machines".to_owned(), machines.len() as u64),
            ("running".to_owned(), count(|machine| machine.state.has_monitor())),
            ("sleeping".to_owned(), count(|machine| machine.word() == "sleeping")),
        ]))
    }

    async fn stop(&self) {
        if self.leaves { self.actor.leave().await } else { self.actor.shut_down().await }
    }
}

async fn start(context: Context, early: Early) -> anyhow::Result<Machines> {
    let (changes, changed) = mpsc::unbounded_channel();
    let snapshots = Snapshots::new(&context.paths.state);
    snapshots.tidy();
    take::tidy(&context.paths.state);
    let mut inherited = context.store.take_inherited().into_iter().collect();
    let ways = KeptWays::new(&context.store, &mut inherited);
    let lifeline = Lifeline::hold(&context.store, &mut inherited).map(Arc::new);
    // What nobody knows need not be kept either.
    inherited.keys().for_each(|name| context.store.forget(name));
    let leaves = lifeline.is_some();
    let start_time = early.section.start_time();
    let launcher = Qemu {
        image: paths::machine_image(),
        runtime: context.paths.runtime.join("machines"),
        state: context.paths.state.clone(),
        // Whatever has been installed in the place of the program since it was started.
        program: "/proc/self/exe".into(),
        lease: LEASE,
        lifeline,
        ways,
        shared: early.section.volumes,
        groups: early.groups,
        users: Users::find(),
        trial: start_time / 12,
        host: Arc::default(),
        proxy: presence::watch(context.connection.clone(), Service::Proxy),
    };
    let store = Store::new(&context.paths.state);
    let actor = Handle::start_with(store, launcher.clone(), changes, start_time).context("load the machines")?;
    tokio::spawn(publish(context.connection.clone(), Arc::clone(&context.audit), changed));
    let manager = Manager {
        snapshots,
        launcher,
        state: context.paths.state.clone(),
        actor: actor.clone(),
        authority: context.authority.clone(),
        audit: Arc::clone(&context.audit),
    };
    let egress =
        Egress { actor: actor.clone(), authority: context.authority.clone(), audit: Arc::clone(&context.audit) };
    let server = context.connection.object_server();
    server.at(Service::Machines.path(), manager).await?;
    server.at(Service::Machines.path(), egress).await?;
    Ok(Machines { actor, leaves })
}

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == keeper::ARGUMENT) {
        return keeper::main();
    }
    let definition = Definition { service: Service::Machines, version: env!("CARGO_PKG_VERSION") };
    let early = |paths: &ServicePaths| {
        let section = Section::load(&paths.config).context("read the configuration")?;
        // First of all that makes processes: this one may be moved to a group of its own.
        Ok(Early { section, groups: Groups::open(&paths.runtime) })
    };
    run_with(definition, early, |early| early.section.volumes.clone(), start)
}
