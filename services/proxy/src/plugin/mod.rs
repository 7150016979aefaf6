//! Plugins in the proxy: code that the registry compiled, called in place.
//!
//! There is no compiler here. A call site of the rules is a [`Site`]; each worker keeps one live instance of a
//! stateless one and calls it on its own thread, so that a call needs no lock and no hand-over. A call that overruns its deadline is
//! stopped by the engine's epoch, and an instance that was stopped or trapped is thrown away.

mod fetch;
mod host;
pub(crate) mod input;
mod instances;
mod linked;
mod site;
mod ticker;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shipote_plugin_abi::metadata::Metadata;
use shipote_plugin_abi::policy::{Cardinality, Policy};
use wasmtime::component::{Component, Linker};

pub(crate) use instances::{Answered, Called, Instances, Passed, request_apart, response_apart};
pub(crate) use site::Site;

use crate::plugin::host::State;
use crate::plugin::linked::Linking;
use crate::plugin::ticker::Ticker;

/// A plugin as the registry hands it over.
#[derive(Debug, Clone)]
pub struct PluginCode {
    /// What rules call it.
    pub name: String,
    /// `sha256:<hex>` of the component that it was compiled from.
    pub digest: String,
    /// What it says of itself.
    pub metadata: Metadata,
    /// What it may do.
    pub policy: Policy,
    /// Plugins that it calls, by the interface that they implement.
    pub links: Vec<PluginLink>,
    /// Compiled code. It is run as it is: take it from nobody but the registry.
    pub code: Vec<u8>,
}

/// Plugins that another one calls.
#[derive(Debug, Clone)]
pub struct PluginLink {
    /// The interface, such as `my:package/example@1.0.0`.
    pub interface: String,
    /// How many there have to be.
    pub cardinality: Cardinality,
    /// Those that implement it.
    pub plugins: Vec<PluginCode>,
}

impl PluginCode {
    /// All that its sockets are linked to: what is the same need not be linked anew.
    fn linked_to(&self) -> String {
        let one = |plugin: &Self| format!("{} {:?} ({})", plugin.digest, plugin.policy, plugin.linked_to());
        let link = |link: &PluginLink| {
            let plugins: Vec<String> = link.plugins.iter().map(one).collect();
            format!("{} {:?} [{}]", link.interface, link.cardinality, plugins.join(", "))
        };
        self.links.iter().map(link).collect::<Vec<_>>().join("; ")
    }
}

/// The engine, and the code that is loaded into it.
pub(crate) struct Runtime {
    engine: wasmtime::Engine,
    linker: Linker<State>,
    ticker: Arc<Ticker>,
    loaded: Mutex<HashMap<String, Component>>,
    /// For plugins that call others; made when the first comes.
    linking: Mutex<Option<Linking>>,
}

impl Runtime {
    pub(crate) fn new() -> Result<Self, String> {
        let engine = wasmtime::Engine::new(&shipote_plugin_abi::engine::config()).map_err(|e| format!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        shipote_plugin_abi::host::add_to_linker(&mut linker).map_err(|e| format!("{e:#}"))?;
        let ticker = Ticker::start(engine.clone()).map_err(|e| format!("start the clock of plugins: {e}"))?;
        Ok(Self { engine, linker, ticker, loaded: Mutex::default(), linking: Mutex::default() })
    }

    /// The code as a component, from memory if the same content was loaded before.
    #[allow(unsafe_code, reason = "wasmtime runs compiled code as it is")]
    fn component(&self, plugin: &PluginCode) -> Result<Component, String> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(component) = loaded.get(&plugin.digest) {
            return Ok(component.clone());
        }
        // SAFETY: the bytes come from the registry, which compiled them itself and handed them over in a memfd sealed
        // against change; wasmtime refuses code of another version or configuration.
        let component = unsafe { Component::deserialize(&self.engine, &plugin.code) }.map_err(|e| format!("{e:#}"))?;
        loaded.insert(plugin.digest.clone(), component.clone());
        Ok(component)
    }

    /// Links a call site.
    pub(crate) fn site(&self, plugin: &PluginCode, export: &str, args: &str) -> Result<Arc<Site>, String> {
        let component = self.component(plugin)?;
        if plugin.links.is_empty() {
            return Site::link(&self.linker, &component, plugin, export, args, &self.ticker, None);
        }
        let kind = plugin.metadata.exports.iter().find(|known| known.name == export).map(|known| known.kind);
        let linked = kind.map(|kind| self.linking()?.prepare(plugin, kind)).transpose()?;
        // What is instantiated is the tree; to the linker of a plugin alone the others are traps.
        let mut linker = self.linker.clone();
        linker.define_unknown_imports_as_traps(&component).map_err(|e| format!("{}: {e:#}", plugin.name))?;
        Site::link(&linker, &component, plugin, export, args, &self.ticker, linked)
    }

    fn linking(&self) -> Result<Linking, String> {
        let mut linking = self.linking.lock().unwrap_or_else(PoisonError::into_inner);
        match &*linking {
            Some(made) => Ok(made.clone()),
            None => Ok(linking.insert(Linking::new()?).clone()),
        }
    }

    /// Forgets code that no call site uses any more.
    pub(crate) fn keep(&self, digests: &[&str]) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|digest, _| digests.contains(&digest.as_str()));
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}
