//! An interface with the plugins that implement it.

use std::sync::Arc;

use wasmtime::component::Val;

use crate::error::DispatchError;
use crate::instance::{Handed, Loaded};
use crate::interface::{Interface, Kind};
use crate::value_type::join;

/// An interface whose plugins have loaded.
pub(crate) struct Provider<T: 'static> {
    pub(crate) interface: Arc<Interface>,
    pub(crate) plugins: Vec<Arc<Loaded<T>>>,
    /// Numbers by which importers know the interface's resources.
    pub(crate) kinds: Vec<(String, u32)>,
}

impl<T: 'static> Provider<T> {
    /// That `interface`, an id or a path, is this one.
    pub(crate) fn is(&self, interface: &str) -> Result<(), DispatchError> {
        if self.interface.id == interface || self.interface.path == interface {
            return Ok(());
        }
        Err(DispatchError::UnknownInterface { interface: interface.to_owned() })
    }

    pub(crate) fn position(&self, function: &str) -> Result<usize, DispatchError> {
        self.interface.position(function).ok_or_else(|| DispatchError::UnknownFunction {
            interface: self.interface.id.clone(),
            function: function.to_owned(),
        })
    }

    /// That a function takes `arguments`.
    pub(crate) fn accept(&self, index: usize, arguments: &[Val]) -> Result<(), DispatchError> {
        let known = &self.interface.functions[index];
        if known.signature.accepts(arguments) {
            return Ok(());
        }
        Err(DispatchError::WrongArguments {
            function: known.name.clone(),
            expected: known.signature.to_string(),
            given: format!("({})", join(arguments.iter().map(|value| format!("{value:?}")))),
        })
    }

    /// What is known of handles when the host calls.
    pub(crate) fn by_host(&self, index: usize) -> Handed {
        let known = &self.interface.functions[index];
        if known.params_hold || known.result_holds { Handed::ByHost } else { Handed::None }
    }

    /// The plugin that a method goes to when the host calls; `None`: it is no method and goes to all.
    pub(crate) fn owner(&self, index: usize, arguments: &[Val]) -> Result<Option<&Arc<Loaded<T>>>, DispatchError> {
        let known = &self.interface.functions[index];
        if !matches!(known.kind, Kind::Method(_)) {
            return Ok(None);
        }
        let owner = self.plugins.iter().find(|plugin| match arguments.first() {
            Some(Val::Resource(handle)) => plugin.has_lent(handle),
            _ => false,
        });
        owner.map(Some).ok_or_else(|| DispatchError::Resource {
            plugin: self.plugins.first().map(|plugin| plugin.id().to_string()).unwrap_or_default(),
            function: known.name.clone(),
            reason: "no plugin owns it; it is dropped, or its plugin was started anew".to_owned(),
        })
    }
}
