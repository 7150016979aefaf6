//! Plugins from the registry: their code, and word of changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::StreamExt as _;
use rustix::fs::SealFlags;
use shipote_bus::plugins::{PluginManagerProxy, PluginsError};
use shipote_proxy::{PluginCode, PluginLink};
use shipote_rules::{Graph, Middleware};
use zbus::proxy::CacheProperties;

use crate::state::State;

/// Largest compiled code, bytes.
const CODE_MAX: u64 = 256 << 20;

fn names(graph: &Graph) -> BTreeSet<String> {
    let name = |entry: &shipote_rules::MiddlewareEntry| match &entry.middleware {
        Middleware::Plugin { module, .. } => Some(module.clone()),
        _ => None,
    };
    graph.middleware.iter().filter_map(name).collect()
}

/// The code of all plugins that a graph names; the error says which is missing.
pub(crate) async fn fetch(connection: &zbus::Connection, graph: &Graph) -> Result<Vec<PluginCode>, String> {
    let names = names(graph);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let registry = PluginManagerProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|e| format!("reach the plugin registry: {e}"))?;
    let mut codes = Vec::with_capacity(names.len());
    for name in names {
        codes.push(fetch_one(&registry, &name, DEPTH).await?);
    }
    Ok(codes)
}

/// Plugins that call plugins, one below the other.
const DEPTH: usize = 16;

/// A plugin's code, with that of all plugins that it calls.
async fn fetch_one(registry: &PluginManagerProxy<'_>, name: &str, depth: usize) -> Result<PluginCode, String> {
    let (code, info) = registry.open(name, BTreeMap::new()).await.map_err(|e| match e {
        PluginsError::ZBus(e) => format!("open plugin {name:?}: {}", shipote_bus::error::describe(&e)),
        other => {
            let reason = zbus::DBusError::description(&other).unwrap_or("refused without a reason");
            format!("open plugin {name:?}: {reason}")
        }
    })?;
    let code = tokio::task::spawn_blocking(move || read(code.into()))
        .await
        .map_err(|e| format!("read the code of {name:?}: {e}"))?
        .map_err(|e| format!("read the code of {name:?}: {e}"))?;
    let wrong = |what: &str, e: serde_json::Error| format!("plugin {name:?}: the registry's {what}: {e}");
    let mut links = Vec::with_capacity(info.links.len());
    for link in info.links {
        if depth == 0 {
            return Err(format!("plugin {name:?}: more than {DEPTH} plugins that call each other in a row"));
        }
        let mut plugins = Vec::with_capacity(link.plugins.len());
        for provider in link.plugins {
            plugins.push(Box::pin(fetch_one(registry, &provider, depth - 1)).await?);
        }
        let cardinality =
            serde_json::from_value(link.cardinality.into()).map_err(|e| wrong("cardinality of a socket", e))?;
        links.push(PluginLink { interface: link.interface, cardinality, plugins });
    }
    Ok(PluginCode {
        name: name.to_owned(),
        digest: info.digest,
        metadata: serde_json::from_str(&info.metadata).map_err(|e| wrong("metadata", e))?,
        policy: serde_json::from_str(&info.policy).map_err(|e| wrong("policy", e))?,
        links,
        code,
    })
}

/// Reads code, having made sure that nobody can change it any more.
fn read(code: OwnedFd) -> std::io::Result<Vec<u8>> {
    let seals = rustix::fs::fcntl_get_seals(&code)?;
    if !seals.contains(SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW) {
        return Err(std::io::Error::other("it is not sealed"));
    }
    let mut file = File::from(code);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(CODE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Loads the rules again whenever a plugin that they use has another active version.
pub(crate) async fn follow(connection: zbus::Connection, state: Arc<State>) {
    let changes = async {
        PluginManagerProxy::builder(&connection)
            .cache_properties(CacheProperties::No)
            .build()
            .await?
            .receive_changed()
            .await
    };
    let mut changes = match changes.await {
        Ok(changes) => changes,
        Err(e) => return tracing::error!("changes of plugins go unnoticed until a reload: {e}"),
    };
    while let Some(change) = changes.next().await {
        let Ok(change) = change.args() else { continue };
        if !state.engine.with_graph(|graph| names(graph).contains(change.name.as_str())) {
            continue;
        }
        match state.reload().await {
            Ok(_) => tracing::info!("plugin {} {} is in use", change.name, change.version),
            Err(e) => {
                tracing::error!("plugin {} {} is not used, the one before goes on: {e}", change.name, change.version);
            }
        }
    }
}
