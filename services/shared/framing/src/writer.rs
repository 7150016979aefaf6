//! Writing frames to a stream.

use bytes::Buf as _;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::error::FrameError;

/// Writes one frame of at most `limit` bytes and flushes: length and body in one go where the stream can.
///
/// Not to be cancelled: a frame half written leaves the other side in the middle of it. A caller with a deadline
/// closes the stream when it passes.
///
/// # Errors
/// [`FrameError::TooLarge`] before anything is written, or [`FrameError::Io`].
pub async fn write_frame<W>(stream: &mut W, body: &[u8], limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let len = match u32::try_from(body.len()) {
        Ok(len) if body.len() <= limit => len,
        _ => return Err(FrameError::TooLarge { len: body.len() as u64, limit, in_step: true }),
    };
    // By reference, for `write_all_buf` takes sized streams only, and a `dyn` one is not.
    let mut stream = stream;
    AsyncWriteExt::write_all_buf(&mut stream, &mut len.to_be_bytes().as_slice().chain(body)).await?;
    stream.flush().await?;
    Ok(())
}
