//! The relay: a small process that carries the tapped and fanned-out edges of one pipeline, or the flows that a
//! workspace shares.
//!
//! ```text
//!   service ── channel ──▶ relay        started by the spawner, without any right but /dev/null
//!      ╎ duplicate in                    │ one junction an output: source ─▶ sinks, flow sockets
//!      ╎ the descriptor store            ▼
//! ```
//!
//! Why a process of its own, and not descriptors that the next service goes on with: a junction that feeds several
//! consumers holds, at any moment, bytes that some have been given and others not, and a killed one cannot be asked
//! which. In a process that nobody kills, the service's death is no event at all: not a byte of the main path is
//! touched, subscribers stay connected, the replay and the counters stay. The next service takes the channel from
//! the store and has everything told again ([`ToRelay::Tell`]).
//!
//! It ends when the last duplicate of its channel is closed: when the service drops the flow, or for good.

mod carry;
mod inlet;

use serde::{Deserialize, Serialize};
use shipote_bus::spec::DiscernPolicy;

pub(crate) use carry::carry;

/// Service to relay.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToRelay {
    /// An edge of the next junction, with its sink and, if it is tapped, its listener.
    Edge { number: usize, tap: Option<TapPlan> },
    /// All edges of a junction were given; with its source.
    Junction,
    /// All junctions were given; answered by `Begun`.
    Begin,
    /// Say again all that is known of the edges; answered by `Known` for each.
    Tell,
    /// Answered by `Figures`.
    Measure { sequence: u64 },
    /// Close the flow sockets; the pipeline goes on.
    CloseTaps,
    /// This user may connect, too.
    Allow { uid: u32 },
    /// A socket that takes what others write, with its listener and the pipe that it goes to.
    Inlet { number: usize, audience: Audience },
}

/// Who may connect to a flow socket, beside root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Audience {
    /// These users, and those that [`ToRelay::Allow`] names.
    Users(Vec<u32>),
    /// Every user of the host.
    Everyone,
}

/// How an edge is tapped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TapPlan {
    pub(crate) policy: DiscernPolicy,
    /// Who may subscribe.
    pub(crate) audience: Audience,
}

/// Relay to service.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromRelay {
    /// All junctions work, or why not.
    Begun { failure: Option<String> },
    /// What is known of an edge has changed.
    Known { edge: usize, known: Known },
    /// Something worth a line in the log.
    Note { edge: usize, text: String, failed: bool },
    /// What was asked for under this number.
    Figures { sequence: u64, edges: Vec<(usize, Figures)> },
    /// Comes before `Figures`, of an edge that has cut off subscribers.
    CutOff { edge: usize, lost_bytes: u64, last: Vec<(u32, u64)> },
}

/// What is known of an edge.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) sampled: Option<Sampled>,
    pub(crate) ended: bool,
}

/// What flows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sampled {
    pub(crate) ty: String,
    pub(crate) mime: String,
    pub(crate) lens: String,
    pub(crate) confidence: f32,
}

/// Figures of an edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) bytes_total: u64,
    pub(crate) bytes_per_sec: u64,
    pub(crate) subscribers: u64,
    pub(crate) dropped: u64,
}
