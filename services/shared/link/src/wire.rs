//! Functions through sockets whose types the host knows: no value is built in between.

use std::marker::PhantomData;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower};

use crate::error::CallError;
use crate::interface::Cardinality;
use crate::load::Provider;
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
    ) -> wasmtime::Result<()> {
        let provider = Arc::clone(provider);
        match provider.interface.cardinality {
            Cardinality::ExactlyOne => {
                instance.func_wrap(name, move |store: StoreContextMut<'_, State<T>>, arguments: P| {
                    let caller = store.data().deadline;
                    Ok((one::<T, P, R>(&provider, index, arguments, caller, 0)
                        .unwrap_or_else(|| Err(CallError::Unavailable("no plugin".to_owned()))),))
                })
            }
            Cardinality::AtMostOne => {
                instance.func_wrap(name, move |store: StoreContextMut<'_, State<T>>, arguments: P| {
                    let caller = store.data().deadline;
                    Ok((one::<T, P, R>(&provider, index, arguments, caller, 0),))
                })
            }
            Cardinality::AtLeastOne | Cardinality::Any => {
                instance.func_wrap(name, move |store: StoreContextMut<'_, State<T>>, arguments: P| {
                    let caller = store.data().deadline;
                    let answers = (0..provider.plugins.len())
                        .filter_map(|at| one::<T, P, R>(&provider, index, arguments.clone(), caller, at));
                    Ok((answers.collect::<Vec<_>>(),))
                })
            }
        }
    }
}

#[inline]
fn one<T, P, R>(
    provider: &Provider<T>,
    index: usize,
    arguments: P,
    caller: u64,
    at: usize,
) -> Option<Result<R, CallError>>
where
    T: Send + 'static,
    P: ComponentNamedList + Lower + 'static,
    R: ComponentType + Lift + 'static,
{
    let plugin = provider.plugins.get(at)?;
    Some(plugin.call_typed::<P, (R,)>(index, arguments, caller).map(|(result,)| result).map_err(CallError::from))
}
