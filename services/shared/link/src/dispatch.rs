//! Calls from the host.

use std::marker::PhantomData;
use std::sync::Arc;

use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, Val};

use crate::error::DispatchError;
use crate::instance::Loaded;
use crate::interface::{Cardinality, Interface};
use crate::provider::Provider;

/// One answer of each plugin, in the form that the interface's cardinality gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers<A> {
    /// The one plugin's.
    ExactlyOne(A),
    /// The one plugin's, if there is one.
    AtMostOne(Option<A>),
    /// Each plugin's, with its id; one at least.
    AtLeastOne(Vec<(Arc<str>, A)>),
    /// Each plugin's, with its id.
    Any(Vec<(Arc<str>, A)>),
}

/// The root interface with all that it reaches, loaded. Calls may come from any thread; one plugin serves one at a time.
///
/// `C` is how it is called: by threads that wait for the answer, or by tasks ([`AsyncHead`](crate::AsyncHead)).
pub struct Head<T: 'static, C = Waiting> {
    pub(crate) provider: Arc<Provider<T>>,
    caller: PhantomData<fn() -> C>,
}

/// Mark of a [`Head`] that threads call, which wait for the answer.
#[derive(Debug, Clone, Copy)]
pub struct Waiting;

impl<T, C> std::fmt::Debug for Head<T, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head").field("interface", &self.provider.interface.id).finish_non_exhaustive()
    }
}

impl<T: Send + 'static, C> Head<T, C> {
    pub(crate) fn new(provider: Arc<Provider<T>>) -> Self {
        Self { provider, caller: PhantomData }
    }

    /// The root interface.
    #[must_use]
    pub fn interface(&self) -> &Interface {
        &self.provider.interface
    }

    /// Ids of the plugins that implement the root interface, sorted.
    pub fn plugins(&self) -> impl Iterator<Item = &str> {
        self.provider.plugins.iter().map(|plugin| &**plugin.id())
    }
}

impl<T: Send + 'static> Head<T> {
    /// Calls `function` of every plugin in the root interface. A method goes to the plugin that owns the handle in its
    /// first argument, and so does any call with handles; the others answer with an error.
    ///
    /// Handles in answers belong to the host until [`Head::drop_resource`].
    ///
    /// # Errors
    /// When there is no such function or the arguments don't fit it; then nothing was called. What a plugin does wrong is
    /// its own answer.
    pub fn dispatch(
        &self,
        function: &str,
        arguments: &[Val],
    ) -> Result<Answers<Result<Option<Val>, DispatchError>>, DispatchError> {
        let provider = &self.provider;
        let index = provider.position(function)?;
        provider.accept(index, arguments)?;
        if provider.interface.functions[index].plain {
            return Ok(self.each(|plugin| plugin.call_plain(index, arguments, u64::MAX)));
        }
        let handles = provider.by_host(index);
        let call = |plugin: &Loaded<T>| plugin.call(index, arguments, u64::MAX, handles).map(|answer| answer.value);
        if let Some(owner) = provider.owner(index, arguments)? {
            return Ok(Answers::ExactlyOne(call(owner)));
        }
        Ok(self.each(|plugin| call(plugin)))
    }

    /// The same with the interface's id or path checked first, for hosts that take both from outside.
    ///
    /// # Errors
    /// Also when `interface` is not the root.
    pub fn dispatch_in(
        &self,
        interface: &str,
        function: &str,
        arguments: &[Val],
    ) -> Result<Answers<Result<Option<Val>, DispatchError>>, DispatchError> {
        self.provider.is(interface)?;
        self.dispatch(function, arguments)
    }

    /// A function whose types the host knows: `P` is the tuple of parameters, `R` the tuple of results.
    ///
    /// # Errors
    /// When there is no such function or a plugin has it with other types.
    pub fn typed<P, R>(&self, function: &str) -> Result<Typed<'_, T, P, R>, DispatchError>
    where
        P: ComponentNamedList + Lower + Clone + 'static,
        R: ComponentNamedList + Lift + 'static,
    {
        let index = self.provider.position(function)?;
        for plugin in &self.provider.plugins {
            plugin.check_types::<P, R>(index)?;
        }
        Ok(Typed { head: self, index, types: PhantomData })
    }

    /// Drops a handle that a dispatch returned. One that no plugin knows any more is ignored.
    pub fn drop_resource(&self, resource: ResourceAny) {
        for plugin in &self.provider.plugins {
            if let Some(generation) = plugin.take_back(&resource) {
                return plugin.drop_resource(generation, resource);
            }
        }
    }

    #[inline]
    fn each<A>(&self, mut call: impl FnMut(&Loaded<T>) -> A) -> Answers<A> {
        let plugins = &self.provider.plugins;
        let mut all = || plugins.iter().map(|plugin| (Arc::clone(plugin.id()), call(plugin))).collect();
        match (self.provider.interface.cardinality, plugins.first()) {
            (Cardinality::ExactlyOne, Some(plugin)) => Answers::ExactlyOne(call(plugin)),
            (Cardinality::AtMostOne, plugin) => Answers::AtMostOne(plugin.map(|plugin| call(plugin))),
            (Cardinality::AtLeastOne, _) => Answers::AtLeastOne(all()),
            // ExactlyOne without a plugin does not load.
            (Cardinality::Any | Cardinality::ExactlyOne, _) => Answers::Any(all()),
        }
    }
}

/// A function of the root interface with its types.
#[derive(Debug)]
pub struct Typed<'a, T: 'static, P, R> {
    head: &'a Head<T>,
    index: usize,
    types: PhantomData<fn(P) -> R>,
}

impl<T, P, R> Typed<'_, T, P, R>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + Clone + 'static,
    R: ComponentNamedList + Lift + 'static,
{
    /// Calls the function of every plugin in the root interface.
    #[inline]
    pub fn call(&self, arguments: P) -> Answers<Result<R, DispatchError>> {
        // One plugin gets the arguments themselves, several a copy each.
        match (self.head.provider.interface.cardinality, &*self.head.provider.plugins) {
            (Cardinality::ExactlyOne, [plugin]) => {
                Answers::ExactlyOne(plugin.call_typed(self.index, arguments, u64::MAX))
            }
            (Cardinality::AtMostOne, [plugin]) => {
                Answers::AtMostOne(Some(plugin.call_typed(self.index, arguments, u64::MAX)))
            }
            _ => self.head.each(|plugin| plugin.call_typed(self.index, arguments.clone(), u64::MAX)),
        }
    }
}
