//! The scaffold every Shipote service stands on: logging, confinement, bus, readiness,
//! watchdog, reload and graceful stop.
//!
//! A service's `main` is one call of [`run`]: what must happen before confinement goes
//! into `early`, what serves the bus into `start`. The scaffold knows no service: it gets
//! a [`Definition`] and something that implements [`Parts`].
//!
//! Invariant: the order. Early work, then confinement, then the runtime's first thread;
//! every object is served before the bus name is taken; readiness is said last; the
//! watchdog is pinged only after the state actor has answered.
mod authority;
mod configuration;
mod confine;
mod health;
mod lifecycle;
mod logging;
mod store;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use shipote_audit::Audit;
use shipote_bus::Service;
use shipote_bus::paths::ServicePaths;
use shipote_confinement::Mechanism;

pub use authority::{Authority, Caller, NotAuthorized};
pub use configuration::Configuration;
pub use health::mechanism_info;
pub use store::FdStore;

/// What the scaffold must know of a service before it starts.
#[derive(Debug, Clone, Copy)]
pub struct Definition {
    /// Which service.
    pub service: Service,
    /// `CARGO_PKG_VERSION` of the service.
    pub version: &'static str,
}

/// What `start` gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// Bus connection, without the service's name yet: serve the objects on it.
    pub connection: zbus::Connection,
    /// Folders.
    pub paths: ServicePaths,
    /// How this process is confined.
    pub confinement: Arc<[Mechanism]>,
    /// Who may do what.
    pub authority: Authority,
    /// Where mutations are recorded.
    pub audit: Arc<Audit>,
    /// Descriptors that outlive this process.
    pub store: FdStore,
    /// The settings of the start, and what the files say since.
    pub configuration: Arc<Configuration>,
}

/// What the scaffold asks a running service for.
pub trait Parts: Send + Sync + 'static {
    /// Judges the configuration files as a start would, and applies nothing: a reload is refused where this fails. There is no
    /// default, so that no service forgets the keys that it does not know. Blocking.
    ///
    /// # Errors
    /// What keeps a start from being made with them.
    fn judge(paths: &ServicePaths) -> anyhow::Result<()>;

    /// Figures for `Health`, answered by the state actor itself: the watchdog relies on it.
    fn figures(&self) -> impl Future<Output = Result<BTreeMap<String, u64>, String>> + Send;

    /// Reads anew what may change while the service runs (rules, policies); what is running goes on. Only called where the
    /// configuration was judged to be good.
    fn reload(&self) -> impl Future<Output = Result<(), String>> + Send {
        async { Ok(()) }
    }

    /// Ends what must not outlive the service.
    fn stop(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Runs a service until it is told to stop. Call it from `main`, before any thread exists:
/// confinement binds the calling thread and what it starts.
///
/// `early` runs unconfined and gets the folders; `start` runs in the runtime, confined.
pub fn run<E, P, F, R>(definition: Definition, early: E, start: F) -> ExitCode
where
    E: FnOnce(&ServicePaths) -> anyhow::Result<R>,
    F: AsyncFnOnce(Context, R) -> anyhow::Result<P>,
    P: Parts,
{
    run_with(definition, early, |_| vec![], start)
}

/// Runs a piece of work that belongs to a service and ends, in the same order: `early` unconfined, then confined by
/// `policies/landlock/<name>.toml`, then `work` with a connection to the bus. `binary` is what its log is found by.
pub fn once<E, W, R>(name: &str, binary: &str, early: E, work: W) -> ExitCode
where
    E: FnOnce(&ServicePaths) -> anyhow::Result<R>,
    W: AsyncFnOnce(zbus::Connection, ServicePaths, R) -> anyhow::Result<()>,
{
    logging::init(binary);
    ended(binary, lifecycle::once(name, early, work))
}

/// As [`run`], for a service that may write to more folders than its policy says: those that `folders` takes from what
/// `early` found in the configuration.
pub fn run_with<E, G, P, F, R>(definition: Definition, early: E, folders: G, start: F) -> ExitCode
where
    E: FnOnce(&ServicePaths) -> anyhow::Result<R>,
    G: FnOnce(&R) -> Vec<PathBuf>,
    F: AsyncFnOnce(Context, R) -> anyhow::Result<P>,
    P: Parts,
{
    logging::init(definition.service.binary());
    ended(definition.service.binary(), lifecycle::run(definition, early, folders, start))
}

fn ended(binary: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{binary}: {}", shipote_bus::error::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
