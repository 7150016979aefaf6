//! Functions through sockets whose types the host knows: no value is built in between.

use std::marker::PhantomData;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower};

use crate::error::{CallError, DispatchError};
use crate::instance::{Loaded, Mode};
use crate::interface::Cardinality;
use crate::provider::Provider;
use crate::socket::Reach;
use crate::state::State;

/// Defines a function in an importer's linker.
#[doc(hidden)]
pub trait Wire<T: 'static>: Send + Sync {
    #[allow(private_interfaces, missing_docs, reason = "sealed: implemented here alone")]
    fn define(
        &self,
        instance: &mut LinkerInstance<'_, State<T>>,
        name: &str,
        provider: &Arc<Provider<T>>,
        index: usize,
        reach: Reach,
    ) -> wasmtime::Result<()>;
}

/// The parameters' tuple `P` and the result `R`.
#[doc(hidden)]
pub struct TypedWire<P, R>(PhantomData<fn(P) -> R>);

impl<P, R> TypedWire<P, R> {
    pub(crate) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<T, P, R> Wire<T> for TypedWire<P, R>
where
    T: Send + 'static,
    P: ComponentNamedList + Lift + Lower + Clone + Send + Sync + 'static,
    R: ComponentType + Lift + Lower + Send + Sync + 'static,
{
    #[allow(private_interfaces, reason = "sealed: implemented here alone")]
    fn define(
        &self,
        instance: &mut LinkerInstance<'_, State<T>>,
        name: &str,
        provider: &Arc<Provider<T>>,
        index: usize,
        Reach { mode, place }: Reach,
    ) -> wasmtime::Result<()> {
        #[cfg(feature = "async-functions")]
        if provider.interface.functions[index].signature.asynchronous {
            return crate::concurrent::define_typed::<T, P, R>(instance, name, provider, index);
        }
        #[cfg(feature = "async")]
        if mode == Mode::Yielding {
            return define_yielding::<T, P, R>(instance, name, provider, index);
        }
        debug_assert_eq!(mode, Mode::Blocking);
        let plugins: Arc<[Arc<Loaded<T>>]> = provider.plugins.as_slice().into();
        let first = plugins.first().cloned();
        match provider.interface.cardinality {
            Cardinality::ExactlyOne => instance.func_wrap(name, move |mut store: Caller<'_, T>, arguments: P| {
                let caller = store.data_mut();
                let answer = first.as_deref().map(|plugin| one::<T, P, R>(caller, plugin, place, index, arguments));
                Ok((answer.unwrap_or_else(nobody),))
            }),
            Cardinality::AtMostOne => instance.func_wrap(name, move |mut store: Caller<'_, T>, arguments: P| {
                let caller = store.data_mut();
                Ok((first.as_deref().map(|plugin| one::<T, P, R>(caller, plugin, place, index, arguments)),))
            }),
            Cardinality::AtLeastOne | Cardinality::Any => {
                instance.func_wrap(name, move |mut store: Caller<'_, T>, arguments: P| {
                    let caller = store.data_mut();
                    let answers = plugins.iter().enumerate().map(|(at, plugin)| {
                        one::<T, P, R>(caller, plugin, place.map(|first| first + at), index, arguments.clone())
                    });
                    Ok((answers.collect::<Vec<_>>(),))
                })
            }
        }
    }
}

type Caller<'a, T> = StoreContextMut<'a, State<T>>;

#[inline(always)]
#[allow(clippy::inline_always, reason = "as of the call that it makes")]
fn one<T, P, R>(
    caller: &mut State<T>,
    plugin: &Loaded<T>,
    place: Option<usize>,
    index: usize,
    arguments: P,
) -> Result<R, CallError>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + 'static,
    R: ComponentType + Lift + 'static,
{
    let deadline = caller.deadline;
    let answer: Result<(R,), DispatchError> = match place.and_then(|place| caller.exclusive.get_mut(place)) {
        Some(exclusive) => plugin.call_typed_in(&mut exclusive.slot, index, arguments, deadline),
        None => plugin.call_typed(index, arguments, deadline),
    };
    answer.map(|(result,)| result).map_err(CallError::from)
}

/// What an interface of exactly one plugin answers without it; it does not load then.
#[cold]
pub(crate) fn nobody<R>() -> Result<R, CallError> {
    Err(CallError::Unavailable("no plugin".to_owned()))
}

/// The same where calls yield: the providers work at the same time.
#[cfg(feature = "async")]
fn define_yielding<T, P, R>(
    instance: &mut LinkerInstance<'_, State<T>>,
    name: &str,
    provider: &Provider<T>,
    index: usize,
) -> wasmtime::Result<()>
where
    T: Send + 'static,
    P: ComponentNamedList + Lift + Lower + Clone + Send + Sync + 'static,
    R: ComponentType + Lift + Lower + Send + Sync + 'static,
{
    let plugins: Arc<[Arc<Loaded<T>>]> = provider.plugins.as_slice().into();
    let first = plugins.first().cloned();
    match provider.interface.cardinality {
        Cardinality::ExactlyOne => instance.func_wrap_async(name, move |store: Caller<'_, T>, arguments: P| {
            let (first, caller) = (first.clone(), store.data().deadline);
            Box::new(async move {
                let Some(plugin) = first else { return Ok((nobody(),)) };
                Ok((one_yielding::<T, P, R>(&plugin, index, arguments, caller).await,))
            })
        }),
        Cardinality::AtMostOne => instance.func_wrap_async(name, move |store: Caller<'_, T>, arguments: P| {
            let (first, caller) = (first.clone(), store.data().deadline);
            Box::new(async move {
                let Some(plugin) = first else { return Ok((None,)) };
                Ok((Some(one_yielding::<T, P, R>(&plugin, index, arguments, caller).await),))
            })
        }),
        Cardinality::AtLeastOne | Cardinality::Any => {
            instance.func_wrap_async(name, move |store: Caller<'_, T>, arguments: P| {
                let (plugins, caller) = (Arc::clone(&plugins), store.data().deadline);
                Box::new(async move {
                    let answers =
                        plugins.iter().map(|plugin| one_yielding::<T, P, R>(plugin, index, arguments.clone(), caller));
                    Ok((futures_util::future::join_all(answers).await,))
                })
            })
        }
    }
}

#[cfg(feature = "async")]
pub(crate) async fn one_yielding<T, P, R>(
    plugin: &Arc<Loaded<T>>,
    index: usize,
    arguments: P,
    caller: u64,
) -> Result<R, CallError>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + Send + Sync + 'static,
    R: ComponentType + Lift + Send + Sync + 'static,
{
    let answer = plugin.call_typed_for_another::<P, (R,)>(index, arguments, caller).await;
    answer.map(|(result,)| result).map_err(CallError::from)
}
