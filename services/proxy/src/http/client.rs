//! The client's side of a request: how its answer is sent.

use std::future::poll_fn;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode};

use super::reply::Reply;
use super::sink::{Sink, broken};
use crate::http1::Framing;
use crate::http1::body::Coding;
use crate::http1::compose::{self, Outgoing};
use crate::http1::request::Facts;
use crate::http3::stream::Sending;
use crate::io::{Io, IoError, Slot};

/// Who gets the answer.
pub(crate) enum Client<'a> {
    One {
        io: &'a Io,
        facts: Facts,
    },
    /// With `connect`, it asked for a tunnel, which an answer of success would be.
    Two {
        respond: &'a mut SendResponse<Bytes>,
        slot: &'a Slot,
        is_head: bool,
        connect: bool,
    },
    /// The stream is taken when the answer begins.
    Three {
        sending: &'a mut Option<Box<Sending>>,
        slot: &'a Slot,
        is_head: bool,
    },
}

/// Begun: where the body goes, and whether the connection can carry another request afterwards.
pub(crate) struct Begun<'a> {
    pub(crate) sink: Sink<'a>,
    pub(crate) keep_alive: bool,
}

impl<'a> Client<'a> {
    /// Sends the head (or keeps it for the first piece of the body). `over`: the answer has no body although its
    /// head could have one. `may_keep`: nothing but the answer itself keeps the connection from another request.
    pub(crate) fn begin(&mut self, reply: Reply, over: bool, may_keep: bool) -> Result<Begun<'a>, IoError> {
        match self {
            Self::One { io, facts } => {
                let bodiless = facts.is_head || matches!(reply.status, 100..=199 | 204 | 304);
                let framing = match reply.length {
                    _ if bodiless => Framing::Empty,
                    Some(0) => Framing::Empty,
                    Some(n) => Framing::Length(n),
                    None if facts.one_one => Framing::Chunked,
                    None => Framing::UntilClose,
                };
                let keep_alive = facts.keep_alive && may_keep && framing != Framing::UntilClose;
                let outgoing = Outgoing { framing, keep_alive, one_one: facts.one_one, websocket: false };
                let mut before = Vec::with_capacity(1024);
                compose::reply(&mut before, &reply, outgoing);
                let coding = if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
                Ok(Begun { sink: Sink::One { io, coding, before }, keep_alive })
            }
            Self::Two { respond, slot, is_head, connect } => {
                let (mut response, bodiless) = response(reply, *is_head)?;
                let mistaken = *connect && response.status().is_success();
                if mistaken {
                    *response.status_mut() = StatusCode::NOT_IMPLEMENTED;
                    response.headers_mut().clear();
                }
                let end = bodiless || over || mistaken;
                let stream = respond.send_response(response, end).map_err(broken)?;
                let sink = if end { Sink::Nothing } else { Sink::Two { stream, slot } };
                Ok(Begun { sink, keep_alive: true })
            }
            Self::Three { sending, slot, is_head } => {
                let (response, _) = response(reply, *is_head)?;
                let twice = || IoError::System(std::io::Error::other("an answer was begun twice"));
                let sending = sending.take().ok_or_else(twice)?;
                Ok(Begun { sink: Sink::Three { sending, head: Some(response), slot }, keep_alive: true })
            }
        }
    }

    /// What it speaks, by name.
    pub(crate) fn protocol(&self) -> &'static str {
        match self {
            Self::One { facts, .. } if facts.one_one => "HTTP/1.1",
            Self::One { .. } => "HTTP/1.0",
            Self::Two { .. } => "HTTP/2.0",
            Self::Three { .. } => "HTTP/3.0",
        }
    }

    /// The client asked for a tunnel and has none yet.
    pub(crate) fn wants_tunnel(&self) -> bool {
        matches!(self, Self::Two { connect: true, .. })
    }

    /// The answer that begins next is one to who asked for a tunnel.
    pub(crate) fn opens_tunnel(&mut self) {
        if let Self::Two { connect, .. } = self {
            *connect = false;
        }
    }

    /// Waits for `future`, unless the client takes its request back first.
    pub(crate) async fn unless_gone<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let left = match self {
                Self::One { .. } => false,
                Self::Two { respond, .. } => respond.poll_reset(cx).is_ready(),
                Self::Three { sending, .. } => sending.as_ref().is_some_and(|s| s.is_unwanted(cx)),
            };
            if left { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

/// The head of an answer as HTTP/2 and HTTP/3 have it, and whether it can have no body.
fn response(reply: Reply, is_head: bool) -> Result<(http::Response<()>, bool), IoError> {
    let bodiless = is_head || matches!(reply.status, 100..=199 | 204 | 304);
    let status = StatusCode::from_u16(reply.status).map_err(|e| IoError::System(std::io::Error::other(e)))?;
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = reply.headers;
    if let (Some(length), false) = (reply.length, matches!(reply.status, 100..=199 | 204)) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok((response, bodiless))
}
