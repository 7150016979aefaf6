//! What a plugin may import (`vane:host/host`), as types and, with the feature `runtime`, as entries of a wasmtime linker.

#[cfg(feature = "runtime")]
mod linker;
#[cfg(feature = "runtime")]
pub use linker::{Host, add_to_linker, add_to_linker_of};

#[cfg(feature = "runtime")]
use wasmtime::component::{ComponentType, Lift, Lower};

/// Series of metrics that a plugin may have; past that new ones are dropped, with one warning.
pub const MAX_METRIC_SERIES: usize = 1_000;

/// Whether `name` may name a metric: `[a-zA-Z_][a-zA-Z0-9_]*`.
#[must_use]
pub fn is_metric_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// How much a message matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(enum))]
#[repr(u8)]
pub enum LogLevel {
    /// Finest.
    #[cfg_attr(feature = "runtime", component(name = "trace"))]
    Trace,
    /// For development.
    #[cfg_attr(feature = "runtime", component(name = "debug"))]
    Debug,
    /// Normal.
    #[cfg_attr(feature = "runtime", component(name = "info"))]
    Info,
    /// Odd.
    #[cfg_attr(feature = "runtime", component(name = "warn"))]
    Warn,
    /// Failed.
    #[cfg_attr(feature = "runtime", component(name = "error"))]
    Error,
}

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct LogField {
    /// Name.
    pub key: String,
    /// Text.
    pub value: String,
}

/// A label of a series.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct MetricLabel {
    /// Name.
    pub key: String,
    /// Text.
    pub value: String,
}

/// A request that the plugin wants made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct HttpFetchRequest {
    /// Such as `GET`.
    pub method: String,
    /// Absolute.
    pub url: String,
    /// In order.
    pub headers: Vec<(String, String)>,
    /// Whole.
    pub body: Vec<u8>,
    /// Milliseconds; absent: the policy's default.
    #[cfg_attr(feature = "runtime", component(name = "timeout-ms"))]
    pub timeout_ms: Option<u32>,
    /// Absent: the policy's default.
    #[cfg_attr(feature = "runtime", component(name = "follow-redirects"))]
    pub follow_redirects: Option<u32>,
    /// Absent: true.
    #[cfg_attr(feature = "runtime", component(name = "verify-tls"))]
    pub verify_tls: Option<bool>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(record))]
pub struct HttpFetchResponse {
    /// As received.
    pub status: u16,
    /// In order.
    pub headers: Vec<(String, String)>,
    /// Whole.
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "runtime", derive(ComponentType, Lift, Lower), component(variant))]
pub enum NetError {
    /// The name does not resolve.
    #[cfg_attr(feature = "runtime", component(name = "dns-failure"))]
    DnsFailure(String),
    /// Nobody listens.
    #[cfg_attr(feature = "runtime", component(name = "connection-refused"))]
    ConnectionRefused,
    /// Took too long.
    #[cfg_attr(feature = "runtime", component(name = "timeout"))]
    Timeout,
    /// The handshake failed.
    #[cfg_attr(feature = "runtime", component(name = "tls-error"))]
    TlsError(String),
    /// Too many at once.
    #[cfg_attr(feature = "runtime", component(name = "pool-exhausted"))]
    PoolExhausted,
    /// More than the policy's `max_body_size`.
    #[cfg_attr(feature = "runtime", component(name = "body-too-large"))]
    BodyTooLarge,
    /// The policy does not allow the host.
    #[cfg_attr(feature = "runtime", component(name = "not-allowed"))]
    NotAllowed(String),
    /// `verify-tls: false` without `allow_insecure`.
    #[cfg_attr(feature = "runtime", component(name = "insecure-rejected"))]
    InsecureRejected,
    /// The host's own fault.
    #[cfg_attr(feature = "runtime", component(name = "internal"))]
    Internal(String),
}

#[cfg(test)]
mod tests {
    #[test]
    fn metric_names() {
        for (name, fits) in [("a", true), ("_a9", true), ("9a", false), ("", false), ("a-b", false), ("\u{e9}", false)]
        {
            assert_eq!(super::is_metric_name(name), fits, "{name:?}");
        }
    }
}
