//! Plugins in the proxy: code that the registry compiled, called in place.
//!
//! There is no compiler here. A call site of the rules is a [`Site`]; each worker keeps one live instance of a
//! stateless one and calls it on its own thread, so that a call needs no lock and no hand-over. A call that overruns its deadline is
//! stopped by the engine's epoch, and an instance that was stopped or trapped is thrown away.

mod fetch;
mod host;
pub(crate) mod input;
mod instances;
mod latency;
mod linked;
pub(crate) mod own;
mod processor;
pub(crate) mod said;
pub(crate) mod series;
mod site;
mod ticker;
mod trial;
mod values;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use shipote_plugin_abi::metadata::Metadata;
use shipote_plugin_abi::policy::{CanaryPolicy, Cardinality, Policy};
use tokio::sync::mpsc::UnboundedSender;
use wasmtime::component::{Component, Linker};

pub(crate) use instances::{Answered, Called, Instances, Passed, request_apart, response_apart};
pub(crate) use site::Site;
pub use trial::CanaryFailed;
pub(crate) use trial::{Apart, Canary, Place, Trial, Turn};

use crate::plugin::host::State;
use crate::plugin::linked::Linking;
use crate::plugin::own::{Own, Owned};
use crate::plugin::site::Ground;
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
    /// Another version of it that gets a share of its calls.
    pub canary: Option<Box<PluginCanary>>,
}

/// A version of a plugin on trial.
#[derive(Debug, Clone)]
pub struct PluginCanary {
    /// The version, as the plugin says it.
    pub version: String,
    /// `sha256:<hex>` of the component.
    pub digest: String,
    /// Its share of the calls, in hundredths of a percent.
    pub share: u32,
    /// When the trial began, microseconds since the epoch: what tells it from an earlier one.
    pub since: u64,
    /// When it has failed.
    pub rules: CanaryPolicy,
    /// The version as any other, or why it cannot be had, which is a failure as well.
    pub code: Result<PluginCode, String>,
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

/// An engine of one configuration, and the code that is loaded into it.
struct Machine {
    engine: wasmtime::Engine,
    linker: Linker<State>,
    ticker: Arc<Ticker>,
    loaded: Mutex<HashMap<String, Component>>,
}

impl Machine {
    fn new(config: &wasmtime::Config) -> Result<Self, String> {
        let engine = wasmtime::Engine::new(config).map_err(|e| format!("{e:#}"))?;
        let mut linker = Linker::new(&engine);
        shipote_plugin_abi::host::add_to_linker(&mut linker).map_err(|e| format!("{e:#}"))?;
        shipote_plugin_abi::state::add_to_linker_of(&mut linker, |state: &mut State| state)
            .map_err(|e| format!("{e:#}"))?;
        let ticker = Ticker::start(engine.clone()).map_err(|e| format!("start the clock of plugins: {e}"))?;
        Ok(Self { engine, linker, ticker, loaded: Mutex::default() })
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
}

/// All that runs plugins.
pub(crate) struct Runtime {
    plain: Machine,
    /// For plugins that have fuel; made when the first comes.
    metered: Mutex<Option<Arc<Machine>>>,
    /// For plugins that call others; made when the first comes.
    linking: Mutex<Option<Linking>>,
    /// By plugin.
    trials: Mutex<HashMap<String, Arc<Trial>>>,
    owned: Owned,
    tell: UnboundedSender<CanaryFailed>,
}

impl Runtime {
    /// `tell` hears of canaries that fail.
    pub(crate) fn new(tell: UnboundedSender<CanaryFailed>) -> Result<Self, String> {
        Ok(Self {
            plain: Machine::new(&shipote_plugin_abi::engine::config())?,
            metered: Mutex::default(),
            linking: Mutex::default(),
            trials: Mutex::default(),
            owned: Owned::default(),
            tell,
        })
    }

    /// Links a call site.
    pub(crate) fn site(&self, plugin: &PluginCode, export: &str, args: &str) -> Result<Arc<Site>, String> {
        let own = self.owned.of(&plugin.name);
        let metered = if plugin.policy.fuel > 0 && plugin.links.is_empty() { Some(self.metered()?) } else { None };
        let machine = metered.as_deref().unwrap_or(&self.plain);
        let kind = plugin.metadata.exports.iter().find(|known| known.name == export).map(|known| known.kind);
        let linked = match kind {
            Some(kind) if !plugin.links.is_empty() => Some(self.linking()?.prepare(plugin, kind, &self.owned)?),
            _ => None,
        };
        let component = machine.component(plugin)?;
        let mut linker = machine.linker.clone();
        // The WASI interfaces that its policy names are stubs. And where it calls others, what is instantiated is the tree:
        // to the linker of a plugin alone they are traps.
        if !plugin.policy.wasi_stubs.is_empty() || !plugin.links.is_empty() {
            linker.define_unknown_imports_as_traps(&component).map_err(|e| format!("{}: {e:#}", plugin.name))?;
        }
        let ground = Ground { linker: &linker, component: &component, ticker: &machine.ticker, own, linked };
        Site::link(ground, plugin, export, args)
    }

    fn linking(&self) -> Result<Linking, String> {
        let mut linking = self.linking.lock().unwrap_or_else(PoisonError::into_inner);
        match &*linking {
            Some(made) => Ok(made.clone()),
            None => Ok(linking.insert(Linking::new()?).clone()),
        }
    }

    fn metered(&self) -> Result<Arc<Machine>, String> {
        let mut metered = self.metered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*metered {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(Machine::new(&shipote_plugin_abi::engine::metered())?);
        Ok(Arc::clone(metered.insert(made)))
    }

    /// Has a plugin's code loaded, for call sites to come.
    pub(crate) fn load(&self, plugin: &PluginCode) -> Result<(), String> {
        self.plain.component(plugin).map(drop)
    }

    /// The trial of a plugin's canary, with all that is known of it since it began.
    pub(crate) fn trial(&self, plugin: &PluginCode, canary: &PluginCanary) -> Arc<Trial> {
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        match trials.get(&plugin.name) {
            Some(trial) if trial.is_still(&plugin.digest, canary) => Arc::clone(trial),
            _ => {
                let trial = Trial::new(&plugin.name, &plugin.digest, canary, self.tell.clone());
                trials.insert(plugin.name.clone(), Arc::clone(&trial));
                trial
            }
        }
    }

    /// What each plugin keeps and counts, by name.
    pub(crate) fn owned(&self) -> Vec<(String, Arc<Own>)> {
        self.owned.list()
    }

    /// Forgets code that no call site uses any more, trials that are over, and what plugins kept that no rule uses.
    pub(crate) fn keep(&self, codes: &[PluginCode]) {
        let canaries = codes.iter().filter_map(|code| code.canary.as_ref()).map(|canary| &canary.digest);
        let digests: Vec<&String> = codes.iter().map(|code| &code.digest).chain(canaries).collect();
        let metered = self.metered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for machine in std::iter::once(&self.plain).chain(metered.as_deref()) {
            let mut loaded = machine.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.retain(|digest, _| digests.contains(&digest));
        }
        let mut trials = self.trials.lock().unwrap_or_else(PoisonError::into_inner);
        trials.retain(|name, _| codes.iter().any(|code| code.name == *name && code.canary.is_some()));
        self.owned.keep(codes);
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}
