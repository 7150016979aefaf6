//! Typed messages: a frame and what the caller's codec makes of it.

use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::FrameError;
use crate::reader::Reader;
use crate::writer::write_frame;

/// How a message is put into a frame. Implemented by the protocols (postcard, JSON), never here.
pub trait Codec<T> {
    /// Why a message could not be encoded or decoded.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The body of the frame for this message.
    ///
    /// # Errors
    /// The message cannot be expressed.
    fn encode(&self, message: &T) -> Result<Vec<u8>, Self::Error>;

    /// The message in this body. Bytes left over are an error.
    ///
    /// # Errors
    /// The body is no such message.
    fn decode(&self, body: &[u8]) -> Result<T, Self::Error>;
}

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MessageError<E: std::error::Error + 'static> {
    /// The frame failed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frame is whole, its content is no message; the next one can be read.
    #[error("decode message: {0}; check that both sides speak the same version")]
    Decode(#[source] E),
    /// The message cannot be expressed; nothing was written.
    #[error("encode message: {0}; change the message")]
    Encode(#[source] E),
}

impl<E: std::error::Error + 'static> MessageError<E> {
    /// Whether the stream can still be used.
    #[must_use]
    pub fn in_step(&self) -> bool {
        match self {
            Self::Frame(error) => error.in_step(),
            Self::Decode(_) | Self::Encode(_) => true,
        }
    }
}

/// Reads the next message; `None` when the stream has ended between two. May be cancelled, as [`Reader::next`].
///
/// # Errors
/// The frame or its content.
pub async fn read_message<T, C, R>(reader: &mut Reader<R>, codec: &C) -> Result<Option<T>, MessageError<C::Error>>
where
    C: Codec<T>,
    R: AsyncRead + Unpin,
{
    match reader.next().await? {
        None => Ok(None),
        Some(body) => codec.decode(&body).map(Some).map_err(MessageError::Decode),
    }
}

/// Writes one message, as [`write_frame`] does.
///
/// # Errors
/// The message cannot be expressed, is larger than `limit` when encoded, or the stream failed.
pub async fn write_message<T, C, W>(
    stream: &mut W,
    codec: &C,
    message: &T,
    limit: usize,
) -> Result<(), MessageError<C::Error>>
where
    C: Codec<T>,
    W: AsyncWrite + Unpin + ?Sized,
{
    let body = codec.encode(message).map_err(MessageError::Encode)?;
    Ok(write_frame(stream, &body, limit).await?)
}
