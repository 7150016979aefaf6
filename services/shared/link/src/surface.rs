//! Interfaces read from a component: what it offers to others, and what it wants of them.

use wasmtime::component::Component;
use wasmtime::component::types::{ComponentInstance, ComponentItem};

use crate::interface::{Cardinality, Function, Interface, Kind};
use crate::signature::{Form, Signature, resources_of};

impl Interface {
    /// The interface `path` as `component` exports it; `None` if it does not.
    #[must_use]
    pub fn exported_by(
        component: &Component,
        id: impl Into<String>,
        path: &str,
        cardinality: Cardinality,
    ) -> Option<Self> {
        let engine = component.engine();
        let Some(ComponentItem::ComponentInstance(instance)) =
            component.component_type().get_export(engine, path).map(|item| item.ty)
        else {
            return None;
        };
        let interface = Self::new(id, path, cardinality);
        Some(read(interface, &instance, component, |function| Some(function.clone())).unwrap_or_else(|never| never))
    }

    /// The interface `path` as its providers have to export it, read from how `component` imports it through a socket:
    /// only the functions that it imports.
    ///
    /// # Errors
    /// Why it is no socket of this cardinality, by function.
    pub fn wanted_by(
        component: &Component,
        id: impl Into<String>,
        path: &str,
        cardinality: Cardinality,
    ) -> Result<Self, String> {
        let engine = component.engine();
        let Some(ComponentItem::ComponentInstance(instance)) =
            component.component_type().get_import(engine, path).map(|item| item.ty)
        else {
            return Err(format!("{path} is not imported as an interface"));
        };
        let mut wrong = Vec::new();
        let interface = Self::new(id, path, cardinality);
        let interface = read(interface, &instance, component, |function| {
            let kind = &function.kind;
            match function.signature.behind_socket() {
                Some((signature, form)) if form == Form::of(cardinality, kind) => {
                    Some(Function::of(function.name.clone(), signature))
                }
                _ => {
                    // Whoever reads this has the bare type in mind.
                    let expected = Signature { result: None, ..function.signature.clone() };
                    let expected = expected.through_socket(cardinality, kind);
                    wrong.push(format!(
                        "{} is imported as {}, through a socket of {cardinality} it has the form {expected}, where _ is its result",
                        function.name, function.signature
                    ));
                    None
                }
            }
        })
        .unwrap_or_else(|rest| rest);
        if wrong.is_empty() { Ok(interface) } else { Err(wrong.join("; ")) }
    }
}

/// Adds what `instance` has to `interface`: `Err` where a function was left out.
#[allow(clippy::result_large_err, reason = "both sides are the interface")]
fn read(
    mut interface: Interface,
    instance: &ComponentInstance,
    component: &Component,
    mut keep: impl FnMut(&Function) -> Option<Function>,
) -> Result<Interface, Interface> {
    let engine = component.engine();
    let resources = resources_of(instance, engine);
    let mut whole = true;
    for (name, item) in instance.exports(engine) {
        match item.ty {
            ComponentItem::ComponentFunc(func) => {
                match keep(&Function::of(name.to_owned(), Signature::of(&func, &resources))) {
                    Some(function) => interface = interface.function(function),
                    None => whole = false,
                }
            }
            ComponentItem::Resource(_) => interface = interface.resource(name),
            _ => {}
        }
    }
    if whole { Ok(interface) } else { Err(interface) }
}

impl Form {
    fn of(cardinality: Cardinality, kind: &Kind) -> Self {
        match cardinality {
            _ if matches!(kind, Kind::Method(_)) => Self::One,
            Cardinality::ExactlyOne => Self::One,
            Cardinality::AtMostOne => Self::Optional,
            Cardinality::AtLeastOne | Cardinality::Any => Self::Many,
        }
    }
}
