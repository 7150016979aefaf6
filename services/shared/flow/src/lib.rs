//! Junctions between the commands of a pipeline: one producer's pipe goes to one or several
//! consumers, is sampled, metered and limited in rate, and can be listened to while it runs,
//! without its bytes being copied to user space.
//!
//! ```text
//!                      ┌ splice (the rest) ─────────────▶ sink pipe ──▶ consumer
//! producer ─▶ source ──┤
//!             pipe     └ tee (references to the pages) ─▶ history of the tap
//!                                                         ┌─────┬─────┬─────┬─────┐
//!                             splice to /dev/null ◀── old │ b 7 │ b 8 │ b 9 │ b10 │ new
//!                                                         └─────┴──┬──┴─────┴──┬──┘
//!                                          one pipe for each batch│ tee       │ tee
//!                                                                  ▼           ▼
//!                                                     one stage pipe a subscriber
//!                                                                  │ splice    │ splice
//!                                                                  ▼           ▼
//!                                                              socket      socket
//! ```
//!
//! The stream is cut into batches. A batch is what one `tee(2)` put into an empty pipe of the
//! history: a chunk of up to 64 KiB, or a few of them at once while the flow is busy. `tee` takes
//! references to pages, so that keeping a replay costs no copy. Each subscriber has a position in
//! the history, a batch number, and copies references from there, one batch at a time, into a stage
//! pipe that it empties into its socket. "First the replay, then the live stream, nothing twice,
//! nothing missing" is therefore one walk along batch numbers; there is no hand-over between replay
//! and live stream that could go wrong.
//!
//! With several consumers each gets its own stage pipe as well, and the next batch is taken when
//! all have been given the last one: the slowest consumer sets the pace, as with `tee(1)`.
//!
//! What keeps up how far: a subscriber may lag as much live data as the replay holds
//! ([`TapSpec::replay_chunks`], [`TapSpec::replay_bytes`]), on top of the replay it was handed when
//! it came. One that lags more is cut off, counted and [remembered](Junction::cut_off), or stalls the producer where the tap is
//! [lossless](TapSpec::lossless).
//!
//! It is not for edges nobody taps and that have one end each: those are plain pipes. It starts no
//! process and knows none of pipelines or workspaces.
//!
//! **Invariants:** the consumer gets every byte the producer wrote, in order. A subscriber gets a
//! gapless piece of the stream that begins at a batch boundary inside the replay and ends at the
//! end of the stream or where the subscriber was cut off.
//!
//! Worth knowing:
//! - Each junction is one thread that sleeps in `poll(2)`.
//! - A tap holds up to `2 × replay_chunks` pipes (two descriptors each) while subscribers lag, half
//!   of that otherwise, and opens them as chunks come. A service with many taps needs a soft limit
//!   of open files to match, and `fs.pipe-user-pages-soft` where it lacks `CAP_SYS_RESOURCE`;
//!   beyond that limit pipes shrink, chunks with them, and [`FlowEvent::Degraded`] says so.
//! - With one consumer, and pipes at both ends, no byte is ever in the junction alone: what has not
//!   been given to the consumer is still in the source. A service that keeps duplicates of both
//!   descriptors (systemd's store of descriptors) may be killed and start a new junction with them;
//!   the consumer's stream stays whole, the replay begins anew. It must let go of its duplicates
//!   when [`FlowEvent::Ended`] comes, or neither side learns that the other has left.
//! - A producer that puts pages of a file into its pipe (`splice`, `vmsplice`) and then changes
//!   that file changes what is still on its way, as it does with any pipe.
//! - `SIGPIPE` must be ignored in the process, as Rust programs do from the start.
#![forbid(unsafe_code)]

mod bucket;
mod edge;
mod error;
mod event;
mod history;
mod inlet;
mod junction;
mod meter;
mod outlet;
mod pipe;
mod replay;
mod run;
mod sampler;
mod spec;
mod stats;
mod subscriber;
mod take;
mod tap;
mod wait;

pub use crate::bucket::TokenBucket;
pub use crate::error::FlowError;
pub use crate::event::{EndReason, FlowEvent};
pub use crate::junction::Junction;
pub use crate::meter::Meter;
pub use crate::replay::Replay;
pub use crate::spec::{Allow, EdgeId, EdgeSink, Tap, TapSpec};
pub use crate::stats::{CutOff, EdgeStats};
pub use shipote_discern::{Discernment, TypeName};

/// Bytes of a chunk at most.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes of a batch at most: as many as one call moves while the flow is busy. Each call takes the
/// lock of a pipe that the producer or the consumer wants as well, so fewer calls cost less.
pub(crate) const BATCH_BYTES: usize = 4 * CHUNK_BYTES;
