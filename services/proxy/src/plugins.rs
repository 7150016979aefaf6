//! Plugins from the registry: their code, and word of changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::StreamExt as _;
use rustix::fs::SealFlags;
use shipote_bus::plugins::{Changed, ChangedStream, OpenInfo, PluginManagerProxy, PluginsError};
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::{CanaryFailed, PluginCanary, PluginCode, PluginLink};
use shipote_rules::{Graph, Middleware};
use tokio::sync::mpsc::UnboundedReceiver;
use zbus::fdo::{DBusProxy, NameOwnerChanged, NameOwnerChangedStream};
use zbus::proxy::CacheProperties;

use crate::state::State;

/// Largest compiled code, bytes.
const CODE_MAX: u64 = 256 << 20;

/// The plugins that a graph names, each with the first rule that does so.
fn names(graph: &Graph) -> BTreeMap<&str, &str> {
    let mut names = BTreeMap::new();
    for entry in &graph.middleware {
        if let Middleware::Plugin { module, .. } = &entry.middleware {
            names.entry(module.as_str()).or_insert(entry.rule.as_str());
        }
    }
    names
}

/// The code of all plugins that a graph names; the error says which is missing, and for which rule.
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
    for (name, rule) in names {
        let fetched = fetch_one(&registry, name, name, DEPTH).await;
        let (mut code, info) = fetched.map_err(|e| format!("{}: {e}", graph.whose(rule)))?;
        if !info.canary.is_empty() {
            code.canary = Some(Box::new(fetch_canary(&registry, name, &info, &code.policy).await));
        }
        codes.push(code);
    }
    Ok(codes)
}

/// A plugin's canary; what keeps it from being had is a failure of its own and no one else's.
async fn fetch_canary(registry: &PluginManagerProxy<'_>, name: &str, info: &OpenInfo, usual: &Policy) -> PluginCanary {
    let fetched = fetch_one(registry, name, &format!("{name}@{}", info.canary), DEPTH).await;
    let code = fetched.map(|(code, _)| code);
    PluginCanary {
        version: info.canary.clone(),
        digest: code.as_ref().map(|code| code.digest.clone()).unwrap_or_default(),
        share: info.share,
        since: info.canary_since,
        rules: code.as_ref().map_or_else(|_| usual.canary.clone(), |code| code.policy.canary.clone()),
        code,
    }
}

/// How long a registry that did not answer is left alone, unless it starts anew.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(30);

/// Plugins that call plugins, one below the other.
const DEPTH: usize = 16;

/// A plugin's code, with that of all plugins that it calls. Rules call it `name`.
async fn fetch_one(
    registry: &PluginManagerProxy<'_>,
    name: &str,
    reference: &str,
    depth: usize,
) -> Result<(PluginCode, OpenInfo), String> {
    let (code, mut info) = registry.open(reference, BTreeMap::new()).await.map_err(|e| match e {
        PluginsError::ZBus(e) => format!("open plugin {reference:?}: {}", shipote_bus::error::describe(&e)),
        other => format!("open plugin {reference:?}: {}", said(&other)),
    })?;
    let code = tokio::task::spawn_blocking(move || read(code.into()))
        .await
        .map_err(|e| format!("read the code of {name:?}: {e}"))?
        .map_err(|e| format!("read the code of {name:?}: {e}"))?;
    let wrong = |what: &str, e: serde_json::Error| format!("plugin {name:?}: the registry's {what}: {e}");
    let mut links = Vec::with_capacity(info.links.len());
    for link in std::mem::take(&mut info.links) {
        if depth == 0 {
            return Err(format!("plugin {name:?}: more than {DEPTH} plugins that call each other in a row"));
        }
        let mut plugins = Vec::with_capacity(link.plugins.len());
        for provider in link.plugins {
            plugins.push(Box::pin(fetch_one(registry, &provider, &provider, depth - 1)).await?.0);
        }
        let cardinality =
            serde_json::from_value(link.cardinality.into()).map_err(|e| wrong("cardinality of a socket", e))?;
        links.push(PluginLink { interface: link.interface, cardinality, plugins });
    }
    let plugin = PluginCode {
        name: name.to_owned(),
        digest: info.digest.clone(),
        metadata: serde_json::from_str(&info.metadata).map_err(|e| wrong("metadata", e))?,
        policy: serde_json::from_str(&info.policy).map_err(|e| wrong("policy", e))?,
        links,
        code,
        canary: None,
    };
    Ok((plugin, info))
}

fn said(error: &PluginsError) -> &str {
    zbus::DBusError::description(error).unwrap_or("refused without a reason")
}

/// Tells the registry of canaries that failed. One that cannot be told gets no calls all the same; it is told when the
/// registry is back.
pub(crate) async fn report(connection: zbus::Connection, mut failed: UnboundedReceiver<CanaryFailed>) {
    while let Some(CanaryFailed { plugin, since, reason }) = failed.recv().await {
        if let Err(e) = report_one(&connection, &plugin, since, &reason).await {
            tracing::error!(
                "plugin {plugin}: its canary failed and gets no calls, which the registry does not take: {e}"
            );
        }
    }
}

async fn report_one(connection: &zbus::Connection, plugin: &str, since: u64, reason: &str) -> Result<(), String> {
    let text = |e: &zbus::Error| shipote_bus::error::describe(e);
    let build = PluginManagerProxy::builder(connection).cache_properties(CacheProperties::No).build();
    let registry = build.await.map_err(|e| text(&e))?;
    let bus = DBusProxy::new(connection).await.map_err(|e| text(&e))?;
    // Before the first try, so that no return of the registry goes unnoticed.
    let mut owners = bus
        .receive_name_owner_changed_with_args(&[(0, shipote_bus::Service::Plugins.bus_name())])
        .await
        .map_err(|e| text(&e))?;
    loop {
        match registry.canary_failed(plugin, since, reason).await {
            Ok(_) => return Ok(()),
            Err(PluginsError::ZBus(e)) => {
                tracing::warn!(
                    "plugin {plugin}: tell the registry that its canary failed: {}; again when it is back",
                    text(&e)
                );
            }
            Err(other) => return Err(said(&other).to_owned()),
        }
        let back = async {
            loop {
                let change = owners.next().await.ok_or("the bus is gone")?;
                if change.args().is_ok_and(|change| change.new_owner.is_some()) {
                    return Ok::<(), &str>(());
                }
            }
        };
        // One that hangs and then goes on does not come back by name.
        if let Ok(back) = tokio::time::timeout(AGAIN, back).await {
            back?;
        }
    }
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

/// Word of what changes in the registry.
pub(crate) struct News {
    changes: ChangedStream,
    /// The registry comes and goes.
    owners: NameOwnerChangedStream,
}

/// Listens from now on.
pub(crate) async fn listen(connection: &zbus::Connection) -> zbus::Result<News> {
    let registry = PluginManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let changes = registry.receive_changed().await?;
    let bus = DBusProxy::new(connection).await?;
    let owners = bus.receive_name_owner_changed_with_args(&[(0, shipote_bus::Service::Plugins.bus_name())]).await?;
    Ok(News { changes, owners })
}

/// Loads the rules again whenever a plugin that they use has another active version or policy; and when the registry is
/// back, which may have been ended between a change and its word of it. Rules that were not served for lack of a plugin
/// are tried again each time.
pub(crate) async fn follow(mut news: News, state: Arc<State>) {
    loop {
        let what = tokio::select! {
            change = news.changes.next() => match change.as_ref().map(Changed::args) {
                None => return tracing::error!("changes of plugins go unnoticed until a reload: the bus is gone"),
                Some(Err(_)) => continue,
                Some(Ok(change)) => {
                    let used = state.engine.with_graph(|graph| names(graph).contains_key(change.name.as_str()));
                    (used || state.lacks()).then(|| format!("plugin {} {}", change.name, change.version))
                }
            },
            owner = news.owners.next() => match owner.as_ref().map(NameOwnerChanged::args) {
                None => return tracing::error!("changes of plugins go unnoticed until a reload: the bus is gone"),
                Some(Ok(owner)) if owner.new_owner.is_some() => {
                    let any = state.engine.with_graph(|graph| !names(graph).is_empty());
                    (any || state.lacks()).then(|| "what the registry, which is back, has".to_owned())
                }
                Some(_) => continue,
            },
        };
        let Some(what) = what else { continue };
        match state.reload().await {
            Ok(_) => tracing::info!("{what} is in use"),
            Err(e) => tracing::error!("{what} is not used, the rules before go on: {e}"),
        }
    }
}
