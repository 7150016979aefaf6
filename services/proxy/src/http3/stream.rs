//! The two halves of a request's stream, whichever side of the proxy it is on.

use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use http::HeaderMap;

use super::quic::{Fate, RecvHalf, SendHalf};
use crate::io::IoError;

/// Bytes that are written at once: after each the receiver has shown that it still takes some.
const PIECE: usize = 16 << 10;

/// What comes in.
pub(crate) enum Receiving {
    /// A request.
    Request(h3::server::RequestStream<RecvHalf, Bytes>),
    /// An answer.
    Answer(h3::client::RequestStream<RecvHalf, Bytes>),
}

impl std::fmt::Debug for Receiving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if matches!(self, Self::Request(_)) { "Request" } else { "Answer" })
    }
}

impl Receiving {
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        fn whole(data: Option<impl Buf>) -> Option<Bytes> {
            data.map(|mut data| data.copy_to_bytes(data.remaining()))
        }
        match self {
            Self::Request(stream) => stream.poll_recv_data(cx).map_ok(whole),
            Self::Answer(stream) => stream.poll_recv_data(cx).map_ok(whole),
        }
    }

    pub(crate) fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, StreamError>> {
        match self {
            Self::Request(stream) => stream.poll_recv_trailers(cx),
            Self::Answer(stream) => stream.poll_recv_trailers(cx),
        }
    }
}

/// What goes out.
pub(crate) enum Sending {
    /// An answer, and what becomes of it.
    Answer(h3::server::RequestStream<SendHalf, Bytes>, Rc<Fate>),
    /// A request.
    Request(h3::client::RequestStream<SendHalf, Bytes>),
}

impl Sending {
    pub(crate) async fn head(&mut self, head: http::Response<()>) -> Result<(), StreamError> {
        match self {
            Self::Answer(stream, _) => stream.send_response(head).await,
            // It was sent when the stream was opened.
            Self::Request(_) => Ok(()),
        }
    }

    /// Sends some of a piece, and takes it off.
    pub(crate) async fn data(&mut self, piece: &mut Bytes) -> Result<(), StreamError> {
        let part = piece.split_to(piece.len().min(PIECE));
        match self {
            Self::Answer(stream, _) => stream.send_data(part).await,
            Self::Request(stream) => stream.send_data(part).await,
        }
    }

    pub(crate) async fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), StreamError> {
        match self {
            Self::Answer(stream, _) => {
                if let Some(trailers) = trailers {
                    stream.send_trailers(trailers).await?;
                }
                stream.finish().await
            }
            Self::Request(stream) => {
                if let Some(trailers) = trailers {
                    stream.send_trailers(trailers).await?;
                }
                stream.finish().await
            }
        }
    }

    pub(crate) fn reset(&mut self, code: Code) {
        match self {
            Self::Answer(stream, _) => stream.stop_stream(code),
            Self::Request(stream) => stream.stop_stream(code),
        }
    }

    /// Whether the receiver went away. Of a request only the next write tells.
    pub(crate) fn is_unwanted(&self, cx: &mut Context<'_>) -> bool {
        matches!(self, Self::Answer(_, fate) if fate.is_unwanted(cx))
    }
}

/// An error of HTTP/3 as one of a stream of bytes.
pub(crate) fn broken(error: StreamError) -> IoError {
    IoError::System(std::io::Error::other(error))
}
