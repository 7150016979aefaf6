//! A client's connection of HTTP/2: its streams, each a task, and the limits that keep one client from costing much.
//!
//! What the `h2` crate bounds: streams at once, bytes of a head and its continuations, resets before a request was
//! taken, empty frames, answers to settings and pings (the next is read when the last is out). What is bounded here:
//! requests that are taken back after they were begun, time without a request, and every wait of a request.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use shipote_rules::Transport;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::head;
use crate::flows::Entry;
use crate::http::body::within;
use crate::http::general::{Outcome, Request, run};
use crate::http::{Body, Client, Source};
use crate::http1::exchange::Ended;
use crate::http1::request::RequestHead;
use crate::io::{Slot, Stream};
use crate::walk::{Edits, Peer, route};
use crate::worker::Worker;

/// Requests at once.
const STREAMS: u32 = 128;
/// Bytes that a client may send ahead, of one request and in all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of answers that wait for the client, of one stream.
const SEND_BUFFER: usize = 256 << 10;
/// Requests taken back after which a connection that takes back more than it lets finish is ended.
const TAKEN_BACK: u32 = 100;

/// A stream of which the first bytes were read already.
struct Early {
    bytes: Bytes,
    stream: Stream,
}

impl AsyncRead for Early {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Early {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What the streams of a connection share.
struct Connection {
    worker: Rc<Worker>,
    peer: Peer,
    open: Cell<u32>,
    finished: Cell<u32>,
    taken_back: Cell<u32>,
}

/// Serves a connection until it ends. `early` was read from it already. `idle` stays set: who sets the slot off asks for
/// an end in good order, which here means that open requests go on.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    early: Bytes,
    stream: Stream,
    peer: Peer,
    slot: Rc<Slot>,
    idle: Rc<Cell<bool>>,
) {
    slot.set(worker.settings.head_time);
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(worker.settings.head_bytes).unwrap_or(u32::MAX))
        .handshake::<_, Bytes>(Early { bytes: early, stream });
    let Ok(Ok(mut connection)) = within(&slot, handshake).await else { return };
    idle.set(true);
    slot.set(worker.settings.idle_time);
    let common =
        Rc::new(Connection { worker, peer, open: Cell::new(0), finished: Cell::new(0), taken_back: Cell::new(0) });
    let mut ending = false;
    loop {
        let next = poll_fn(|cx| match connection.poll_accept(cx) {
            Poll::Ready(next) => Poll::Ready(Some(next)),
            Poll::Pending if slot.poll_expired(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match next.await {
            Some(Some(Ok((request, respond)))) => {
                slot.set(common.worker.settings.idle_time);
                common.open.set(common.open.get() + 1);
                tokio::task::spawn_local(stream_task(Rc::clone(&common), request, respond));
            }
            Some(Some(Err(e))) => {
                tracing::debug!("connection {} ended: {e}", common.peer.id);
                return;
            }
            Some(None) => return,
            None if ending => return,
            None => {
                let worker = &common.worker;
                let wanted = worker.plan().listener(Transport::Tcp, common.peer.listener).is_some();
                if common.open.get() > 0 && wanted && !worker.shared.draining() {
                    // Requests have limits of their own.
                    slot.set(worker.settings.idle_time);
                    continue;
                }
                connection.graceful_shutdown();
                ending = true;
                slot.set(worker.settings.drain_time);
            }
        }
        let taken_back = common.taken_back.get();
        if taken_back > TAKEN_BACK && taken_back > common.finished.get() && !ending {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            ending = true;
            slot.set(common.worker.settings.head_time);
        }
    }
}

async fn stream_task(connection: Rc<Connection>, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let began = Instant::now();
    let (parts, incoming) = request.into_parts();
    let worker = &connection.worker;
    let slot = worker.slot();
    let end = incoming.is_end_stream();
    let mut bytes = worker.pool.text();
    let mut head = RequestHead::default();
    let read = head::text(&mut bytes, &parts, end).and_then(|()| head.parse(&bytes));
    let plan = worker.plan();
    let ended;
    let rule;
    match read {
        Ok(true) => {
            let peer = &connection.peer;
            let mut edits = Edits::default();
            let verdict = route(&plan, peer, &head, &bytes, &mut edits, &worker.plugins, None);
            let request = Request { worker, plan: &plan, peer, head: &head, bytes: &bytes, slot: &slot };
            let mut body = Body::new(Source::two(incoming, &slot));
            let mut client = Client::Two { respond: &mut respond, slot: &slot, is_head: head.facts.is_head };
            let outcome: Outcome<'_> = run(&request, verdict, &mut edits, &mut body, &mut client).await;
            (ended, rule) = (outcome.ended, outcome.rule);
        }
        refused => {
            let (status, reason) = refused.err().map_or((400, "not a request"), |r| (r.status, r.reason));
            let mut response = http::Response::new(());
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_REQUEST);
            // A client that is gone needs no answer.
            let _ = respond.send_response(response, true);
            (ended, rule) = (Ended { status, error: Some(reason.to_owned()), ..Ended::default() }, "");
        }
    }
    if ended.status == 0 {
        // To close is what the rule said, or all that is left. Not as a refused stream: that would invite the client to
        // send again what an upstream may have acted upon.
        respond.send_reset(Reason::CANCEL);
    }
    let gone = ended.status == 0 && ended.upstream.is_some() || ended.error.as_deref() == Some(TOOK_BACK);
    let counter = if gone { &connection.taken_back } else { &connection.finished };
    counter.set(counter.get().saturating_add(1));
    record(&connection, &ended, rule, &parts, began);
    connection.open.set(connection.open.get() - 1);
    connection.worker.pool.give_text(bytes);
}

/// What an exchange says that ended because the client reset its stream.
pub(crate) const TOOK_BACK: &str = "the client took the request back";

fn record(connection: &Connection, ended: &Ended, rule: &str, parts: &http::request::Parts, began: Instant) {
    let now = Instant::now();
    let duration = now.saturating_duration_since(began);
    let host = parts.uri.authority().map_or("", http::uri::Authority::as_str);
    connection.worker.answered(ended, duration);
    let entry = Entry {
        connection: connection.peer.id,
        client: &connection.peer.remote_text,
        rule,
        method: parts.method.as_str().as_bytes(),
        host: host.as_bytes(),
        path: parts.uri.path().as_bytes(),
        status: ended.status,
        upstream: ended.upstream.as_ref().map_or("", |t| &t.name),
        bytes_in: ended.bytes_in,
        bytes_out: ended.bytes_out,
        duration,
        error: ended.error.as_deref().unwrap_or(""),
    };
    connection.worker.flows.push(&entry, now);
}
