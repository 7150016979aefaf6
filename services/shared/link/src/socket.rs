//! Offering an interface to a component that imports it.

use std::collections::BTreeMap;
use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, ResourceType, Val};

use crate::error::{CallError, DispatchError};
use crate::instance::{Answer, Handed, Loaded};
use crate::interface::{Cardinality, Kind};
use crate::load::Provider;
use crate::resource::{pass, receive};
use crate::signature::{Signature, resources_of};
use crate::state::State;
use crate::wire::Wire;

type Wires<T> = BTreeMap<(String, String), Arc<dyn Wire<T>>>;

/// Defines in `linker` what `component` imports of the provider's interface. The error names the import and says why.
pub(crate) fn offer<T: Send + 'static>(
    linker: &mut Linker<State<T>>,
    component: &Component,
    provider: &Arc<Provider<T>>,
    wires: &Wires<T>,
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
                    Some(wire) => wire.define(&mut instance, name, provider, index),
                    None => define(&mut instance, name, provider, index),
                }
                .map_err(|error| refuse(format!("{error:#}")))?;
            }
            ComponentItem::Resource(_) => {
                let kind = provider.kinds.iter().find(|(known, _)| known == name).map(|(_, kind)| *kind);
                let kind = kind.ok_or_else(|| refuse("the interface has no such resource".to_owned()))?;
                let dropped = |mut store: StoreContextMut<'_, State<T>>, number: u32| {
                    drop(store.data_mut().handles.remove(number));
                    Ok(())
                };
                instance
                    .resource(name, ResourceType::host_dynamic(kind), dropped)
                    .map_err(|error| refuse(format!("{error:#}")))?;
            }
            ComponentItem::Type(_) => {}
            _ => return Err(refuse("only functions, types and resources pass through a socket".to_owned())),
        }
    }
    Ok(())
}

/// Defines one function, for values of any type.
fn define<T: Send + 'static>(
    instance: &mut LinkerInstance<'_, State<T>>,
    name: &str,
    provider: &Arc<Provider<T>>,
    index: usize,
) -> wasmtime::Result<()> {
    let provider = Arc::clone(provider);
    let function = &provider.interface.functions[index];
    let method = matches!(function.kind, Kind::Method(_));
    let (params_hold, result_holds) = (function.params_hold, function.result_holds);
    instance.func_new(name, move |mut store, _, arguments, results| {
        results[0] = if params_hold {
            with_handles(&mut store, &provider, index, arguments, method, result_holds)
        } else {
            let mut answer = |plugin: &Arc<Loaded<T>>| {
                let caller = store.data().deadline;
                let outcome = plugin.call(index, arguments, caller, Handed::None);
                finish(&mut store, plugin, index, outcome, result_holds)
            };
            shape(provider.interface.cardinality, provider.plugins.iter().map(&mut answer))
        };
        Ok(())
    })
}

/// A call with handles goes to their owner. What others would have to answer is an error: the handles are not theirs.
fn with_handles<T: Send + 'static>(
    store: &mut StoreContextMut<'_, State<T>>,
    provider: &Provider<T>,
    index: usize,
    arguments: &[Val],
    method: bool,
    result_holds: bool,
) -> Val {
    let passing = pass(store, &provider.interface.functions[index].signature.params, arguments);
    let caller = store.data().deadline;
    let mut answer = |plugin: &Arc<Loaded<T>>| {
        let outcome = match &passing {
            Err(reason) => Err(plugin.resource_error(index, reason.clone())),
            Ok(passing) => match &passing.owner {
                Some((owner, _)) if !Arc::ptr_eq(owner, plugin) => {
                    Err(plugin.resource_error(index, format!("it belongs to plugin {:?}", owner.id)))
                }
                owner => {
                    let handles = owner.as_ref().map_or(Handed::None, |(_, generation)| Handed::Passed(*generation));
                    plugin.call(index, &passing.values, caller, handles)
                }
            },
        };
        finish(store, plugin, index, outcome, result_holds)
    };
    if !method {
        return shape(provider.interface.cardinality, provider.plugins.iter().map(answer));
    }
    match &passing {
        Ok(passing) => match &passing.owner {
            Some((owner, _)) => answer(owner),
            None => error(CallError::Resource("a method's first argument is no handle".to_owned())),
        },
        Err(reason) => error(CallError::Resource(reason.clone())),
    }
}

/// One plugin's outcome as its caller sees it.
fn finish<T: Send + 'static>(
    store: &mut StoreContextMut<'_, State<T>>,
    plugin: &Arc<Loaded<T>>,
    index: usize,
    outcome: Result<Answer, DispatchError>,
    result_holds: bool,
) -> Val {
    let answer = outcome.and_then(|answer| match answer.value {
        Some(value) if result_holds => {
            receive(store, plugin, answer.generation, answer.kinds.as_deref().unwrap_or_default(), &value)
                .map(Some)
                .map_err(|reason| plugin.resource_error(index, reason))
        }
        value => Ok(value),
    });
    match answer {
        Ok(value) => Val::Result(Ok(value.map(Box::new))),
        Err(failed) => error(failed.into()),
    }
}

fn error(error: CallError) -> Val {
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
