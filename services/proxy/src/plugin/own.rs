//! What belongs to a plugin by its name, whichever version, call site or instance of it asks: the values that it keeps,
//! the figures that it makes and how much it says. It is there as long as rules use the plugin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PluginCode;
use super::said::Said;
use super::series::Series;
use super::values::Values;

/// Of one plugin. The locks are held for single steps, never across a call of the plugin.
#[derive(Debug, Default)]
pub(crate) struct Own {
    values: Mutex<Values>,
    series: Mutex<Series>,
    said: Mutex<Said>,
}

impl Own {
    pub(crate) fn values(&self) -> MutexGuard<'_, Values> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of all plugins, by name.
#[derive(Debug, Default)]
pub(super) struct Owned(Mutex<BTreeMap<String, Arc<Own>>>);

impl Owned {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Own>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn of(&self, plugin: &str) -> Arc<Own> {
        Arc::clone(self.all().entry(plugin.to_owned()).or_default())
    }

    /// Forgets plugins that no rule uses, be it through another.
    pub(super) fn keep(&self, codes: &[PluginCode]) {
        let mut used = BTreeSet::new();
        codes.iter().for_each(|code| names(code, &mut used));
        self.all().retain(|name, _| used.contains(name.as_str()));
    }

    pub(super) fn list(&self) -> Vec<(String, Arc<Own>)> {
        self.all().iter().map(|(name, own)| (name.clone(), Arc::clone(own))).collect()
    }
}

fn names<'c>(code: &'c PluginCode, into: &mut BTreeSet<&'c str>) {
    into.insert(&code.name);
    let canary = code.canary.as_ref().and_then(|canary| canary.code.as_ref().ok());
    let called = code.links.iter().flat_map(|link| &link.plugins);
    called.chain(canary).for_each(|code| names(code, into));
}
