//! `shipote-proxy`: the data plane of [`shipote_proxy`] as a service on the bus.
//!
//! Rules are the files of `proxy/rules/` in the configuration folder. They are read at the start, on `Reload` and on
//! SIGHUP (`systemctl reload`); rules that cannot be served are refused and those from before go on.
//!
//! `shipote-proxy acme` is another process, with another user, that fetches certificates ([`certify`]).
#![deny(unsafe_code)]

mod bus;
mod certify;
mod config;
mod doors;
mod names;
mod plugins;
mod programs;
mod remember;
mod sockets;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use shipote_bus::Service;
use shipote_bus::egress::Keeper;
use shipote_bus::paths::ServicePaths;
use shipote_bus::words::counted;
use shipote_proxy::acme::Store;
use shipote_proxy::egress::{Access, Egress};
use shipote_proxy::{Engine, FlowLog, Settings, admin};
use shipote_service::{Context, Definition, Parts, run};

use crate::config::{Configured, FlowLogTo};
use crate::remember::Memory;
use crate::state::State;

struct Proxy {
    state: Arc<State>,
}

impl Parts for Proxy {
    fn judge(paths: &ServicePaths) -> anyhow::Result<()> {
        for (client, way) in &config::load(&paths.config)?.egress {
            Egress::judge(client, &way.allow).with_context(|| format!("[proxy.egress.{client:?}]"))?;
        }
        Ok(())
    }

    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        let engine = &self.state.engine;
        let listeners = engine.with_graph(|g| g.listeners.len()) as u64;
        Ok(BTreeMap::from([("connections".to_owned(), engine.open()), ("listeners".to_owned(), listeners)]))
    }

    async fn reload(&self) -> Result<(), String> {
        self.state.reload().await.map(|_| ()).map_err(|e| e.to_string())
    }

    async fn stop(&self) {
        let left = self.state.engine.drain().await;
        if left > 0 {
            tracing::warn!("still open when the time to drain was up: {}", counted(left, "connection"));
        }
    }
}

async fn start(context: Context, early: Configured) -> anyhow::Result<Proxy> {
    let flow_log = match early.flow_log {
        FlowLogTo::None => None,
        FlowLogTo::Journal => Some(FlowLog::journal().context("start the flow log")?),
        FlowLogTo::File => {
            let path = context.paths.state.join("flows.jsonl");
            Some(FlowLog::file(&path).with_context(|| format!("open the flow log {}", path.display()))?)
        }
    };
    let certs = early.acme.map(|_| Store::new(certs(&context.paths)));
    let settings = Settings { flow_log: flow_log.clone(), acme: certs, ..early.settings };
    let egress =
        Egress::start(&context.paths.runtime.join("egress"), settings.flows, flow_log).context("start egress")?;
    for (client, way) in &early.egress {
        let access = Access { listen: way.listen, users: way.users.clone() };
        egress.set(client, &way.allow, &access).with_context(|| format!("[proxy.egress.{client:?}]"))?;
    }
    let (memory, others) = Memory::restore(context.store.clone(), &egress);
    let inherited = sockets::inherited(others, context.store.clone());
    let engine = Engine::start(settings, inherited).context("start the workers")?;
    let engine = Arc::new(engine);
    let state = Arc::new(State::new(
        Arc::clone(&engine),
        (egress, memory),
        context.connection.clone(),
        context.paths.config.join("proxy"),
    ));
    if let Some(asked) = engine.take_asked() {
        tokio::spawn(names::answer(context.connection.clone(), asked));
    }
    if let Some(starts) = engine.take_starts() {
        tokio::spawn(programs::run(context.connection.clone(), starts));
    }
    if let Some(failed) = engine.take_failed() {
        tokio::spawn(plugins::report(context.connection.clone(), failed));
    }
    // Before rules are loaded, so that no change in the meantime goes unnoticed.
    let news = plugins::listen(&context.connection).await;
    // Rules that are wrong must not keep the service from starting: it is over the bus that they are looked at.
    if let Err(error) = state.reload().await {
        tracing::error!("no rules are served: {error}");
    }
    match news {
        Ok(news) => drop(tokio::spawn(plugins::follow(news, Arc::clone(&state)))),
        Err(e) => tracing::error!("changes of plugins go unnoticed until a reload: {e}"),
    }
    if let Some(news) = state.egress.take_news() {
        tokio::spawn(bus::tell(context.connection.clone(), news));
    }
    for keeper in Keeper::ALL {
        tokio::spawn(doors::follow(context.connection.clone(), Arc::clone(&state), keeper));
    }
    let path = context.paths.runtime.join("admin.sock");
    match admin::bind(&path) {
        Ok(listener) => drop(tokio::spawn(admin::serve(listener, engine))),
        Err(error) => tracing::error!("no figures over HTTP: bind {}: {error}", path.display()),
    }
    let manager = bus::Manager {
        state: Arc::clone(&state),
        authority: context.authority.clone(),
        audit: Arc::clone(&context.audit),
        configuration: Arc::clone(&context.configuration),
    };
    let certificates = bus::Certificates {
        state: Arc::clone(&state),
        authority: context.authority.clone(),
        audit: Arc::clone(&context.audit),
    };
    let egress = bus::Egress {
        state: Arc::clone(&state),
        authority: context.authority.clone(),
        audit: Arc::clone(&context.audit),
    };
    let server = context.connection.object_server();
    server.at(Service::Proxy.path(), manager).await?;
    server.at(Service::Proxy.path(), certificates).await?;
    server.at(Service::Proxy.path(), egress).await?;
    Ok(Proxy { state })
}

/// Where certificates by ACME are: beside the proxy's own folder. Who fetches them writes there, and nobody else.
fn certs(paths: &ServicePaths) -> PathBuf {
    paths.state.with_file_name("acme").join("certs")
}

/// Makes their folder where all services are one user's; else it is there already (tmpfiles.d). What was not there when
/// the service confined itself it could not read later.
fn make_certs(folder: &Path) {
    if let Err(error) = std::fs::create_dir_all(folder) {
        tracing::error!("certificates by ACME cannot be read before a restart: create {}: {error}", folder.display());
    }
}

/// The proxy. Without a command it serves, as its unit runs it
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch the certificates that rules want by ACME: those that are due, or those that are named
    Acme(certify::Asked),
}

fn main() -> ExitCode {
    if let Some(Task::Acme(asked)) = Arguments::parse().task {
        return certify::run(&asked);
    }
    let definition = Definition { service: Service::Proxy, version: env!("CARGO_PKG_VERSION") };
    run(
        definition,
        // What is read before the service confines itself.
        |paths| {
            let configured = config::load(&paths.config)?;
            if configured.acme.is_some() {
                make_certs(&certs(paths));
            }
            Ok(configured)
        },
        start,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_or_refused() {
        let parse = |words: &[&str]| Arguments::try_parse_from([&["shipote-proxy"], words].concat());
        assert!(parse(&[]).unwrap().task.is_none());
        let Some(Task::Acme(asked)) = parse(&["acme", "--now", "A.example"]).unwrap().task else { panic!("no task") };
        assert!(asked.now && asked.names == ["a.example"], "{asked:?}");
        for wrong in [&["acme", "--nwo"][..], &["serve"]] {
            assert!(parse(wrong).unwrap_err().to_string().contains(wrong.last().unwrap()), "{wrong:?}");
        }
    }
}
