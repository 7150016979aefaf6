//! What the caller says about the edges of a junction.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

/// Names an edge to its caller; two edges of one junction must differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub u64);

impl fmt::Display for EdgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How an edge is tapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapSpec {
    /// Bytes from the beginning of the flow by which its type is discerned.
    pub sample_bytes: usize,
    /// Chunks (up to 64 KiB each) that a late subscriber still gets; also how far it may lag.
    pub replay_chunks: usize,
    /// Bytes a late subscriber gets at most, in whole chunks; 0 is no limit beyond the chunks'.
    pub replay_bytes: usize,
    /// Bytes a second that pass at most; 0 is no limit. With several edges the lowest limit rules
    /// them all, since they carry the same stream.
    pub max_bytes_per_sec: u64,
    /// A subscriber that lags stalls the producer instead of being cut off.
    pub lossless: bool,
    /// Subscribers served at once; more are refused.
    pub max_subscribers: usize,
}

impl Default for TapSpec {
    fn default() -> Self {
        Self {
            sample_bytes: 4096,
            replay_chunks: 32,
            replay_bytes: 0,
            max_bytes_per_sec: 0,
            lossless: false,
            max_subscribers: 256,
        }
    }
}

/// Decides by its user id whether a peer may subscribe.
pub type Allow = Arc<dyn Fn(u32) -> bool + Send + Sync>;

/// A tap: how, where subscribers come in, and who may.
pub struct Tap {
    /// How the edge is tapped.
    pub spec: TapSpec,
    /// A listening stream socket of the Unix domain. Whoever connects gets raw bytes.
    pub listener: UnixListener,
    /// Asked for each peer, on the junction's thread; it must not block.
    pub allow: Allow,
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap").field("spec", &self.spec).field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// One consumer of a junction.
#[derive(Debug)]
pub struct EdgeSink {
    /// The edge's name in events and statistics.
    pub id: EdgeId,
    /// Where the bytes go: the write end of a pipe, or anything else that can be written to (a
    /// socket is made non-blocking). For fan-in give several junctions duplicates of one pipe's
    /// write end; their chunks then interleave.
    pub sink: OwnedFd,
    /// The tap, if the edge has one.
    pub tap: Option<Tap>,
}
