//! What plugins agree on.

use std::fmt::{self, Display, Formatter};

use crate::signature::Signature;
use crate::value_type::ValueType;

/// How many plugins implement an interface, counted over those that loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cardinality {
    /// 1.
    ExactlyOne,
    /// 0 or 1.
    AtMostOne,
    /// 1 or more.
    AtLeastOne,
    /// 0 or more.
    Any,
}

impl Cardinality {
    /// All four.
    pub const ALL: [Self; 4] = [Self::ExactlyOne, Self::AtMostOne, Self::AtLeastOne, Self::Any];

    /// Whether `count` plugins are as many as it should be.
    #[must_use]
    pub fn admits(self, count: usize) -> bool {
        match self {
            Self::ExactlyOne => count == 1,
            Self::AtMostOne => count <= 1,
            Self::AtLeastOne => count >= 1,
            Self::Any => true,
        }
    }
}

impl Display for Cardinality {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExactlyOne => "exactly one plugin",
            Self::AtMostOne => "at most one plugin",
            Self::AtLeastOne => "at least one plugin",
            Self::Any => "any number of plugins",
        })
    }
}

/// What a function is to the interface's resources. Read from its name, as the component model writes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No part of a resource.
    Free,
    /// `[method]r.f`: goes to the plugin that owns the handle in its first parameter.
    Method(String),
    /// `[static]r.f`: belongs to a resource by name only.
    Static(String),
    /// `[constructor]r`: makes one.
    Constructor(String),
}

/// A function of an interface.
#[derive(Debug, Clone)]
pub struct Function {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) signature: Signature,
    /// Handles may be among the arguments, in the result.
    pub(crate) params_hold: bool,
    pub(crate) result_holds: bool,
    /// It has to do with no handle.
    pub(crate) plain: bool,
}

impl Function {
    /// A function by its name in the component model, such as `get-value` or `[method]file.read`.
    pub fn new(name: impl Into<String>, params: impl Into<Vec<ValueType>>, result: Option<ValueType>) -> Self {
        Self::of(name.into(), Signature { params: params.into(), result, asynchronous: false })
    }

    /// The same as a function that WIT calls `async`: only a tree that tasks call loads it, in a runtime that has such
    /// functions.
    #[must_use]
    pub fn asynchronous(mut self) -> Self {
        self.signature.asynchronous = true;
        self
    }

    pub(crate) fn of(name: String, signature: Signature) -> Self {
        let resource = |rest: &str| rest.split('.').next().unwrap_or_default().to_owned();
        let kind = if let Some(rest) = name.strip_prefix("[method]") {
            Kind::Method(resource(rest))
        } else if let Some(rest) = name.strip_prefix("[static]") {
            Kind::Static(resource(rest))
        } else if let Some(rest) = name.strip_prefix("[constructor]") {
            Kind::Constructor(rest.to_owned())
        } else {
            Kind::Free
        };
        let params_hold = signature.params.iter().any(ValueType::has_resources);
        let result_holds = signature.result.as_ref().is_some_and(ValueType::has_resources);
        let plain = !params_hold && !result_holds && !matches!(kind, Kind::Method(_));
        Self { name, kind, signature, params_hold, result_holds, plain }
    }

    /// Its name in the component model.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is to the interface's resources.
    #[must_use]
    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Its types.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }
}

/// An interface: what a plugin that implements it exports and what one that depends on it may import.
#[derive(Debug, Clone)]
pub struct Interface {
    pub(crate) id: String,
    pub(crate) path: String,
    pub(crate) cardinality: Cardinality,
    pub(crate) functions: Vec<Function>,
    pub(crate) resources: Vec<String>,
}

impl Interface {
    /// An interface without functions. `id` is what plugins name in plugs and sockets, `path` the name in components,
    /// such as `my:package/example@1.0.0`.
    pub fn new(id: impl Into<String>, path: impl Into<String>, cardinality: Cardinality) -> Self {
        Self { id: id.into(), path: path.into(), cardinality, functions: Vec::new(), resources: Vec::new() }
    }

    /// Adds a function.
    #[must_use]
    pub fn function(mut self, function: Function) -> Self {
        self.functions.push(function);
        self
    }

    /// Adds a resource.
    #[must_use]
    pub fn resource(mut self, name: impl Into<String>) -> Self {
        self.resources.push(name.into());
        self
    }

    /// What plugins name in plugs and sockets.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name in components.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// How many plugins implement it.
    #[must_use]
    pub fn cardinality(&self) -> Cardinality {
        self.cardinality
    }

    /// Its functions.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    pub(crate) fn position(&self, function: &str) -> Option<usize> {
        self.functions.iter().position(|known| known.name == function)
    }
}
