//! Where a body goes, to any version of HTTP.

use std::future::poll_fn;
use std::io::Write as _;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::{Reason, SendStream};
use h3::error::Code;
use http::HeaderMap;

use super::Body;
use super::body::within;
use super::compress::Encoder;
use crate::http1::body::{BodyError, Coding, SourceError};
use crate::http3::{self, stream::Sending};
use crate::io::{Io, IoError, Slot};

/// A receiver of a body.
pub(crate) enum Sink<'a> {
    /// There is none, or nobody wants it.
    Nothing,
    One {
        io: &'a Io,
        coding: Coding,
        /// What goes before the next piece, and with it.
        before: Vec<u8>,
    },
    Two {
        stream: SendStream<Bytes>,
        slot: &'a Slot,
    },
    Three {
        sending: Box<Sending>,
        /// What goes before the body.
        head: Option<http::Response<()>>,
        slot: &'a Slot,
    },
}

impl Sink<'_> {
    async fn data(&mut self, mut piece: Bytes, last: bool) -> Result<(), IoError> {
        self.flush_three().await?;
        match self {
            Self::Nothing => Ok(()),
            Self::One { io, coding: Coding::Plain, before } => {
                io.write_all([before, &piece, b""]).await?;
                before.clear();
                Ok(())
            }
            Self::One { io, coding: Coding::Chunked, before } => {
                let _ = write!(before, "{:x}\r\n", piece.len()); // A vector takes everything.
                io.write_all([before, &piece, b"\r\n"]).await?;
                before.clear();
                Ok(())
            }
            Self::Two { stream, slot } => {
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let room = within(slot, poll_fn(|cx| stream.poll_capacity(cx))).await?;
                    let room = room.ok_or_else(gone)?.map_err(broken)?;
                    let part = piece.split_to(room.min(piece.len()));
                    let end = last && piece.is_empty();
                    stream.send_data(part, end).map_err(broken)?;
                    slot.touch();
                }
                Ok(())
            }
            Self::Three { sending, slot, .. } => {
                while !piece.is_empty() {
                    within(slot, sending.data(&mut piece)).await?.map_err(http3::stream::broken)?;
                    slot.touch();
                }
                Ok(())
            }
        }
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, ended: bool) -> Result<(), IoError> {
        self.flush_three().await?;
        match self {
            Self::Nothing => Ok(()),
            Self::One { io, coding, before } => {
                if *coding == Coding::Chunked {
                    before.extend_from_slice(b"0\r\n\r\n");
                }
                if !before.is_empty() {
                    io.write(before).await?;
                    before.clear();
                }
                Ok(())
            }
            Self::Two { stream, .. } => match trailers {
                Some(trailers) if !ended => stream.send_trailers(trailers).map_err(broken),
                _ if ended => Ok(()),
                _ => stream.send_data(Bytes::new(), true).map_err(broken),
            },
            Self::Three { sending, slot, .. } => {
                within(slot, sending.end(trailers)).await?.map_err(http3::stream::broken)
            }
        }
    }

    /// Sends the head of an answer of HTTP/3.
    async fn flush_three(&mut self) -> Result<(), IoError> {
        if let Self::Three { sending, head, slot } = self
            && let Some(head) = head.take()
        {
            within(slot, sending.head(head)).await?.map_err(http3::stream::broken)?;
        }
        Ok(())
    }

    /// Sends what is ready to go, so that the receiver can begin before there is a body.
    async fn flush(&mut self) -> Result<(), IoError> {
        if let Self::One { io, before, .. } = self
            && !before.is_empty()
        {
            io.write(before).await?;
            before.clear();
        }
        self.flush_three().await
    }

    /// Tells the receiver that the body will not be whole. (With HTTP/1.1 the connection's end does.)
    pub(crate) fn tear(&mut self) {
        match self {
            Self::Two { stream, .. } => stream.send_reset(Reason::INTERNAL_ERROR),
            Self::Three { sending, .. } => sending.reset(Code::H3_INTERNAL_ERROR),
            Self::Nothing | Self::One { .. } => {}
        }
    }

    /// Waits for the next piece, unless the receiver goes away first.
    async fn wait(&mut self, body: &mut Body<'_>) -> Result<Option<Bytes>, BodyError> {
        if matches!(self, Self::Nothing | Self::One { .. }) {
            return Ok(body.next().await?);
        }
        let mut next = pin!(body.next());
        poll_fn(|cx| {
            if let Poll::Ready(piece) = next.as_mut().poll(cx) {
                return Poll::Ready(piece.map_err(BodyError::Source));
            }
            let left = match self {
                Self::Two { stream, .. } => stream.poll_reset(cx).is_ready(),
                Self::Three { sending, .. } => sending.is_unwanted(cx),
                Self::Nothing | Self::One { .. } => false,
            };
            if left { Poll::Ready(Err(BodyError::Sink(gone()))) } else { Poll::Pending }
        })
        .await
    }
}

fn gone() -> IoError {
    IoError::System(std::io::ErrorKind::BrokenPipe.into())
}

/// An error of HTTP/2 as one of a stream.
pub(crate) fn broken(error: h2::Error) -> IoError {
    IoError::System(std::io::Error::other(error))
}

/// Passes a body on, with its trailers; how many bytes of data it was.
pub(crate) async fn relay(
    body: &mut Body<'_>,
    to: &mut Sink<'_>,
    mut encoder: Option<&mut Encoder>,
) -> Result<u64, BodyError> {
    let encoded = |result: std::io::Result<Bytes>| result.map_err(|e| BodyError::Source(SourceError::Io(e.into())));
    let mut done = 0;
    let mut ended = false;
    if body.is_over() {
        to.end(None, false).await.map_err(BodyError::Sink)?;
        return Ok(0);
    }
    to.flush().await.map_err(BodyError::Sink)?;
    while let Some(piece) = to.wait(body).await? {
        let piece = match &mut encoder {
            None => {
                ended = body.is_over();
                piece
            }
            Some(encoder) => encoded(encoder.push(&piece))?,
        };
        done += piece.len() as u64;
        if !piece.is_empty() {
            to.data(piece, ended).await.map_err(BodyError::Sink)?;
        }
    }
    if let Some(encoder) = encoder {
        let last = encoded(encoder.finish())?;
        done += last.len() as u64;
        to.data(last, false).await.map_err(BodyError::Sink)?;
    }
    let trailers = body.trailers().await.map_err(BodyError::Source)?;
    to.end(trailers, ended).await.map_err(BodyError::Sink)?;
    Ok(done)
}

impl From<h2::Error> for SourceError {
    fn from(error: h2::Error) -> Self {
        Self::Io(broken(error))
    }
}
