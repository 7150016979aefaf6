//! Functions that WIT calls `async`: a plugin goes on while another works for it.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::join_all;
use wasmtime::component::{Accessor, ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower, TypedFunc};
use wasmtime::{AsContextMut, Store};

use crate::error::CallError;
use crate::instance::Loaded;
use crate::interface::Cardinality;
use crate::provider::Provider;
use crate::socket::{Call, error};
use crate::state::State;
use crate::wire::{nobody, one_yielding};

/// A typed call in a runtime with such functions. `TypedFunc::call_async` would do, but for wasmtime 48's assertion when
/// the called one ends without an answer: it panics where debug assertions are on.
pub(crate) async fn call<T, P, R>(
    store: &mut Store<State<T>>,
    function: TypedFunc<P, R>,
    arguments: P,
) -> wasmtime::Result<R>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + Send + 'static,
    R: ComponentNamedList + Lift + Send + 'static,
{
    let store = store.as_context_mut();
    store.run_concurrent(async move |accessor| function.call_concurrent(accessor, arguments).await).await?
}

/// Defines a function that WIT calls `async`, for values of any type.
pub(crate) fn define<T: Send + 'static>(
    instance: &mut LinkerInstance<'_, State<T>>,
    name: &str,
    provider: &Arc<Provider<T>>,
    index: usize,
) -> wasmtime::Result<()> {
    let provider = Arc::clone(provider);
    instance.func_new_concurrent(name, move |accessor, _, arguments, results| {
        let provider = Arc::clone(&provider);
        Box::pin(async move {
            let begun = accessor.with(|mut access| {
                let mut store = access.as_context_mut();
                let caller = store.data().deadline;
                Call::new(&mut store, &provider, index, arguments).map(|call| (call, caller))
            });
            results[0] = match begun {
                Ok((call, caller)) => {
                    let outcomes = call.outcomes(caller).await;
                    accessor.with(|mut access| call.answer(&mut access.as_context_mut(), outcomes))
                }
                Err(failed) => error(failed),
            };
            Ok(())
        })
    })
}

type Answering<'a, A> = Pin<Box<dyn Future<Output = wasmtime::Result<A>> + Send + 'a>>;

/// The same where the host knows its types.
pub(crate) fn define_typed<T, P, R>(
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
        Cardinality::ExactlyOne => instance.func_wrap_concurrent(
            name,
            move |accessor: &Accessor<State<T>>, arguments: P| -> Answering<'_, (Result<R, CallError>,)> {
                let (first, caller) = (first.clone(), deadline(accessor));
                Box::pin(async move {
                    let Some(plugin) = first else { return Ok((nobody(),)) };
                    Ok((one_yielding::<T, P, R>(&plugin, index, arguments, caller).await,))
                })
            },
        ),
        Cardinality::AtMostOne => instance.func_wrap_concurrent(
            name,
            move |accessor: &Accessor<State<T>>, arguments: P| -> Answering<'_, (Option<Result<R, CallError>>,)> {
                let (first, caller) = (first.clone(), deadline(accessor));
                Box::pin(async move {
                    let Some(plugin) = first else { return Ok((None,)) };
                    Ok((Some(one_yielding::<T, P, R>(&plugin, index, arguments, caller).await),))
                })
            },
        ),
        Cardinality::AtLeastOne | Cardinality::Any => instance.func_wrap_concurrent(
            name,
            move |accessor: &Accessor<State<T>>, arguments: P| -> Answering<'_, (Vec<Result<R, CallError>>,)> {
                let (plugins, caller) = (Arc::clone(&plugins), deadline(accessor));
                Box::pin(async move {
                    let answers =
                        plugins.iter().map(|plugin| one_yielding::<T, P, R>(plugin, index, arguments.clone(), caller));
                    Ok((join_all(answers).await,))
                })
            },
        ),
    }
}

fn deadline<T: Send + 'static>(accessor: &Accessor<State<T>>) -> u64 {
    accessor.with(|mut access| access.as_context_mut().data().deadline)
}
