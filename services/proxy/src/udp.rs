//! `udp_forward`: datagrams to an upstream and back, by sessions.
//!
//! A session is a client's address on one listener: its datagrams go to the same upstream, from a socket of its own, so
//! that answers find their way. It ends when nothing went either way for the rule's idle time. Sessions are in the
//! books like connections and under the same limits; what a full queue or a full table does not take is dropped, as
//! datagrams may be.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use shipote_rules::{ListenSpec, Terminator, TerminatorId, Transport, UpstreamAddress};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use crate::flows::Entry;
use crate::http::body::within;
use crate::http1::exchange::InFlight;
use crate::listen::logical;
use crate::plan::Plan;
use crate::upstream::{Key, Target, pick, resolve};
use crate::walk::{Arrival, Peer, arrive, canonical};
use crate::worker::{Entered, Worker, enter, unix_ms};

/// Largest datagram.
const DATAGRAM: usize = 65_535;
/// Datagrams of one client that wait for their session.
const QUEUE: usize = 64;

type Sessions = Rc<RefCell<HashMap<SocketAddr, mpsc::Sender<Box<[u8]>>>>>;

/// Takes datagrams until the task is ended.
pub(crate) async fn receive(worker: Rc<Worker>, socket: UdpSocket, address: SocketAddr) {
    let socket = Rc::new(socket);
    let sessions: Sessions = Rc::default();
    let mut buf = vec![0; DATAGRAM];
    loop {
        let (n, from) = match socket.recv_from(&mut buf).await {
            Ok(got) => got,
            // An answer that could not be delivered is told here, and means nothing for others.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(e) => {
                tracing::warn!("receive on udp {address}: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let datagram: Box<[u8]> = buf[..n].into();
        let known = sessions.borrow().get(&from).cloned();
        let queue = match known {
            Some(queue) => queue,
            None => match begin(&worker, &socket, &sessions, address, from, &datagram) {
                Some(queue) => queue,
                None => continue,
            },
        };
        if queue.try_send(datagram).is_err() {
            worker.figures.dropped.add(1);
        }
    }
}

fn begin(
    worker: &Rc<Worker>,
    socket: &Rc<UdpSocket>,
    sessions: &Sessions,
    address: SocketAddr,
    from: SocketAddr,
    first: &[u8],
) -> Option<mpsc::Sender<Box<[u8]>>> {
    if sessions.borrow().len() >= worker.settings.udp_sessions {
        worker.figures.refused.add(1);
        return None;
    }
    let plan = worker.plan();
    let address = logical(address, from);
    let listener = plan.listener(Transport::Udp, address)?;
    let entered = enter(worker, from, ListenSpec { transport: Transport::Udp, address })?;
    let peer = Peer {
        id: entered.id,
        transport: Transport::Udp,
        remote: from,
        remote_text: canonical(from.ip()).to_string(),
        local: socket.local_addr().unwrap_or(address),
        listener: address,
        peeked: first.into(),
        sni: None,
        tls: None,
        accepted_unix_ms: unix_ms(),
    };
    let arrival = arrive(&plan, listener.entry, &peer, Some(false), &worker.plugins);
    if let Arrival::Refused { rule, error } = &arrival {
        let (connection, client) = (peer.id, peer.remote_text.as_str());
        worker.flows.push(&Entry { connection, client, rule, error, ..Entry::default() }, Instant::now());
    }
    let Arrival::Forward(terminator) = arrival else { return None };
    let (queue, queued) = mpsc::channel(QUEUE);
    sessions.borrow_mut().insert(from, queue.clone());
    let session = Session { worker: Rc::clone(worker), socket: Rc::clone(socket), plan, terminator, peer };
    let sessions = Rc::clone(sessions);
    tokio::task::spawn_local(async move {
        session.run(entered, queued).await;
        sessions.borrow_mut().remove(&from);
    });
    Some(queue)
}

struct Session {
    worker: Rc<Worker>,
    socket: Rc<UdpSocket>,
    plan: std::sync::Arc<Plan>,
    terminator: TerminatorId,
    peer: Peer,
}

impl Session {
    async fn run(&self, entered: Entered, mut queued: mpsc::Receiver<Box<[u8]>>) {
        let began = Instant::now();
        let entry = self.plan.graph.terminator(self.terminator);
        let Terminator::UdpForward { balance, idle, .. } = &entry.terminator else { return };
        let targets = &self.plan.targets[self.terminator.index()];
        let turn = self.worker.turn();
        let Some(target) = pick(targets, *balance, turn, Key::Address(self.peer.remote.ip()), &[]) else { return };
        let _open = InFlight::new(target);
        // Nothing is lost when it ends at any time: datagrams have no end that could be torn.
        entered.idle.set(true);
        entered.slot.set(*idle);
        let (mut up, mut down) = (0, 0);
        let error = match connect(target).await {
            Err(e) => {
                target.failed();
                format!("reach {}: {e}", target.name)
            }
            Ok(upstream) => {
                let mut buf = vec![0; DATAGRAM];
                loop {
                    let next = within(&entered.slot, async {
                        tokio::select! {
                            datagram = queued.recv() => Next::Up(datagram),
                            got = upstream.recv(&mut buf) => Next::Down(got),
                        }
                    });
                    let failed = match next.await {
                        Err(_) | Ok(Next::Up(None)) => break String::new(),
                        Ok(Next::Up(Some(datagram))) => {
                            up += datagram.len() as u64;
                            upstream.send(&datagram).await.err()
                        }
                        Ok(Next::Down(Ok(n))) => {
                            down += n as u64;
                            self.socket.send_to(&buf[..n], self.peer.remote).await.err()
                        }
                        Ok(Next::Down(Err(e))) => Some(e),
                    };
                    match failed {
                        None => entered.slot.touch(),
                        // Somebody's buffer is full: one datagram less.
                        Some(e) if e.kind() == io::ErrorKind::WouldBlock => self.worker.figures.dropped.add(1),
                        Some(e) => {
                            if e.kind() == io::ErrorKind::ConnectionRefused {
                                target.failed();
                            }
                            break e.to_string();
                        }
                    }
                }
            }
        };
        self.worker.figures.bytes_in.add(up);
        self.worker.figures.bytes_out.add(down);
        let flow = Entry {
            connection: self.peer.id,
            client: &self.peer.remote_text,
            rule: &entry.rule,
            upstream: &target.name,
            bytes_in: up,
            bytes_out: down,
            duration: began.elapsed(),
            error: &error,
            ..Entry::default()
        };
        self.worker.flows.push(&flow, Instant::now());
        drop(entered.leave);
    }
}

enum Next {
    Up(Option<Box<[u8]>>),
    Down(io::Result<usize>),
}

async fn connect(target: &Target) -> io::Result<UdpSocket> {
    let UpstreamAddress::Tcp { host, port } = &target.address else {
        return Err(io::Error::other(format!("{} takes no datagrams", target.name)));
    };
    let address = resolve(target, host, *port).await?;
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    Ok(socket)
}
