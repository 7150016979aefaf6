//! What goes wrong, each with the names of interface and plugin, and what a plugin sees of it.

use std::fmt::{self, Display, Formatter};

use wasmtime::Trap;
use wasmtime::component::{ComponentType, Lift, Lower, Val};

use crate::interface::Cardinality;

/// `Ok`: the result, and the errors that were handled on the way to it.
/// `Err`: why there is none, and the errors that contributed.
pub type PartialResult<T, E> = Result<(T, Vec<E>), (E, Vec<E>)>;

/// What was found while the tree was built. What can be salvaged is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "fields are named for what they hold")]
pub enum TreeError {
    /// Someone names an interface that was not given.
    #[error("interface {interface:?}, which {wanted_by} names, is not declared; declare it, or correct the name")]
    MissingInterface { interface: String, wanted_by: String },
    /// Two interfaces of one id; the first is kept.
    #[error("interface {interface:?} is declared twice; the second declaration is ignored: give it an id of its own")]
    DuplicateInterface { interface: String },
    /// Two plugins of one id; the first is kept.
    #[error("plugin {plugin:?} is given twice; the second is ignored: give it an id of its own")]
    DuplicatePlugin { plugin: String },
    /// What the host could not read; it is left out.
    #[error("metadata of {what} is unreadable: {reason}")]
    Unreadable { what: String, reason: String },
    /// Plugins that need each other; the plugin at the end of the path cannot load.
    #[error("cycle: {}; plugins must not depend on themselves, even through others", .path.join(" -> "))]
    Cycle { path: Vec<String> },
}

/// Why a plugin or an interface did not load.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "fields are named for what they hold")]
pub enum LoadError {
    /// The root, or a socket's interface, does not exist.
    #[error("load {interface:?}: no such interface")]
    MissingInterface { interface: String },
    /// The component's bytes could not be had.
    #[error("load plugin {plugin:?} of {interface:?}: read: {reason}")]
    Read { plugin: String, interface: String, reason: String },
    /// The component's bytes are not a component.
    #[error("load plugin {plugin:?} of {interface:?}: invalid component: {reason}")]
    InvalidComponent { plugin: String, interface: String, reason: String },
    /// Too few or too many plugins loaded.
    #[error("load {interface:?}: it wants {expected}, {found} loaded")]
    Cardinality { interface: String, expected: Cardinality, found: usize },
    /// An interface that the plugin depends on did not load.
    #[error("load plugin {plugin:?} of {interface:?}: its socket {socket:?} did not load: {reason}")]
    InvalidSocket { plugin: String, interface: String, socket: String, reason: String },
    /// The component imports something that nobody offers, or with other types.
    #[error("load plugin {plugin:?} of {interface:?}: import {import}: {reason}")]
    ImportNotSatisfied { plugin: String, interface: String, import: String, reason: String },
    /// The component lacks a function of its plug.
    #[error("load plugin {plugin:?} of {interface:?}: it does not export {export}")]
    ExportMissing { plugin: String, interface: String, export: String },
    /// A function of its plug has other types.
    #[error("load plugin {plugin:?} of {interface:?}: export {export} is {found}, the interface says {expected}")]
    ExportType { plugin: String, interface: String, export: String, expected: String, found: String },
    /// A function of the interface is one that WIT calls `async`, which this tree cannot call.
    #[error("load {interface:?}: {function} is an async function: {reason}")]
    Asynchronous { interface: String, function: String, reason: &'static str },
    /// The plugin depends on itself.
    #[error("load plugin {plugin:?} of {interface:?}: it is part of the cycle {}", .path.join(" -> "))]
    Loop { plugin: String, interface: String, path: Vec<String> },
    /// It could not be started.
    #[error("load plugin {plugin:?} of {interface:?}: start: {reason}")]
    Start { plugin: String, interface: String, reason: Failure },
}

/// What became of a plugin that ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It trapped, or a host function stopped it.
    Exception {
        /// The code, where wasm itself trapped.
        trap: Option<Trap>,
        /// For people.
        message: String,
    },
    /// It ran out of time.
    Deadline,
    /// It trapped after an allocation was refused.
    MemoryLimit,
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception { message, .. } => f.write_str(message),
            Self::Deadline => f.write_str("it did not end before its deadline"),
            Self::MemoryLimit => f.write_str("it wanted more memory than its limit"),
        }
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "fields are named for what they hold")]
pub enum DispatchError {
    /// Not an interface of this tree's root.
    #[error("call {interface:?}: no such interface at the root")]
    UnknownInterface { interface: String },
    /// Not a function of the interface.
    #[error("call {function:?}: no such function in {interface:?}")]
    UnknownFunction { interface: String, function: String },
    /// The number or the types are wrong. Nothing was called.
    #[error("call {function:?}: given {given}, it takes {expected}")]
    WrongArguments { function: String, expected: String, given: String },
    /// It trapped, ran out of time or out of memory. Its next call finds a fresh instance.
    #[error("call {function:?} of plugin {plugin:?}: {failure}")]
    Failed { plugin: String, function: String, failure: Failure },
    /// A handle is unknown, gone with its instance, or belongs to another plugin.
    #[error("call {function:?} of plugin {plugin:?}: handle: {reason}")]
    Resource { plugin: String, function: String, reason: String },
    /// The plugin was in use until the deadline.
    #[error("call {function:?} of plugin {plugin:?}: in use by another call until the deadline; call again")]
    Busy { plugin: String, function: String },
    /// It failed before and could not be started again.
    #[error("call {function:?} of plugin {plugin:?}: it could not be started again: {reason}")]
    Unavailable { plugin: String, function: String, reason: Failure },
}

/// What a plugin sees of another plugin's failure: `call-error` of `shipote:link/errors`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(variant)]
pub enum CallError {
    /// It trapped.
    #[component(name = "trap")]
    Trap(String),
    /// It or its caller ran out of time.
    #[component(name = "deadline")]
    Deadline,
    /// It wanted too much memory.
    #[component(name = "memory-limit")]
    MemoryLimit,
    /// It was in use until the caller's deadline.
    #[component(name = "busy")]
    Busy,
    /// A handle could not be passed on.
    #[component(name = "resource")]
    Resource(String),
    /// It could not be started again.
    #[component(name = "unavailable")]
    Unavailable(String),
}

impl From<DispatchError> for CallError {
    fn from(error: DispatchError) -> Self {
        match error {
            DispatchError::Failed { failure: Failure::Exception { message, .. }, .. } => Self::Trap(message),
            DispatchError::Failed { failure: Failure::Deadline, .. } => Self::Deadline,
            DispatchError::Failed { failure: Failure::MemoryLimit, .. } => Self::MemoryLimit,
            DispatchError::Resource { reason, .. } => Self::Resource(reason),
            DispatchError::Busy { .. } => Self::Busy,
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<CallError> for Val {
    fn from(error: CallError) -> Self {
        let text = |text| Some(Box::new(Self::String(text)));
        let (name, payload) = match error {
            CallError::Trap(message) => ("trap", text(message)),
            CallError::Deadline => ("deadline", None),
            CallError::MemoryLimit => ("memory-limit", None),
            CallError::Busy => ("busy", None),
            CallError::Resource(reason) => ("resource", text(reason)),
            CallError::Unavailable(reason) => ("unavailable", text(reason)),
        };
        Self::Variant(name.to_owned(), payload)
    }
}
