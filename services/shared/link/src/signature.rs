//! A function's parameters and result, as declared, as exported and as imported through a socket.

use std::fmt::{self, Display, Formatter};

use wasmtime::Engine;
use wasmtime::component::types::{ComponentFunc, ComponentInstance, ComponentItem};
use wasmtime::component::{ResourceType, Val};

use crate::interface::{Cardinality, Kind};
use crate::value_type::{ValueType, join};

/// Parameters and result of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// In order.
    pub params: Vec<ValueType>,
    /// `None`: returns nothing.
    pub result: Option<ValueType>,
    /// WIT calls the function `async`.
    pub asynchronous: bool,
}

/// How a socket hands answers to the plugin that calls through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    One,
    Optional,
    Many,
}

impl Signature {
    /// What a plugin imports to call a function of this signature through a socket.
    #[must_use]
    pub fn through_socket(&self, cardinality: Cardinality, kind: &Kind) -> Self {
        let answer = ValueType::result(self.result.clone(), Some(call_error()));
        let result = match cardinality {
            _ if matches!(kind, Kind::Method(_)) => answer,
            Cardinality::ExactlyOne => answer,
            Cardinality::AtMostOne => ValueType::option(answer),
            Cardinality::AtLeastOne | Cardinality::Any => ValueType::list(answer),
        };
        Self { params: self.params.clone(), result: Some(result), asynchronous: self.asynchronous }
    }

    /// What a provider exports so that it is imported through a socket with this signature, and in which form; `None` if
    /// this is no socket's.
    pub(crate) fn behind_socket(&self) -> Option<(Self, Form)> {
        let (answer, form) = match self.result.as_ref()? {
            ValueType::Option(inner) => (&**inner, Form::Optional),
            ValueType::List(inner) => (&**inner, Form::Many),
            answer => (answer, Form::One),
        };
        let ValueType::Result { ok, err } = answer else { return None };
        let result = ok.as_deref().cloned();
        let bare = || Self { params: self.params.clone(), result, asynchronous: self.asynchronous };
        (err.as_deref() == Some(&call_error())).then(|| (bare(), form))
    }

    /// Whether `values` can be handed to a function of this signature.
    #[must_use]
    pub fn accepts(&self, values: &[Val]) -> bool {
        self.params.len() == values.len() && self.params.iter().zip(values).all(|(ty, value)| ty.fits(value))
    }

    pub(crate) fn of(func: &ComponentFunc, resources: &[(ResourceType, String)]) -> Self {
        Self {
            params: func.params().map(|(_, ty)| ValueType::of(&ty, resources)).collect(),
            result: func.results().next().map(|ty| ValueType::of(&ty, resources)),
            asynchronous: func.async_(),
        }
    }
}

impl Display for Signature {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let asynchronous = if self.asynchronous { "async " } else { "" };
        write!(f, "{asynchronous}func({})", join(self.params.iter()))?;
        self.result.as_ref().map_or(Ok(()), |result| write!(f, " -> {result}"))
    }
}

/// The names under which an instance type knows resources.
pub(crate) fn resources_of(instance: &ComponentInstance, engine: &Engine) -> Vec<(ResourceType, String)> {
    instance
        .exports(engine)
        .filter_map(|(name, item)| match item.ty {
            ComponentItem::Resource(ty) => Some((ty, name.to_owned())),
            _ => None,
        })
        .collect()
}

/// `call-error` of `shipote:link/errors`.
fn call_error() -> ValueType {
    let text = || Some(ValueType::String);
    let cases = [
        ("trap", text()),
        ("deadline", None),
        ("memory-limit", None),
        ("busy", None),
        ("resource", text()),
        ("unavailable", text()),
    ];
    ValueType::Variant(cases.into_iter().map(|(name, ty)| (name.to_owned(), ty)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sockets_signature_leads_back_to_the_providers() {
        for result in [None, Some(ValueType::U32), Some(ValueType::option(ValueType::Bool))] {
            let bare = Signature { params: vec![ValueType::String], result, asynchronous: true };
            for cardinality in Cardinality::ALL {
                let (back, _) = bare.through_socket(cardinality, &Kind::Free).behind_socket().unwrap();
                assert_eq!(back, bare, "{cardinality}");
            }
            assert!(bare.behind_socket().is_none(), "{bare}");
        }
    }
}
