//! Offering an interface to a component that imports it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType, Val};

use crate::error::{CallError, DispatchError};
use crate::instance::{Answer, Handed, Loaded, Mode};
use crate::interface::{Cardinality, Kind};
use crate::provider::Provider;
use crate::resource::{Passing, pass, receive};
use crate::signature::{Signature, resources_of};
use crate::state::State;
use crate::wire::Wire;

type Wires<T> = BTreeMap<(String, String), Arc<dyn Wire<T>>>;

/// How an importer's socket reaches the providers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    pub(crate) mode: Mode,
    /// Where the importer's store has the providers' slots, one after the other, if nobody else calls them.
    pub(crate) place: Option<usize>,
}

/// Defines in `linker` what `component` imports of the provider's interface. The error names the import and says why.
pub(crate) fn offer<T: Send + 'static>(
    linker: &mut Linker<State<T>>,
    component: &Component,
    provider: &Arc<Provider<T>>,
    wires: &Wires<T>,
    reach: Reach,
) -> Result<(), (String, String)> {
    let engine = component.engine().clone();
    let interface = &provider.interface;
    let ty = component.component_type();
    let imported = match ty.get_import(&engine, &interface.path).map(|item| item.ty) {
        // A declared socket that is not used is no fault.
        None => return Ok(()),
        Some(ComponentItem::ComponentInstance(imported)) => imported,
        Some(_) => return Err((interface.path.clone(), "imported as something else than an interface".to_owned())),
    };
    let resources = resources_of(&imported, &engine);
    let plain = |error: wasmtime::Error| (interface.path.clone(), format!("{error:#}"));
    let mut instance = linker.instance(&interface.path).map_err(plain)?;
    for (name, item) in imported.exports(&engine) {
        let refuse = |reason: String| (format!("{}#{name}", interface.path), reason);
        match item.ty {
            ComponentItem::ComponentFunc(func) => {
                let index =
                    interface.position(name).ok_or_else(|| refuse("the interface has no such function".to_owned()))?;
                let function = &interface.functions[index];
                let expected = function.signature.through_socket(interface.cardinality, &function.kind);
                let found = Signature::of(&func, &resources);
                if found != expected {
                    return Err(refuse(format!("it is imported as {found}, through a socket it is {expected}")));
                }
                let wire = wires.get(&(interface.id.clone(), name.to_owned()));
                let wire = wire.filter(|_| !function.params_hold && !function.result_holds);
                match wire {
                    Some(wire) => wire.define(&mut instance, name, provider, index, reach),
                    #[cfg(feature = "async-functions")]
                    None if function.signature.asynchronous => {
                        crate::concurrent::define(&mut instance, name, provider, index)
                    }
                    None => define(&mut instance, name, provider, index, reach),
                }
                .map_err(|error| refuse(format!("{error:#}")))?;
            }
            ComponentItem::Resource(_) => {
                let kind = provider.kinds.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
                let kind = kind.ok_or_else(|| refuse("the interface has no such resource".to_owned()))?;
                define_resource(&mut instance, name, ResourceType::host_dynamic(kind), reach.mode)
                    .map_err(|error| refuse(format!("{error:#}")))?;
            }
            ComponentItem::Type(_) => {}
            _ => return Err(refuse("only functions, types and resources pass through a socket".to_owned())),
        }
    }
    Ok(())
}

/// Defines a resource: dropping the number drops what it stands for.
fn define_resource<T: Send + 'static>(
    instance: &mut LinkerInstance<'_, State<T>>,
    name: &str,
    ty: ResourceType,
    mode: Mode,
) -> wasmtime::Result<()> {
    match mode {
        Mode::Blocking => instance.resource(name, ty, |mut store, number| {
            drop(store.data_mut().handles.remove(number));
            Ok(())
        }),
        #[cfg(feature = "async")]
        Mode::Yielding => instance.resource_async(name, ty, |mut store, number| {
            let held = store.data_mut().handles.remove(number);
            Box::new(async move {
                if let Some(held) = held {
                    held.release().await;
                }
                Ok(())
            })
        }),
    }
}

/// Defines one function, for values of any type.
fn define<T: Send + 'static>(
    instance: &mut LinkerInstance<'_, State<T>>,
    name: &str,
    provider: &Arc<Provider<T>>,
    index: usize,
    Reach { mode, place }: Reach,
) -> wasmtime::Result<()> {
    let provider = Arc::clone(provider);
    match mode {
        Mode::Blocking if provider.interface.functions[index].plain => {
            instance.func_new(name, move |mut store, _, arguments, results| {
                results[0] = answer_plain(store.data_mut(), &provider, index, place, arguments);
                Ok(())
            })
        }
        Mode::Blocking => instance.func_new(name, move |mut store, _, arguments, results| {
            results[0] = answer(&mut store, &provider, index, arguments);
            Ok(())
        }),
        #[cfg(feature = "async")]
        Mode::Yielding => instance.func_new_async(name, move |mut store, _, arguments, results| {
            let provider = Arc::clone(&provider);
            Box::new(async move {
                results[0] = answer_yielding(&mut store, &provider, index, arguments).await;
                Ok(())
            })
        }),
    }
}

fn answer_plain<T: Send + 'static>(
    caller: &mut State<T>,
    provider: &Provider<T>,
    index: usize,
    place: Option<usize>,
    arguments: &[Val],
) -> Val {
    let deadline = caller.deadline;
    let answers = provider.plugins.iter().enumerate().map(|(at, plugin)| {
        let answer = match place.and_then(|first| caller.exclusive.get_mut(first + at)) {
            Some(exclusive) => plugin.call_plain_in(&mut exclusive.slot, index, arguments, deadline),
            None => plugin.call_plain(index, arguments, deadline),
        };
        answer.map_or_else(|failed| error(failed.into()), |value| Val::Result(Ok(value.map(Box::new))))
    });
    shape(provider.interface.cardinality, answers)
}

fn answer<T: Send + 'static>(
    store: &mut StoreContextMut<'_, State<T>>,
    provider: &Provider<T>,
    index: usize,
    arguments: &[Val],
) -> Val {
    let call = match Call::new(store, provider, index, arguments) {
        Ok(call) => call,
        Err(failed) => return error(failed),
    };
    let caller = store.data().deadline;
    let answers = call.receivers.iter().map(|plugin| {
        let outcome = call.handles(plugin).and_then(|h| plugin.call(index, &call.passing.values, caller, h));
        call.finish(store, plugin, outcome)
    });
    shape(call.cardinality, answers)
}

/// The same where calls yield: the providers work at the same time.
#[cfg(feature = "async")]
async fn answer_yielding<T: Send + 'static>(
    store: &mut StoreContextMut<'_, State<T>>,
    provider: &Provider<T>,
    index: usize,
    arguments: &[Val],
) -> Val {
    let call = match Call::new(store, provider, index, arguments) {
        Ok(call) => call,
        Err(failed) => return error(failed),
    };
    let caller = store.data().deadline;
    let outcomes = call.outcomes(caller).await;
    call.answer(store, outcomes)
}

/// A call through a socket: whom it goes to, and with what.
pub(crate) struct Call<'a, T: 'static> {
    index: usize,
    passing: Passing<'a, T>,
    receivers: Cow<'a, [Arc<Loaded<T>>]>,
    cardinality: Cardinality,
    result_holds: bool,
}

impl<'a, T: Send + 'static> Call<'a, T> {
    /// Turns handles among the arguments into those of their owner, to which a method goes alone.
    pub(crate) fn new(
        store: &mut StoreContextMut<'_, State<T>>,
        provider: &'a Provider<T>,
        index: usize,
        arguments: &'a [Val],
    ) -> Result<Self, CallError> {
        let function = &provider.interface.functions[index];
        let mut call = Self {
            index,
            passing: Passing { values: arguments.into(), owner: None },
            receivers: Cow::Borrowed(&provider.plugins),
            cardinality: provider.interface.cardinality,
            result_holds: function.result_holds,
        };
        if function.params_hold {
            call.passing = pass(store, &function.signature.params, arguments).map_err(CallError::Resource)?;
        }
        if matches!(function.kind, Kind::Method(_)) {
            let owner = call.passing.owner.as_ref().map(|(owner, _)| Arc::clone(owner));
            let owner =
                owner.ok_or_else(|| CallError::Resource("a method's first argument is no handle".to_owned()))?;
            call.receivers = Cow::Owned(vec![owner]);
            call.cardinality = Cardinality::ExactlyOne;
        }
        Ok(call)
    }

    /// What `plugin` is to know of the handles. Those of another plugin are not its.
    fn handles(&self, plugin: &Arc<Loaded<T>>) -> Result<Handed, DispatchError> {
        match &self.passing.owner {
            Some((owner, _)) if !Arc::ptr_eq(owner, plugin) => {
                Err(plugin.resource_error(self.index, format!("it belongs to plugin {:?}", owner.id())))
            }
            Some((_, generation)) => Ok(Handed::Passed(*generation)),
            None => Ok(Handed::None),
        }
    }

    /// What comes of it with each plugin, which work at the same time.
    #[cfg(feature = "async")]
    pub(crate) async fn outcomes(&self, caller: u64) -> Vec<Result<Answer, DispatchError>> {
        let outcomes = self.receivers.iter().map(|plugin| async move {
            let handles = self.handles(plugin)?;
            plugin.call_for_another(self.index, &self.passing.values, caller, handles).await
        });
        futures_util::future::join_all(outcomes).await
    }

    /// The outcomes as the caller sees them.
    #[cfg(feature = "async")]
    pub(crate) fn answer(
        &self,
        store: &mut StoreContextMut<'_, State<T>>,
        outcomes: Vec<Result<Answer, DispatchError>>,
    ) -> Val {
        let answers = self.receivers.iter().zip(outcomes);
        shape(self.cardinality, answers.map(|(plugin, outcome)| self.finish(store, plugin, outcome)))
    }

    /// One plugin's outcome as its caller sees it.
    fn finish(
        &self,
        store: &mut StoreContextMut<'_, State<T>>,
        plugin: &Arc<Loaded<T>>,
        outcome: Result<Answer, DispatchError>,
    ) -> Val {
        let answer = outcome.and_then(|answer| match answer.value {
            Some(value) if self.result_holds => {
                receive(store, plugin, answer.generation, answer.kinds.as_deref().unwrap_or_default(), &value)
                    .map(Some)
                    .map_err(|reason| plugin.resource_error(self.index, reason))
            }
            value => Ok(value),
        });
        match answer {
            Ok(value) => Val::Result(Ok(value.map(Box::new))),
            Err(failed) => error(failed.into()),
        }
    }
}

pub(crate) fn error(error: CallError) -> Val {
    Val::Result(Err(Some(Box::new(error.into()))))
}

/// Answers in the form that the cardinality gives them.
fn shape(cardinality: Cardinality, mut answers: impl Iterator<Item = Val>) -> Val {
    match cardinality {
        Cardinality::ExactlyOne => {
            answers.next().unwrap_or_else(|| error(CallError::Unavailable("no plugin".to_owned())))
        }
        Cardinality::AtMostOne => Val::Option(answers.next().map(Box::new)),
        Cardinality::AtLeastOne | Cardinality::Any => Val::List(answers.collect()),
    }
}
