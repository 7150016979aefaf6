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

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::body::within;
use crate::http::multiplexed::Multiplexed;
use crate::http::{Client, Source, websocket};
use crate::http1::exchange::Ended;
use crate::io::{Slot, Stream};
use crate::walk::Peer;
use crate::worker::Worker;

/// Requests at once.
const STREAMS: u32 = 128;
/// Bytes that a client may send ahead, of one request and in all.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of answers that wait for the client, of one stream.
const SEND_BUFFER: usize = 256 << 10;

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
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(worker.settings.head_bytes).unwrap_or(u32::MAX))
        .handshake::<_, Bytes>(Early { bytes: early, stream });
    let Ok(Ok(mut connection)) = within(&slot, handshake).await else { return };
    idle.set(true);
    slot.set(worker.settings.idle_time);
    let common = Multiplexed::new(worker, peer);
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
                common.begin();
                tokio::task::spawn_local(stream_task(Rc::clone(&common), request, respond));
            }
            Some(Some(Err(e))) => {
                tracing::debug!("connection {} ended: {e}", common.peer.id);
                return;
            }
            Some(None) => return,
            None if ending => return,
            None => {
                let settings = &common.worker.settings;
                if common.is_wanted() {
                    // Requests have limits of their own.
                    slot.set(settings.idle_time);
                    continue;
                }
                connection.graceful_shutdown();
                ending = true;
                slot.set(settings.drain_time);
            }
        }
        if common.is_abused() && !ending {
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            ending = true;
            slot.set(common.worker.settings.head_time);
        }
    }
}

async fn stream_task(common: Rc<Multiplexed>, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (mut parts, incoming) = request.into_parts();
    let slot = common.worker.slot();
    let served = match websocket::taken(&mut parts) {
        Ok(connect) => {
            // What follows in a tunnel is no body.
            let end = incoming.is_end_stream() || connect;
            let source = Source::two(incoming, &slot);
            common
                .serve((&parts, end), (source, &slot), |is_head| Client::Two {
                    respond: &mut respond,
                    slot: &slot,
                    is_head,
                    connect,
                })
                .await
        }
        Err(refusal) => Err(refusal),
    };
    match served {
        // To close is what the rule said, or all that is left. Not as a refused stream: that would invite the client to
        // send again what an upstream may have acted upon.
        Ok(Ended { status: 0, .. }) => respond.send_reset(Reason::CANCEL),
        Ok(_) => {}
        Err(refusal) => {
            // A client that is gone needs no answer.
            let _ = respond.send_response(refusal.response(), true);
        }
    }
    common.end();
}
