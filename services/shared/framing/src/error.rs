//! What can go wrong with a frame.

use std::io;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream failed.
    #[error("frame: {0}; open a new connection")]
    Io(#[from] io::Error),
    /// The stream ended inside a frame.
    #[error("frame: the stream ended after {have} bytes of {want}; open a new connection")]
    Torn {
        /// How many bytes of it have come, its length's four included.
        have: u64,
        /// How many it has, or four where even the length is not whole.
        want: u64,
    },
    /// The frame is larger than this protocol allows.
    #[error("frame of {len} bytes is larger than the {limit} allowed; send less at once")]
    TooLarge {
        /// The length of its body.
        len: u64,
        /// The longest body that is allowed.
        limit: usize,
        /// Whether the next frame can be read: the body has been read past (or, in writing, nothing has been sent).
        in_step: bool,
    },
    /// An earlier error has left the stream in the middle of a frame.
    #[error("frame: the stream is in the middle of a frame since an earlier error; open a new connection")]
    OutOfStep,
}

impl FrameError {
    /// Whether the stream can still be used: so it is after a frame that was too large and has been read past.
    #[must_use]
    pub fn in_step(&self) -> bool {
        matches!(self, Self::TooLarge { in_step: true, .. })
    }
}
