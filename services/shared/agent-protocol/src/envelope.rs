//! The optional wrapper that adds a trace id to a message.

use serde::{Deserialize, Serialize};

/// A message with an optional `trace_id` beside its own fields. A bare message is one without a trace id; readers that
/// don't care for it may read the bare message, which ignores the field.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// Chosen by the sender, for logs.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub trace_id: Option<String>,
    /// The message.
    #[serde(flatten)]
    pub body: T,
}
