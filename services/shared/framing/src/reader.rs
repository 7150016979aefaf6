//! Reading frames from a stream.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::Oversize;
use crate::decoder::Decoder;
use crate::error::FrameError;

/// Reads the frames of a stream, one after the other. It reads ahead; see [`into_parts`](Self::into_parts).
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Frames of at most `limit` bytes (without their length's four) from `stream`; a larger one ends it.
    pub fn new(stream: R, limit: usize) -> Self {
        Self::with_oversize(stream, limit, Oversize::Close)
    }

    /// As [`new`](Self::new), with another way to deal with larger frames.
    pub fn with_oversize(stream: R, limit: usize, oversize: Oversize) -> Self {
        Self { stream, decoder: Decoder::new(limit, oversize) }
    }

    /// The body of the next frame; `None` when the stream has ended between two frames.
    ///
    /// May be cancelled (in a timeout, in `select!`) without losing a byte: the next call goes on where it was.
    ///
    /// # Errors
    /// [`FrameError`]; the reader can be used further only if [`FrameError::in_step`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(frame) = self.decoder.pop()? {
                return Ok(Some(frame));
            }
            if self.stream.read_buf(self.decoder.room()).await? == 0 {
                return self.decoder.end().map(|()| None);
            }
        }
    }

    /// Whether nothing of a next frame has been read yet: a stream that pauses here is idle, elsewhere it is slow.
    pub fn between_frames(&self) -> bool {
        self.decoder.between_frames()
    }

    /// The stream, and the bytes already read from it that belong to frames not yet taken: for a protocol that goes on
    /// in another form after some frame.
    pub fn into_parts(self) -> (R, BytesMut) {
        (self.stream, self.decoder.into_rest())
    }

    /// The stream, to look at or to shut down; reading from it past this reader loses step.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.stream
    }
}
