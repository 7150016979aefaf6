//! The running service: its engine and where its rules come from.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use shipote_bus::proxy::ProxyError;
use shipote_bus::words::counted;
use shipote_proxy::Engine;
use shipote_proxy::egress::Egress;
use shipote_rules::{Graph, compile_with_pauses, load_dir};
use tokio::sync::Mutex;

use crate::plugins;
use crate::remember::Memory;

/// What a load came to.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) listeners: u32,
    pub(crate) rules: u32,
    pub(crate) warnings: Vec<String>,
}

pub(crate) struct State {
    pub(crate) engine: Arc<Engine>,
    pub(crate) egress: Egress,
    memory: Memory,
    connection: zbus::Connection,
    dir: PathBuf,
    /// One load at a time: two could otherwise each read an older directory than the other applies.
    loading: Mutex<()>,
    /// The rules that were read last are not served, as a plugin could not be had or did not fit.
    lacks: AtomicBool,
}

impl State {
    pub(crate) fn new(
        engine: Arc<Engine>,
        (egress, memory): (Egress, Memory),
        connection: zbus::Connection,
        dir: PathBuf,
    ) -> Self {
        Self { engine, egress, memory, connection, dir, loading: Mutex::new(()), lacks: AtomicBool::new(false) }
    }

    /// Whether the rules that were read last are not served, which another plugin may change.
    pub(crate) fn lacks(&self) -> bool {
        self.lacks.load(Relaxed)
    }

    /// What was set over the bus is to outlive this instance.
    pub(crate) fn remember(&self) {
        self.memory.keep(&self.egress);
    }

    /// The folder whose `rules/` is read.
    pub(crate) fn rules_dir(&self) -> &Path {
        &self.dir
    }

    /// Reads, compiles and applies the rules; on any error those from before go on. A folder that is not there has no
    /// rules.
    pub(crate) async fn reload(&self) -> Result<Loaded, ProxyError> {
        let _one = self.loading.lock().await;
        let dir = self.dir.clone();
        let graph = in_background(move || {
            let sources = if dir.exists() {
                load_dir(&dir).map_err(|e| ProxyError::Unreadable(e.to_string()))?
            } else {
                Vec::new()
            };
            compile_with_pauses(&sources, &take_turns()).map_err(|e| ProxyError::InvalidRules(e.to_string()))
        })
        .await??;
        let warnings = graph.warnings.clone();
        let mut names: Vec<&str> = graph.listeners.iter().flat_map(|l| l.rules.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let loaded = Loaded { listeners: count(graph.listeners.len()), rules: count(names.len()), warnings };
        self.lacks.store(true, Relaxed);
        self.apply(graph).await?;
        self.lacks.store(false, Relaxed);
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!("{} on {}", counted(loaded.rules, "rule"), counted(loaded.listeners, "listener"));
        Ok(loaded)
    }

    /// Reads the certificates anew; the rules stay as they are.
    pub(crate) async fn read_certificates(&self) -> Result<(), ProxyError> {
        let _one = self.loading.lock().await;
        self.apply(self.engine.with_graph(Graph::clone)).await
    }

    async fn apply(&self, graph: Graph) -> Result<(), ProxyError> {
        let codes = plugins::fetch(&self.connection, &graph).await.map_err(ProxyError::NotApplied)?;
        let engine = Arc::clone(&self.engine);
        in_background(move || engine.apply_with(graph, &codes).map_err(|e| ProxyError::NotApplied(e.to_string())))
            .await?
    }
}

/// After how long a load of rules lets others have the processor, between two rules. By itself the kernel may leave it there
/// until its next tick, 4 ms at 250 Hz, and the requests that wait meanwhile are the slowest of all.
const TURN: Duration = Duration::from_micros(250);

/// Lets others have the processor whenever a turn is over.
fn take_turns() -> impl Fn() {
    let begun = Cell::new(Instant::now());
    move || {
        if begun.get().elapsed() >= TURN {
            std::thread::yield_now();
            begun.set(Instant::now());
        }
    }
}

/// Does work on a thread of its own.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ProxyError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ProxyError::Unreadable(format!("load the rules: {e}")))
}
