//! A place in the rules where a plugin's export is called.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use shipote_plugin_abi::metadata::MiddlewareKind;
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use super::PluginCode;
use super::host::{Series, State};
use super::ticker::Ticker;

/// A call site: linked, and instantiated by each worker when it first calls.
pub(crate) struct Site {
    pub(super) plugin: String,
    pub(super) export: String,
    pub(super) args: String,
    pub(super) inspects: Vec<String>,
    /// Milliseconds.
    pub(super) deadline: u64,
    pub(super) memory: usize,
    pub(super) pre: InstancePre<State>,
    pub(super) handle: ComponentExportIndex,
    pub(super) ticker: Arc<Ticker>,
    pub(super) series: Arc<Mutex<Series>>,
    pub(super) calls: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) traps: AtomicU64,
    pub(super) timeouts: AtomicU64,
}

impl Site {
    pub(super) fn link(
        linker: &Linker<State>,
        component: &Component,
        plugin: &PluginCode,
        export: &str,
        args: &str,
        ticker: &Arc<Ticker>,
    ) -> Result<Self, String> {
        let name = &plugin.name;
        let found = plugin.metadata.exports.iter().find(|e| e.name == export).ok_or_else(|| {
            let known: Vec<&str> = plugin.metadata.exports.iter().map(|e| e.name.as_str()).collect();
            format!("plugin {name} has no export {export:?}; it has {}", known.join(", "))
        })?;
        let missing = |what: &str| Err(format!("{name}:{export}: {what} is not built into this version of the proxy"));
        if found.kind != MiddlewareKind::L7Request {
            return missing(&format!("the kind {}", found.kind.name()));
        }
        if !found.stateless {
            return missing("a stateful export");
        }
        if found.needs_body || found.needs_streaming_body {
            return missing("a plugin that reads bodies");
        }
        if !plugin.policy.http.allowed_hosts.is_empty() {
            return missing("http-fetch (the plugin's policy allows hosts)");
        }
        let handle = component
            .get_export_index(None, found.kind.interface())
            .and_then(|interface| component.get_export_index(Some(&interface), "handle"))
            .ok_or_else(|| format!("{name}: the compiled code has no {}", found.kind.interface()))?;
        let pre = linker.instantiate_pre(component).map_err(|e| format!("{name}: {e:#}"))?;
        Ok(Self {
            plugin: name.clone(),
            export: export.to_owned(),
            args: args.to_owned(),
            inspects: found.inspects.clone(),
            deadline: u64::from(plugin.policy.deadline_ms.max(1)),
            memory: usize::try_from(plugin.policy.memory_bytes).unwrap_or(usize::MAX),
            pre,
            handle,
            ticker: Arc::clone(ticker),
            series: Arc::default(),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            traps: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        })
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({}:{})", self.plugin, self.export)
    }
}
