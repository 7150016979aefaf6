//! Why a junction could not be started.

use std::io;

use crate::EdgeId;

/// Why a junction could not be started. Once it runs, what goes wrong is a
/// [`FlowEvent`](crate::FlowEvent).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// A junction without an edge would have nowhere to put the bytes.
    #[error("start junction: it has no edge; connect the output to a command or to its log")]
    NoEdge,
    /// Two edges have the same id, so that events could not tell them apart.
    #[error("start junction: edge {0} is given twice; give each edge an id of its own")]
    SameEdge(EdgeId),
    /// A descriptor could not be examined or set up.
    #[error("start junction: {what}: {source}")]
    Descriptor {
        /// What was being done, and to which descriptor.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("start junction: start its thread: {0}; raise the limit of processes or tasks")]
    Thread(io::Error),
}
