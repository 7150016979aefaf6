//! Frames on a byte stream: a length (`u32`, big-endian), then so many bytes.
//!
//! For: the protocols that are framed so (the workspace socket with at most 1 MiB a frame, the machine agent's with
//! at most 32 MiB), over any tokio stream. What is in a frame is the callers' affair; [`Codec`] is where they say it.
//!
//! Not for: deadlines (wrap [`Reader::next`], which may be cancelled, in a timeout), or frames larger than memory.
//!
//! Invariant: the other side is not trusted. A length is believed only as far as bytes have arrived: the buffer never
//! holds more than twice those (and 16 KiB). That is also why `tokio_util`'s `LengthDelimitedCodec` does not serve: it
//! reserves the announced length at once, and it cannot get past a frame that is too large.
#![forbid(unsafe_code)]

mod codec;
mod decoder;
mod error;
mod reader;
mod writer;

pub use codec::{Codec, MessageError, read_message, write_message};
pub use error::FrameError;
pub use reader::Reader;
pub use writer::write_frame;

/// How many bytes of a frame that is too large are read past, unless the caller says otherwise: 64 MiB.
pub const DRAIN_CAP: u64 = 64 * 1024 * 1024;

/// The length of the length.
const HEADER: usize = 4;

/// What to do about a frame that is larger than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversize {
    /// Give up: the stream cannot be used after it.
    #[default]
    Close,
    /// Read past it, if it is no longer than `cap` bytes, so that the next frame can be read; else give up.
    Drain {
        /// The longest body that is read past, in bytes.
        cap: u64,
    },
}
