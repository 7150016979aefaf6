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
use crate::io::{Io, IoError, Slot};

/// Who gets the answer.
pub(crate) enum Client<'a> {
    One { io: &'a Io, facts: Facts },
    Two { respond: &'a mut SendResponse<Bytes>, slot: &'a Slot, is_head: bool },
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
            Self::Two { respond, slot, is_head } => {
                let bodiless = *is_head || matches!(reply.status, 100..=199 | 204 | 304);
                let status =
                    StatusCode::from_u16(reply.status).map_err(|e| IoError::System(std::io::Error::other(e)))?;
                let mut response = http::Response::new(());
                *response.status_mut() = status;
                *response.headers_mut() = reply.headers;
                if let (Some(length), false) = (reply.length, matches!(reply.status, 100..=199 | 204)) {
                    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
                }
                let end = bodiless || over;
                let stream = respond.send_response(response, end).map_err(broken)?;
                let sink = if end { Sink::Nothing } else { Sink::Two { stream, slot } };
                Ok(Begun { sink, keep_alive: true })
            }
        }
    }

    /// Waits for `future`, unless the client takes its request back first.
    pub(crate) async fn unless_gone<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            if let Self::Two { respond, .. } = self
                && respond.poll_reset(cx).is_ready()
            {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }
}
