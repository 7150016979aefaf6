//! What a plugin says about itself (`vane:plugin/types`, `registry`).

use serde::{Deserialize, Serialize};
#[cfg(feature = "runtime")]
use wasmtime::component::{ComponentType, Lift, Lower};

/// Where in a connection's life an export is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(enum))]
#[repr(u8)]
pub enum MiddlewareKind {
    /// First bytes of a connection, not consumed.
    #[serde(rename = "l4-peek")]
    #[cfg_attr(feature = "runtime", component(name = "l4-peek"))]
    L4Peek,
    /// Bytes as they pass.
    #[serde(rename = "l4-bytes")]
    #[cfg_attr(feature = "runtime", component(name = "l4-bytes"))]
    L4Bytes,
    /// A request before it goes upstream.
    #[serde(rename = "l7-request")]
    #[cfg_attr(feature = "runtime", component(name = "l7-request"))]
    L7Request,
    /// A response before it goes to the client.
    #[serde(rename = "l7-response")]
    #[cfg_attr(feature = "runtime", component(name = "l7-response"))]
    L7Response,
}

impl MiddlewareKind {
    /// All kinds, in the ABI's order.
    pub const ALL: [Self; 4] = [Self::L4Peek, Self::L4Bytes, Self::L7Request, Self::L7Response];

    /// The name in WIT and in rules, such as `l7-request`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::L4Peek => "l4-peek",
            Self::L4Bytes => "l4-bytes",
            Self::L7Request => "l7-request",
            Self::L7Response => "l7-response",
        }
    }

    /// The interface that a component exports to handle this kind.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::L4Peek => "vane:plugin/handler-l4-peek@0.1.0",
            Self::L4Bytes => "vane:plugin/handler-l4-bytes@0.1.0",
            Self::L7Request => "vane:plugin/handler-l7-request@0.1.0",
            Self::L7Response => "vane:plugin/handler-l7-response@0.1.0",
        }
    }
}

impl std::fmt::Display for MiddlewareKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One middleware of a component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct MiddlewareExport {
    /// Unique within the component.
    pub name: String,
    /// Which handler is called.
    pub kind: MiddlewareKind,
    /// Any instance may serve any call.
    pub stateless: bool,
    /// The input carries the body.
    #[cfg_attr(feature = "runtime", component(name = "needs-body"))]
    pub needs_body: bool,
    /// Context paths that the input carries; see [`crate::inspect`].
    pub inspects: Vec<String>,
    /// Reserved; refused when set.
    #[cfg_attr(feature = "runtime", component(name = "needs-streaming-body"))]
    pub needs_streaming_body: bool,
}

/// The answer of `registry.get-metadata`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct Metadata {
    /// The plugin's name for itself.
    pub name: String,
    /// The plugin's version; semantic versioning.
    pub version: String,
    /// The ABI that it was built against.
    #[cfg_attr(feature = "runtime", component(name = "abi-version"))]
    pub abi_version: String,
    /// Its middlewares.
    pub exports: Vec<MiddlewareExport>,
}

/// A failure that a plugin reports in band.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin {code}: {message}")]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct PluginError {
    /// Short, for matching.
    pub code: String,
    /// For people.
    pub message: String,
    /// What to do with the connection; see [`PluginError::hint`].
    #[cfg_attr(feature = "runtime", component(name = "on-error-hint"))]
    pub on_error_hint: Option<String>,
}

/// What a plugin asks for after its own failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorHint {
    /// No hint: the rule's `on_error` applies.
    Rule,
    /// Close the connection.
    ForceClose,
    /// Answer as to an internal error.
    Internal,
}

impl PluginError {
    /// The hint, or `None` when it is malformed; the caller then treats the call as a trap.
    #[must_use]
    pub fn hint(&self) -> Option<ErrorHint> {
        match self.on_error_hint.as_deref() {
            None => Some(ErrorHint::Rule),
            Some("force-close") => Some(ErrorHint::ForceClose),
            Some("internal") => Some(ErrorHint::Internal),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_other_than_the_three_are_malformed() {
        let of = |hint: Option<&str>| {
            PluginError { code: "c".into(), message: "m".into(), on_error_hint: hint.map(Into::into) }.hint()
        };
        assert_eq!(of(None), Some(ErrorHint::Rule));
        assert_eq!(of(Some("force-close")), Some(ErrorHint::ForceClose));
        assert_eq!(of(Some("internal")), Some(ErrorHint::Internal));
        for bad in ["", "Internal", "close"] {
            assert_eq!(of(Some(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn kinds_are_written_in_json_as_in_wit() {
        for kind in MiddlewareKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
        }
    }
}
