//! Plugins that call other plugins. Each has a store of its own, with its own deadline and memory; what goes wrong in one
//! that is called is a value to its caller. Types are checked when rules are applied, by loading the tree once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shipote_link::{Answers, DispatchError, Failure, Head, Interface, Limits, Plugin, Tree};
use shipote_plugin_abi::metadata::{MiddlewareKind, PluginError};
use shipote_plugin_abi::policy::{Cardinality, Policy};
use wasmtime::Trap;
use wasmtime::component::{Component, ComponentNamedList, Lift, Linker, Lower};

use super::host::State;
use super::own::{Own, Owned};
use super::{PluginCode, Site};

/// Id of the handler's interface in a tree; no package is called like it.
const ROOT: &str = "handler";

/// The engine for such plugins, apart from the other's, as it has a clock of its own.
#[derive(Clone)]
pub(super) struct Linking {
    runtime: shipote_link::Runtime,
    linker: Linker<shipote_link::State<State>>,
}

/// A plugin with all that it calls, ready to be loaded by each worker.
pub(crate) struct Linked {
    linking: Linking,
    interfaces: Vec<Interface>,
    parts: Vec<Part>,
}

/// One plugin of a tree.
struct Part {
    name: String,
    plug: String,
    sockets: Vec<String>,
    component: Component,
    policy: Policy,
    own: Arc<Own>,
}

impl Linking {
    pub(super) fn new() -> Result<Self, String> {
        let failed = |e: wasmtime::Error| format!("{e:#}");
        let runtime = shipote_link::Runtime::new(shipote_plugin_abi::engine::config()).map_err(failed)?;
        let mut linker = Linker::new(runtime.engine());
        shipote_plugin_abi::host::add_to_linker_of(&mut linker, |state: &mut shipote_link::State<State>| {
            &mut state.data
        })
        .map_err(failed)?;
        shipote_plugin_abi::state::add_to_linker_of(&mut linker, |state: &mut shipote_link::State<State>| {
            &mut state.data
        })
        .map_err(failed)?;
        Ok(Self { runtime, linker })
    }

    /// Reads a plugin and all that it calls.
    pub(super) fn prepare(&self, plugin: &PluginCode, kind: MiddlewareKind, owned: &Owned) -> Result<Linked, String> {
        let mut linked = Linked { linking: self.clone(), interfaces: Vec::new(), parts: Vec::new() };
        let path = kind.interface();
        let mut seen = BTreeSet::new();
        linked.take(plugin, ROOT, &mut seen, owned)?;
        let root = &linked.parts.last().ok_or("no plugin")?.component;
        let root = Interface::exported_by(root, ROOT, path, shipote_link::Cardinality::ExactlyOne)
            .ok_or_else(|| format!("{}: it does not export {path}", plugin.name))?;
        linked.interfaces.push(root);
        Ok(linked)
    }
}

impl Linked {
    #[allow(unsafe_code, reason = "wasmtime runs compiled code as it is")]
    fn take(
        &mut self,
        plugin: &PluginCode,
        plug: &str,
        seen: &mut BTreeSet<String>,
        owned: &Owned,
    ) -> Result<(), String> {
        let name = &plugin.name;
        if !plugin.policy.http.allowed_hosts.is_empty() {
            // Its waiting would be taken for work, and the deadlines of those that call it would pass.
            return Err(format!(
                "{name}: http-fetch (its policy allows hosts) is not built in for plugins that call others or are called"
            ));
        }
        if plugin.policy.fuel > 0 {
            return Err(format!(
                "{name}: fuel is not built in for plugins that call others or are called; deadline_ms holds them"
            ));
        }
        if !plugin.policy.wasi_stubs.is_empty() {
            return Err(format!(
                "{name}: wasi_stubs are not built in for plugins that call others or are called; build it without WASI"
            ));
        }
        // SAFETY: the bytes come from the registry, which compiled them itself and handed them over in a memfd sealed
        // against change; wasmtime refuses code of another version or configuration.
        let component = unsafe { Component::deserialize(self.linking.runtime.engine(), &plugin.code) }
            .map_err(|e| format!("{name}: {e:#}"))?;
        for link in &plugin.links {
            let cardinality = cardinality(link.cardinality);
            // Two that want one interface with different functions get what the first wants; loading says if that is short.
            if !self.interfaces.iter().any(|known| known.path() == link.interface) {
                let interface = Interface::wanted_by(&component, &link.interface, &link.interface, cardinality)
                    .map_err(|e| format!("{name}: {e}"))?;
                self.interfaces.push(interface);
            }
            for provider in &link.plugins {
                // A plugin plugs into one interface of a tree; one that is called by two is one part.
                if seen.insert(format!("{} {}", link.interface, provider.name)) {
                    self.take(provider, &link.interface, seen, owned)?;
                }
            }
        }
        self.parts.push(Part {
            name: format!("{name} ({plug})"),
            plug: plug.to_owned(),
            sockets: plugin.links.iter().map(|link| link.interface.clone()).collect(),
            component,
            policy: plugin.policy.clone(),
            own: owned.of(name),
        });
        Ok(())
    }

    /// Loads the tree for one worker.
    pub(super) fn load(&self, site: &Arc<Site>) -> Result<Head<State>, String> {
        let parts = self.parts.iter().map(|part| {
            // What another plugin is configured with is not its provider's business.
            let (root, name, policy, own) =
                (part.plug == ROOT, part.name.clone(), part.policy.clone(), Arc::clone(&part.own));
            let weak = Arc::downgrade(site);
            let data = move || match weak.upgrade() {
                Some(site) if root => State::new(&site),
                _ => State::beside(&name, &own, &policy),
            };
            let plugin = Plugin::new(part.name.clone(), part.plug.clone(), part.component.clone(), data);
            let plugin = part.sockets.iter().fold(plugin, |plugin, socket| plugin.socket(socket.clone()));
            Ok(plugin.limits(Limits {
                deadline: Duration::from_millis(part.policy.deadline_ms.max(1).into()),
                memory: part.policy.memory_bytes,
                ..Limits::default()
            }))
        });
        let (tree, errors) = Tree::new(ROOT, self.interfaces.iter().cloned().map(Ok), parts);
        if let Some(error) = errors.first() {
            return Err(error.to_string());
        }
        match tree.load(&self.linking.runtime, &self.linking.linker) {
            Ok((head, errors)) => {
                for error in errors {
                    tracing::warn!("{error}");
                }
                Ok(head)
            }
            Err((error, mut causes)) => {
                let cause = causes.pop().map(|cause| format!(" ({cause})")).unwrap_or_default();
                Err(format!("{error}{cause}"))
            }
        }
    }
}

/// Calls the handler at the root of a tree. A deadline that passes is the trap that it is for a plugin alone.
pub(super) fn call<In, Out>(head: &Head<State>, site: &Site, input: In) -> wasmtime::Result<Result<Out, PluginError>>
where
    (String, In): ComponentNamedList + Lower + Clone + 'static,
    (Result<Out, PluginError>,): ComponentNamedList + Lift + 'static,
{
    let stopped = |error: DispatchError| match &error {
        DispatchError::Failed { failure: Failure::Deadline, .. } => wasmtime::Error::from(Trap::Interrupt),
        _ => wasmtime::Error::msg(error.to_string()),
    };
    let handle = head.typed::<(String, In), (Result<Out, PluginError>,)>("handle").map_err(stopped)?;
    match handle.call((site.export.clone(), input)) {
        Answers::ExactlyOne(answer) => answer.map(|(answer,)| answer).map_err(stopped),
        _ => Err(wasmtime::Error::msg("the tree has another root")),
    }
}

fn cardinality(of: Cardinality) -> shipote_link::Cardinality {
    match of {
        Cardinality::ExactlyOne => shipote_link::Cardinality::ExactlyOne,
        Cardinality::AtMostOne => shipote_link::Cardinality::AtMostOne,
        Cardinality::AtLeastOne => shipote_link::Cardinality::AtLeastOne,
        Cardinality::Any => shipote_link::Cardinality::Any,
    }
}

impl std::fmt::Debug for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linked").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}
