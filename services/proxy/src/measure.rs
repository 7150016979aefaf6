//! Plugins called and loaded as the workers do it, for measurements alone.

use shipote_plugin_abi::handlers::{L7RequestInput, L7RequestRef};
use tokio::sync::mpsc::unbounded_channel;

use crate::plugin::{Called, Instances, Place, PluginCode, Runtime};

/// A place in the rules, and the instances of one worker.
pub struct Caller {
    runtime: Runtime,
    place: Place,
    instances: Instances,
}

impl Caller {
    /// Links a plugin's export.
    ///
    /// # Errors
    /// Why it cannot be linked.
    pub fn new(code: &PluginCode, export: &str) -> Result<Self, String> {
        let runtime = Runtime::new(unbounded_channel().0)?;
        let place = Place { site: runtime.site(code, export, "{}")?, canary: None };
        Ok(Self { runtime, place, instances: Instances::default() })
    }

    /// One call of a request's handler; whether the request goes on.
    pub fn request(&self, input: &L7RequestInput) -> bool {
        let turn = self.place.turn(self.instances.draw());
        matches!(self.instances.request(turn, |_| L7RequestRef::from(input)), Called::On)
    }

    /// Loads code as for a call site, from nothing.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub fn load(&self, code: &PluginCode) -> Result<(), String> {
        self.runtime.keep(&[]);
        self.runtime.load(code)
    }
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("place", &self.place).finish_non_exhaustive()
    }
}
