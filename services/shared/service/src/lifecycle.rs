//! From start to stop, in the order that [`crate`] promises.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use shipote_audit::Audit;
use shipote_bus::paths::{self, ServicePaths};
use shipote_config::{AuditMode, AuditSection};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::configuration::Configuration;
use crate::health::{HealthInterface, now_usec};
use crate::{Authority, Context, Definition, FdStore, Parts, confine};

/// How long the state actor may take to answer the watchdog.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a service may take to end what must not outlive it.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);

pub(crate) fn run<E, G, P, F, R>(definition: Definition, early: E, folders: G, start: F) -> anyhow::Result<()>
where
    E: FnOnce(&ServicePaths) -> anyhow::Result<R>,
    G: FnOnce(&R) -> Vec<PathBuf>,
    F: AsyncFnOnce(Context, R) -> anyhow::Result<P>,
    P: Parts,
{
    let service = definition.service;
    let store = FdStore::inherit();
    let paths = ServicePaths::from_env(service.name());
    for folder in [&paths.state, &paths.runtime] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let prepared = early(&paths)?;
    raise_open_files();
    let confinement: Arc<[_]> = confine::confine(service.name(), &paths, &folders(&prepared))?.into();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let (connection, embedded) = connect().await?;
        let configuration = Arc::new(Configuration::read::<P>(service, &paths)?);
        let audit = Arc::new(open_audit(service, &paths, configuration.audit()));
        let context = Context {
            authority: Authority::new(connection.clone(), embedded, Arc::clone(&audit)),
            audit,
            connection: connection.clone(),
            paths,
            store,
            configuration: Arc::clone(&configuration),
            confinement: Arc::clone(&confinement),
        };
        let parts = Arc::new(start(context, prepared).await?);
        let server = connection.object_server();
        let health = HealthInterface {
            parts: Arc::clone(&parts),
            version: definition.version,
            started: Instant::now(),
            since: now_usec(),
            confinement,
        };
        server.at(service.path(), health).await.context("serve org.shipote.Service1")?;
        server.at(service.path(), zbus::fdo::ObjectManager).await.context("serve the object manager")?;
        connection.request_name(service.bus_name()).await.with_context(|| {
            format!("take the bus name {}; is another {} running?", service.bus_name(), service.binary())
        })?;
        // whoever is ready may be signalled
        let signals = Signals::listen()?;
        notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
        tracing::info!("{} {} serves {}", service.binary(), definition.version, service.bus_name());
        let ended = serve(&connection, parts.as_ref(), &configuration, signals).await;
        notify(&[NotifyState::Stopping]);
        // what hangs here must not keep the service from ending: the manager would kill it
        if tokio::time::timeout(STOP_TIMEOUT, parts.stop()).await.is_err() {
            tracing::error!("stopping took longer than {STOP_TIMEOUT:?}; what is left ends with the process");
        }
        ended
    });
    runtime.shutdown_background();
    ended
}

/// What [`crate::once`] does.
pub(crate) fn once<E, W, R>(name: &str, early: E, work: W) -> anyhow::Result<()>
where
    E: FnOnce(&ServicePaths) -> anyhow::Result<R>,
    W: AsyncFnOnce(zbus::Connection, ServicePaths, R) -> anyhow::Result<()>,
{
    let paths = ServicePaths::from_env(name);
    let prepared = early(&paths)?;
    confine::confine(name, &paths, &[])?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let (connection, _) = connect().await?;
        work(connection, paths, prepared).await
    });
    runtime.shutdown_background();
    ended
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the tokio runtime")
}

/// Connects to the bus; also whether that is an embedded one.
async fn connect() -> anyhow::Result<(zbus::Connection, bool)> {
    let embedded = std::env::var(paths::BUS_ADDRESS_ENV).ok();
    let builder = match &embedded {
        Some(address) => zbus::connection::Builder::address(
            shipote_bus::connect::parse(address).with_context(|| format!("read the bus address {address}"))?,
        ),
        None => zbus::connection::Builder::system(),
    };
    let connection = builder
        .build()
        .await
        .with_context(|| format!("connect to the bus {}", embedded.as_deref().unwrap_or("of the system")))?;
    Ok((connection, embedded.is_some()))
}

/// What the service manager, or a person, tells a service.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("wait for SIGINT")?,
            hang_up: signal(SignalKind::hangup()).context("wait for SIGHUP")?,
        })
    }
}

async fn serve<P: Parts>(
    connection: &zbus::Connection,
    parts: &P,
    configuration: &Arc<Configuration>,
    mut signals: Signals,
) -> anyhow::Result<()> {
    // half the interval, as sd_watchdog_enabled(3) recommends
    let mut watchdog = sd_notify::watchdog_enabled().map(|every| tokio::time::interval(every / 2));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hang_up.recv() => reload(parts, configuration).await,
            () = connection.closed() => anyhow::bail!("the bus closed the connection"),
            () = async { match &mut watchdog { Some(w) => { w.tick().await; } None => pending().await } } => {
                match tokio::time::timeout(ANSWER_TIMEOUT, parts.figures()).await {
                    Ok(Ok(_)) => notify(&[NotifyState::Watchdog]),
                    Ok(Err(e)) => tracing::error!("watchdog withheld, the state actor failed: {e}"),
                    Err(_) => tracing::error!("watchdog withheld, the state actor does not answer"),
                }
            }
        }
    }
}

async fn reload<P: Parts>(parts: &P, configuration: &Arc<Configuration>) {
    match NotifyState::monotonic_usec_now() {
        Ok(stamp) => notify(&[NotifyState::Reloading, stamp]),
        Err(e) => tracing::error!("read the monotonic clock for RELOADING=1: {e}"),
    }
    // first: what a start would refuse must not be called reloaded
    let reloaded = match configuration.examine().await {
        Ok(later) => parts.reload().await.map(|()| later),
        Err(refused) => Err(refused),
    };
    // a protocol of lines: what the manager shows is the first one's
    let status = match reloaded {
        Ok(None) => {
            tracing::info!("configuration reloaded");
            "serving".to_owned()
        }
        Ok(Some(later)) => {
            tracing::warn!("configuration reloaded; {later}");
            format!("serving; {later}")
        }
        Err(e) => {
            tracing::error!("reload refused, the configuration from before goes on: {e}");
            format!("serving; the last reload was refused: {}", e.lines().next().unwrap_or_default())
        }
    };
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The soft limit of open files is for programs that use select(2); ours do not
/// (<https://0pointer.net/blog/file-descriptor-limits.html>). What was started early keeps the limit it had.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!("raise the limit of open files to {:?}: {error}", limit.maximum);
    }
}

/// Where records go and whether they are required, from `[audit]` of the configuration.
fn open_audit(service: shipote_bus::Service, paths: &ServicePaths, section: &AuditSection) -> Audit {
    let file = section.file.clone().unwrap_or_else(|| paths.state.join("audit.jsonl"));
    Audit::builder(&file)
        .identifier(service.binary())
        .required(section.mode == AuditMode::Required)
        .sync(section.sync)
        .open()
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("tell the service manager {states:?}: {error}");
    }
}
