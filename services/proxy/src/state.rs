//! The running service: its engine and where its rules come from.

use std::path::{Path, PathBuf};

use shipote_bus::proxy::ProxyError;
use shipote_proxy::Engine;
use shipote_proxy::egress::Egress;
use shipote_rules::{compile, load_dir};
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
    pub(crate) engine: std::sync::Arc<Engine>,
    pub(crate) egress: Egress,
    memory: Memory,
    connection: zbus::Connection,
    dir: PathBuf,
    /// One load at a time: two could otherwise each read an older directory than the other applies.
    loading: Mutex<()>,
}

impl State {
    pub(crate) fn new(
        engine: std::sync::Arc<Engine>,
        (egress, memory): (Egress, Memory),
        connection: zbus::Connection,
        dir: PathBuf,
    ) -> Self {
        Self { engine, egress, memory, connection, dir, loading: Mutex::new(()) }
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
        let compiled = tokio::task::spawn_blocking(move || {
            let sources = if dir.exists() {
                load_dir(&dir).map_err(|e| ProxyError::Unreadable(e.to_string()))?
            } else {
                Vec::new()
            };
            compile(&sources).map_err(|e| ProxyError::InvalidRules(e.to_string()))
        });
        let graph = compiled.await.map_err(|e| ProxyError::Unreadable(format!("compile the rules: {e}")))??;
        let warnings = graph.warnings.clone();
        let mut names: Vec<&str> = graph.listeners.iter().flat_map(|l| l.rules.iter().map(String::as_str)).collect();
        names.sort_unstable();
        names.dedup();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let loaded = Loaded { listeners: count(graph.listeners.len()), rules: count(names.len()), warnings };
        let codes = plugins::fetch(&self.connection, &graph).await.map_err(ProxyError::NotApplied)?;
        self.engine.apply_with(graph, &codes).map_err(|e| ProxyError::NotApplied(e.to_string()))?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        tracing::info!("{} rules on {} listeners", loaded.rules, loaded.listeners);
        Ok(loaded)
    }
}
