//! Calls from a host's tasks.

use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::join_all;
use wasmtime::component::{ComponentNamedList, Lift, Lower, ResourceAny, Val};

use crate::dispatch::{Answers, Head};
use crate::error::DispatchError;
use crate::instance::Loaded;
use crate::interface::Cardinality;

/// [`Head`] for a host with an asynchronous runtime: a plugin that computes lets other tasks have the thread
/// each millisecond, one that waits in an asynchronous function of the host leaves it to them meanwhile. Several plugins of
/// an interface work at the same time.
///
/// A call whose future is dropped is broken off; its plugins start anew at their next call, as they do after a trap.
///
/// # Panics
/// Its futures panic outside a tokio runtime with time.
pub type AsyncHead<T> = Head<T, Yielding>;

/// Mark of a [`Head`] that tasks call.
#[derive(Debug, Clone, Copy)]
pub struct Yielding;

impl<T: Send + 'static> AsyncHead<T> {
    /// As `dispatch` of a [`Head`] that threads call.
    ///
    /// # Errors
    /// When there is no such function or the arguments don't fit it; then nothing was called. What a plugin does wrong is
    /// its own answer.
    pub async fn dispatch(
        &self,
        function: &str,
        arguments: &[Val],
    ) -> Result<Answers<Result<Option<Val>, DispatchError>>, DispatchError> {
        let provider = &self.provider;
        let index = provider.position(function)?;
        provider.accept(index, arguments)?;
        let handles = provider.by_host(index);
        let call = |plugin: &Arc<Loaded<T>>| {
            let plugin = Arc::clone(plugin);
            async move { plugin.call_yielding(index, arguments, u64::MAX, handles).await.map(|answer| answer.value) }
        };
        if let Some(owner) = provider.owner(index, arguments)? {
            return Ok(Answers::ExactlyOne(call(owner).await));
        }
        Ok(self.each(call).await)
    }

    /// As `dispatch_in` of a [`Head`] that threads call.
    ///
    /// # Errors
    /// Also when `interface` is not the root.
    pub async fn dispatch_in(
        &self,
        interface: &str,
        function: &str,
        arguments: &[Val],
    ) -> Result<Answers<Result<Option<Val>, DispatchError>>, DispatchError> {
        self.provider.is(interface)?;
        self.dispatch(function, arguments).await
    }

    /// A function whose types the host knows: `P` is the tuple of parameters, `R` the tuple of results.
    ///
    /// # Errors
    /// When there is no such function or a plugin has it with other types.
    pub async fn typed<P, R>(&self, function: &str) -> Result<AsyncTyped<'_, T, P, R>, DispatchError>
    where
        P: ComponentNamedList + Lower + Clone + Send + Sync + 'static,
        R: ComponentNamedList + Lift + Send + Sync + 'static,
    {
        let index = self.provider.position(function)?;
        for plugin in &self.provider.plugins {
            plugin.check_types_yielding::<P, R>(index).await?;
        }
        Ok(AsyncTyped { head: self, index, types: PhantomData })
    }

    /// Drops a handle that a dispatch returned. One that no plugin knows any more is ignored.
    pub async fn drop_resource(&self, resource: ResourceAny) {
        for plugin in &self.provider.plugins {
            if let Some(generation) = plugin.take_back(&resource) {
                return plugin.drop_resource_yielding(generation, resource).await;
            }
        }
    }

    async fn each<A, F: Future<Output = A>>(&self, call: impl Fn(&Arc<Loaded<T>>) -> F) -> Answers<A> {
        let plugins = &self.provider.plugins;
        let all = async || {
            let answers = join_all(plugins.iter().map(&call)).await;
            plugins.iter().map(|plugin| Arc::clone(plugin.id())).zip(answers).collect()
        };
        match (self.provider.interface.cardinality, plugins.first()) {
            (Cardinality::ExactlyOne, Some(plugin)) => Answers::ExactlyOne(call(plugin).await),
            (Cardinality::AtMostOne, Some(plugin)) => Answers::AtMostOne(Some(call(plugin).await)),
            (Cardinality::AtMostOne, None) => Answers::AtMostOne(None),
            (Cardinality::AtLeastOne, _) => Answers::AtLeastOne(all().await),
            // ExactlyOne without a plugin does not load.
            (Cardinality::Any | Cardinality::ExactlyOne, _) => Answers::Any(all().await),
        }
    }
}

/// A function of the root interface with its types.
#[derive(Debug)]
pub struct AsyncTyped<'a, T: 'static, P, R> {
    head: &'a AsyncHead<T>,
    index: usize,
    types: PhantomData<fn(P) -> R>,
}

impl<T, P, R> AsyncTyped<'_, T, P, R>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + Clone + Send + Sync + 'static,
    R: ComponentNamedList + Lift + Send + Sync + 'static,
{
    /// Calls the function of every plugin in the root interface.
    pub async fn call(&self, arguments: P) -> Answers<Result<R, DispatchError>> {
        let (index, provider) = (self.index, &self.head.provider);
        // One plugin gets the arguments themselves, several a copy each.
        if let (Cardinality::ExactlyOne, [plugin]) = (provider.interface.cardinality, &*provider.plugins) {
            return Answers::ExactlyOne(plugin.call_typed_yielding(index, arguments, u64::MAX).await);
        }
        let call = |plugin: &Arc<Loaded<T>>| {
            let (plugin, arguments) = (Arc::clone(plugin), arguments.clone());
            async move { plugin.call_typed_yielding(index, arguments, u64::MAX).await }
        };
        self.head.each(call).await
    }
}
