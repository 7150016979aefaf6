//! A place in the rules where a plugin's export is called.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use shipote_bus::proxy::PoolInfo;
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_plugin_abi::policy::{InputLimits, Policy};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};

use super::PluginCode;
use super::host::State;
use super::instances::{self, Live};
use super::latency::Latencies;
use super::linked::Linked;
use super::own::Own;
use super::ticker::Ticker;

/// A call site: linked, and instantiated by each worker when it first calls, or beforehand where all workers share
/// its instances.
pub(crate) struct Site {
    pub(crate) plugin: String,
    pub(crate) digest: String,
    pub(crate) version: String,
    pub(crate) export: String,
    pub(crate) kind: MiddlewareKind,
    pub(crate) needs_body: bool,
    pub(crate) limits: InputLimits,
    /// It keeps something from one call to the next.
    pub(super) stateful: bool,
    pub(super) args: String,
    pub(super) inspects: Vec<String>,
    pub(super) policy: Policy,
    /// Milliseconds.
    pub(super) deadline: u64,
    /// Most instances of a shared pool.
    pub(super) capacity: usize,
    /// The plugins that it calls, where it calls any.
    pub(super) linked: Option<Linked>,
    linked_to: String,
    pub(super) pre: InstancePre<State>,
    pub(super) handle: ComponentExportIndex,
    pub(super) ticker: Arc<Ticker>,
    pub(super) own: Arc<Own>,
    pub(super) pool: Mutex<Vec<Live>>,
    pub(super) alive: AtomicUsize,
    pub(super) busy: AtomicUsize,
    pub(super) allocations: AtomicU64,
    pub(super) calls: AtomicU64,
    /// Instances that did not start.
    pub(super) failures: AtomicU64,
    /// Errors that the plugin answered.
    pub(super) errors: AtomicU64,
    pub(super) exhausted: AtomicU64,
    pub(super) traps: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) out_of_fuel: AtomicU64,
    /// Used by all calls together.
    pub(super) fuel: AtomicU64,
    pub(super) latencies: Latencies,
}

/// What a call site is linked with.
pub(super) struct Ground<'a> {
    pub(super) linker: &'a Linker<State>,
    pub(super) component: &'a Component,
    pub(super) ticker: &'a Arc<Ticker>,
    pub(super) own: Arc<Own>,
    pub(super) linked: Option<Linked>,
}

impl Site {
    pub(super) fn link(
        Ground { linker, component, ticker, own, linked }: Ground<'_>,
        plugin: &PluginCode,
        export: &str,
        args: &str,
    ) -> Result<Arc<Self>, String> {
        let name = &plugin.name;
        let found = plugin.metadata.exports.iter().find(|e| e.name == export).ok_or_else(|| {
            let known: Vec<&str> = plugin.metadata.exports.iter().map(|e| e.name.as_str()).collect();
            format!("plugin {name} has no export {export:?}; it has {}", known.join(", "))
        })?;
        if found.needs_streaming_body {
            return Err(format!("{name}:{export}: a streaming body is not part of this version of the ABI"));
        }
        let handle = component
            .get_export_index(None, found.kind.interface())
            .and_then(|interface| component.get_export_index(Some(&interface), "handle"))
            .ok_or_else(|| format!("{name}: the compiled code has no {}", found.kind.interface()))?;
        let pre = linker.instantiate_pre(component).map_err(|e| format!("{name}: {e:#}"))?;
        let site = Arc::new(Self {
            plugin: name.clone(),
            digest: plugin.digest.clone(),
            version: plugin.metadata.version.clone(),
            export: export.to_owned(),
            kind: found.kind,
            needs_body: found.needs_body,
            limits: plugin.policy.limits.clone(),
            stateful: !found.stateless,
            args: args.to_owned(),
            inspects: found.inspects.clone(),
            deadline: u64::from(plugin.policy.deadline_ms.max(1)),
            capacity: plugin.policy.instances.clamp(1, Policy::INSTANCES_MAX) as usize,
            policy: plugin.policy.clone(),
            linked,
            linked_to: plugin.linked_to(),
            pre,
            handle,
            ticker: Arc::clone(ticker),
            own,
            pool: Mutex::default(),
            alive: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            allocations: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            traps: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            out_of_fuel: AtomicU64::new(0),
            fuel: AtomicU64::new(0),
            latencies: Latencies::default(),
        });
        ticker.expect(site.deadline);
        if let Some(linked) = &site.linked {
            // What does not fit together is to show now, not at the first request.
            drop(linked.load(&site)?);
        }
        if site.is_shared() {
            instances::fill(&site)?;
        }
        Ok(site)
    }

    /// Calls may take longer than a worker can wait.
    pub(crate) fn fetches(&self) -> bool {
        !self.policy.http.allowed_hosts.is_empty()
            && matches!(self.kind, MiddlewareKind::L7Request | MiddlewareKind::L7Response)
    }

    pub(super) fn is_shared(&self) -> bool {
        self.stateful || self.fetches()
    }

    /// Whether linking this call anew would give the same: then it is kept, with all that its instances know.
    pub(crate) fn is_still(&self, plugin: &PluginCode, export: &str, args: &str) -> bool {
        self.plugin == plugin.name
            && self.digest == plugin.digest
            && self.policy == plugin.policy
            && self.linked_to == plugin.linked_to()
            && self.export == export
            && self.args == args
    }

    /// What is known of it; `share` is its part of the calls, in hundredths of a percent.
    pub(super) fn info(&self, share: u32) -> PoolInfo {
        let alive = self.alive.load(Relaxed);
        let free = alive.saturating_sub(self.busy.load(Relaxed));
        PoolInfo {
            kind: if self.stateful { "stateful" } else { "stateless" }.to_owned(),
            key: format!("{}@{}", self.plugin, self.digest),
            version: self.version.clone(),
            share,
            export: self.export.clone(),
            capacity: if self.is_shared() { self.capacity } else { alive } as u64,
            available: free as u64,
            total_allocations: self.allocations.load(Relaxed),
            failures: self.failures.load(Relaxed) + self.exhausted.load(Relaxed),
            calls: self.calls.load(Relaxed),
            errors: self.errors.load(Relaxed),
            traps: self.traps.load(Relaxed),
            timeouts: self.timeouts.load(Relaxed),
            out_of_fuel: self.out_of_fuel.load(Relaxed),
            fuel: self.fuel.load(Relaxed),
            p50_ns: self.latencies.percentile(50),
            p99_ns: self.latencies.percentile(99),
        }
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({}:{})", self.plugin, self.export)
    }
}
