//! Frames: `u32` big-endian length, then JSON.
//!
//! The pieces are separate ([`read_length`], then [`read_body`] or [`skip_body`]) so that a server can decide between
//! them whether it has memory for the body; [`read_message`] and [`write_message`] are for clients.

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::MAX_FRAME;

/// A frame that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed, or ended within a frame.
    #[error("frame: {0}")]
    Io(#[from] std::io::Error),
    /// The body is over the limit; it has not been read.
    #[error("frame of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Announced or encoded length.
        size: u64,
        /// [`MAX_FRAME`]
        limit: u32,
    },
    /// The body is not a message that is known here.
    #[error("message is not understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// One message as a frame.
///
/// # Errors
/// [`FrameError::TooLarge`] over [`MAX_FRAME`], [`FrameError::Json`] where the message has no JSON form.
pub fn encode<T: Serialize + ?Sized>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let size = frame.len() - 4;
    match u32::try_from(size) {
        Ok(length) if length <= MAX_FRAME => frame[..4].copy_from_slice(&length.to_be_bytes()),
        _ => return Err(FrameError::TooLarge { size: size as u64, limit: MAX_FRAME }),
    }
    Ok(frame)
}

/// Length of the next body, or `None` where the stream ended between frames.
///
/// # Errors
/// The stream failed or ended within the four bytes.
pub async fn read_length<R: AsyncRead + Unpin>(reader: &mut R) -> std::io::Result<Option<u32>> {
    let mut header = [0; 4];
    let mut have = 0;
    while have < header.len() {
        match reader.read(&mut header[have..]).await? {
            0 if have == 0 => return Ok(None),
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => have += n,
        }
    }
    Ok(Some(u32::from_be_bytes(header)))
}

/// The body of `length` bytes. Memory grows with what arrives, not with what was announced.
///
/// # Errors
/// The stream failed or ended early.
pub async fn read_body<R: AsyncRead + Unpin>(reader: &mut R, length: u32) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::with_capacity((length as usize).min(64 * 1024));
    let read = reader.take(u64::from(length)).read_to_end(&mut body).await?;
    if read == length as usize { Ok(body) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads `length` bytes and drops them, so that the next frame can be read.
///
/// # Errors
/// The stream failed or ended early.
pub async fn skip_body<R: AsyncRead + Unpin>(reader: &mut R, length: u32) -> std::io::Result<()> {
    let mut sink = [0; 16 * 1024];
    let mut left = length as usize;
    while left > 0 {
        let want = left.min(sink.len());
        match reader.read(&mut sink[..want]).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}

/// The next message, or `None` where the stream ended between frames.
///
/// # Errors
/// Any of [`FrameError`]; after [`FrameError::TooLarge`] the stream is of no further use.
pub async fn read_message<T: DeserializeOwned, R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<T>, FrameError> {
    let Some(length) = read_length(reader).await? else { return Ok(None) };
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge { size: u64::from(length), limit: MAX_FRAME });
    }
    let body = read_body(reader, length).await?;
    Ok(Some(serde_json::from_slice(&body)?))
}

/// Writes one message.
///
/// # Errors
/// Any of [`FrameError`].
pub async fn write_message<T: Serialize + ?Sized, W: AsyncWrite + Unpin>(
    writer: &mut W,
    message: &T,
) -> Result<(), FrameError> {
    writer.write_all(&encode(message)?).await?;
    writer.flush().await?;
    Ok(())
}
