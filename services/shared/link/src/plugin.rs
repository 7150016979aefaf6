//! What a host gives for each plugin.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::Component;

/// Why a plugin's component could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Its bytes.
    #[error("{0}")]
    Read(String),
    /// What they mean.
    #[error("{0}")]
    Invalid(String),
}

/// What one instance may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Time a call may take; also what a caller leaves it, if that is less.
    pub deadline: Duration,
    /// Bytes of linear memory, over all memories of the instance.
    pub memory: u64,
    /// Elements of a table.
    pub table_elements: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(10), memory: 32 << 20, table_elements: 100_000 }
    }
}

pub(crate) type MakeData<T> = Arc<dyn Fn() -> T + Send + Sync>;
pub(crate) type Source = Box<dyn FnOnce(&Engine) -> Result<Component, SourceError> + Send>;

/// A plugin: an id, the interface that it implements, those that it depends on, a component.
pub struct Plugin<T> {
    pub(crate) id: String,
    pub(crate) plug: String,
    /// Its export that is the plug, if it has another name than the interface.
    pub(crate) export: Option<String>,
    pub(crate) sockets: Vec<String>,
    pub(crate) source: Source,
    pub(crate) data: MakeData<T>,
    pub(crate) limits: Limits,
}

impl<T> std::fmt::Debug for Plugin<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("id", &self.id).field("plug", &self.plug).finish_non_exhaustive()
    }
}

impl<T: 'static> Plugin<T> {
    /// A plugin that is compiled already. `data` makes the store's data, anew for every instance.
    pub fn new(
        id: impl Into<String>,
        plug: impl Into<String>,
        component: Component,
        data: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        Self::lazy(id, plug, move |_| Ok(component), data)
    }

    /// A plugin whose component is read only if the tree needs it.
    pub fn lazy(
        id: impl Into<String>,
        plug: impl Into<String>,
        source: impl FnOnce(&Engine) -> Result<Component, SourceError> + Send + 'static,
        data: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            id: id.into(),
            plug: plug.into(),
            export: None,
            sockets: Vec::new(),
            source: Box::new(source),
            data: Arc::new(data),
            limits: Limits::default(),
        }
    }

    /// Adds an interface that it depends on.
    #[must_use]
    pub fn socket(mut self, interface: impl Into<String>) -> Self {
        self.sockets.push(interface.into());
        self
    }

    /// Says by which name its component exports the plug, where that is not the interface's path. Without this, an export
    /// of a later compatible version of the interface will do (`a:b/c@1.2.0` for `a:b/c@1.0.0`).
    #[must_use]
    pub fn exported_as(mut self, path: impl Into<String>) -> Self {
        self.export = Some(path.into());
        self
    }

    /// Sets its limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}
