//! HTTP/3 from clients: handshakes, connections, and their requests, each a task.
//!
//! What `quinn` bounds: what is sent to an address that has proved nothing (three times what came from it, RFC 9000,
//! section 8.1), requests at once, bytes that a client sends ahead. What is bounded here: handshakes at once of clients
//! that did not prove their address (over it each must, by a Retry), connections as for TCP, requests that are taken
//! back, time without a request, and every wait of a request.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use h3::error::Code;
use h3::server::RequestResolver;
use http::Method;
use rustls::pki_types::CertificateDer;
use shipote_rules::{ListenSpec, Transport};

use super::head::{self, length};
use super::quic::{Fate, Quic, Watch, code};
use super::stream::{Receiving, Sending};
use crate::flows::Entry;
use crate::http::body::within;
use crate::http::multiplexed::Multiplexed;
use crate::http::{Client, Source};
use crate::io::Slot;
use crate::listen::logical;
use crate::tls;
use crate::walk::{Arrival, Peer, arrive, canonical};
use crate::worker::{Entered, Leave, Worker, enter, unix_ms};

/// Ends what listens when its task is ended: who is connected goes on.
struct Listening(Rc<quinn::Endpoint>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.set_server_config(None);
    }
}

/// Counts a handshake as open.
struct Handshake(Rc<Cell<usize>>);

impl Handshake {
    fn new(open: &Rc<Cell<usize>>) -> Self {
        open.set(open.get() + 1);
        Self(Rc::clone(open))
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Takes connections from a socket, which plans know by this address.
pub(crate) async fn listen(worker: Rc<Worker>, socket: std::net::UdpSocket, address: SocketAddr) {
    // Rules that name the address hold before its socket comes.
    let Some(base) = worker.plan().quic(address).map(|c| c.server(worker.settings.idle_time)) else { return };
    let config = worker.shared.quic.clone();
    let endpoint = quinn::Endpoint::new(config, Some(base.clone()), socket, Arc::new(quinn::TokioRuntime));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(e) => return tracing::error!("speak QUIC on {address}: {e}"),
    };
    let listening = Listening(Rc::new(endpoint));
    {
        let mut endpoints = worker.endpoints.borrow_mut();
        endpoints.retain(|e| e.strong_count() > 0);
        endpoints.push(Rc::downgrade(&listening.0));
    }
    let handshakes = Rc::default();
    while let Some(incoming) = listening.0.accept().await {
        if worker.shared.draining() {
            // The client asks again, and by then the next instance may be there.
            incoming.ignore();
            continue;
        }
        take(&worker, &base, incoming, address, &handshakes);
    }
}

fn take(
    worker: &Rc<Worker>,
    base: &quinn::ServerConfig,
    incoming: quinn::Incoming,
    address: SocketAddr,
    handshakes: &Rc<Cell<usize>>,
) {
    let plan = worker.plan();
    let remote = incoming.remote_address();
    let address = logical(address, remote);
    let (Some(crypto), Some(listener)) = (plan.quic(address), plan.listener(Transport::Quic, address)) else {
        return incoming.refuse();
    };
    if handshakes.get() >= worker.settings.quic_handshakes && !incoming.remote_address_validated() {
        worker.figures.proofs.add(1);
        // One that cannot be asked was asked before.
        let _ = incoming.retry();
        return;
    }
    let spec = ListenSpec { transport: Transport::Quic, address };
    let Some(entered) = enter(worker, remote, spec) else { return incoming.refuse() };
    let local = incoming.local_ip().map_or(address, |ip| SocketAddr::new(ip, address.port()));
    let peer = Peer {
        id: entered.id,
        transport: Transport::Quic,
        remote,
        remote_text: canonical(remote.ip()).to_string(),
        local,
        listener: address,
        peeked: Box::default(),
        sni: None,
        tls: None,
        accepted_unix_ms: unix_ms(),
    };
    if arrive(&plan, listener.entry, &peer, Some(true), &worker.plugins) != Arrival::Tls {
        let (connection, client) = (peer.id, peer.remote_text.as_str());
        let entry = Entry { connection, client, error: "no rule wants it", ..Entry::default() };
        worker.flows.push(&entry, Instant::now());
        return incoming.refuse();
    }
    let Entered { slot, idle, leave, .. } = entered;
    match incoming.accept_with(crypto.renew(base)) {
        Ok(connecting) => {
            let open = Handshake::new(handshakes);
            tokio::task::spawn_local(greet(connecting, open, peer, (slot, idle), leave));
        }
        Err(e) => note(worker, &peer, &e.to_string()),
    }
}

fn note(worker: &Worker, peer: &Peer, error: &str) {
    let (connection, client) = (peer.id, peer.remote_text.as_str());
    let error = &format!("QUIC handshake: {error}");
    worker.flows.push(&Entry { connection, client, error, ..Entry::default() }, Instant::now());
}

async fn greet(
    connecting: quinn::Connecting,
    open: Handshake,
    mut peer: Peer,
    (slot, idle): (Rc<Slot>, Rc<Cell<bool>>),
    leave: Leave,
) {
    let worker = Rc::clone(&leave.worker);
    let connection = match tokio::time::timeout(worker.settings.head_time, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => return note(&worker, &peer, &e.to_string()),
        Err(_) => return note(&worker, &peer, "a time limit passed"),
    };
    drop(open);
    let data = connection.handshake_data().and_then(|d| d.downcast::<quinn::crypto::rustls::HandshakeData>().ok());
    let (alpn, name) = data.map_or((None, None), |d| (d.protocol, d.server_name));
    let certificates = connection.peer_identity().and_then(|i| i.downcast::<Vec<CertificateDer<'static>>>().ok());
    let leaf = certificates.as_ref().and_then(|all| all.first());
    peer.tls = Some(tls::Settled::new("1.3", alpn, leaf));
    peer.sni = name.map(|n| n.to_ascii_lowercase());
    serve(worker, connection, peer, slot, idle).await;
    drop(leave);
}

/// Serves a connection until it ends. As with HTTP/2, `idle` stays set: who sets the slot off asks for an end in good
/// order.
async fn serve(worker: Rc<Worker>, connection: quinn::Connection, peer: Peer, slot: Rc<Slot>, idle: Rc<Cell<bool>>) {
    slot.set(worker.settings.head_time);
    let quic = Quic::new(connection.clone());
    let watch = quic.watch();
    let mut builder = h3::server::builder();
    builder.max_field_section_size(worker.settings.head_bytes as u64).send_grease(false);
    let Ok(Ok(mut requests)) = within(&slot, builder.build::<_, Bytes>(quic)).await else { return };
    idle.set(true);
    slot.set(worker.settings.idle_time);
    let common = Multiplexed::new(worker, peer);
    let ending = Rc::new(Cell::new(false));
    loop {
        let next = {
            let mut accept = pin!(requests.accept());
            poll_fn(|cx| match accept.as_mut().poll(cx) {
                Poll::Ready(next) => Poll::Ready(Some(next)),
                Poll::Pending if slot.poll_expired(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            })
            .await
        };
        match next {
            Some(Ok(Some(resolver))) => {
                slot.set(common.worker.settings.idle_time);
                common.begin();
                let (common, watch) = (Rc::clone(&common), Rc::clone(&watch));
                let (ending, slot) = (Rc::clone(&ending), Rc::clone(&slot));
                tokio::task::spawn_local(async move {
                    request(&common, resolver, &watch).await;
                    common.end();
                    if ending.get() && common.open.get() == 0 {
                        // The last one: the connection has nothing to wait for.
                        slot.expire();
                    }
                });
            }
            Some(Ok(None)) => return,
            Some(Err(e)) => {
                tracing::debug!("connection {} ended: {e}", common.peer.id);
                return;
            }
            None if ending.get() => return,
            None => {
                let settings = &common.worker.settings;
                if common.is_wanted() {
                    // Requests have limits of their own.
                    slot.set(settings.idle_time);
                    continue;
                }
                ending.set(true);
                slot.set(settings.drain_time);
                if !matches!(within(&slot, requests.shutdown(0)).await, Ok(Ok(()))) {
                    return;
                }
                if common.open.get() == 0 {
                    return;
                }
            }
        }
        if common.is_abused() {
            connection.close(code(Code::H3_EXCESSIVE_LOAD), b"too many requests were taken back");
            return;
        }
    }
}

async fn request(common: &Multiplexed, resolver: RequestResolver<Quic, Bytes>, watch: &Watch) {
    let settings = &common.worker.settings;
    let slot = common.worker.slot();
    slot.set(settings.head_time);
    let (request, stream) = match within(&slot, resolver.resolve_request()).await {
        Ok(Ok(resolved)) => resolved,
        // What is malformed was reset or answered.
        Ok(Err(e)) => {
            tracing::debug!("connection {}: {e}", common.peer.id);
            return common.took_back();
        }
        Err(_) => return common.took_back(),
    };
    let (parts, ()) = request.into_parts();
    let fate = Fate::of(watch, stream.send_id());
    let (send, recv) = stream.split();
    let mut sending = Some(Box::new(Sending::Answer(send, Rc::clone(&fate))));
    let refused = async {
        head::check(&parts.headers)?;
        let declared = length(&parts.headers)?;
        let mut recv = Receiving::Request(recv);
        slot.set(settings.body_time);
        let first = first_piece(&mut recv, &parts.method, declared, &slot).await;
        let end = matches!(first, Some(None)) && declared.unwrap_or(0) == 0;
        let source = if end { Source::Empty } else { Source::three(recv, &slot, declared, first.flatten()) };
        common
            .serve((&parts, end), (source, &slot), |is_head| Client::Three {
                sending: &mut sending,
                slot: &slot,
                is_head,
            })
            .await
            .map(|_| ())
    };
    if let Err(refusal) = refused.await
        && let Some(mut sending) = sending.take()
    {
        // A client that is gone needs no answer.
        let answer = async {
            sending.head(refusal.response()).await?;
            sending.end(None).await
        };
        let _ = within(&slot, answer).await;
    }
    // What is dropped now is reset.
    drop(sending);
    slot.set(settings.body_time);
    // The connection must not end before the client has all of it.
    let _ = within(&slot, fate.settled()).await;
}

/// The first piece of a body, where it is there or must be waited for to know whether there is one: `Some(None)` says
/// that there is none.
async fn first_piece(
    recv: &mut Receiving,
    method: &Method,
    declared: Option<u64>,
    slot: &Slot,
) -> Option<Option<Bytes>> {
    let usual = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
    if declared.is_none() && !usual {
        // Requests of other methods end with their head; the end may come in a packet of its own.
        return match within(slot, poll_fn(|cx| recv.poll_data(cx))).await {
            Ok(Ok(first)) => Some(first),
            // The body is read again, and breaks there.
            Ok(Err(_)) | Err(_) => None,
        };
    }
    match poll_fn(|cx| Poll::Ready(recv.poll_data(cx))).await {
        Poll::Ready(Ok(first)) => Some(first),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}
