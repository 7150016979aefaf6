//! A worker: one thread, one runtime, its own listeners, buffers and upstream connections. Workers share nothing that
//! a request has to wait for.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shipote_rules::{ListenSpec, Transport};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::figures::Figures;
use crate::flows::{Entry, Flows};
use crate::forward;
use crate::http1::connection;
use crate::http1::exchange::Ended;
use crate::http1::response::ResponseHead;
use crate::http2;
use crate::http3;
use crate::io::{Clock, Io, Pool, Slot, Stream, more};
use crate::listen::logical;
use crate::peek::{self, First};
use crate::plan::Plan;
use crate::plugin::Instances;
use crate::proxy_protocol;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::tls;
use crate::udp;
use crate::upstream::{Dialer, Pools};
use crate::walk::{Arrival, Peer, arrive, canonical};

/// How often what is idle is looked at.
const SWEEP: Duration = Duration::from_secs(5);
/// How long it may take to tell peers of QUIC that their connections ended.
const FAREWELL: Duration = Duration::from_millis(300);

/// What a worker is told.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept on this socket, which plans know by this address.
    Listen(SocketAddr, std::net::TcpListener),
    /// Take datagrams from this socket.
    Receive(SocketAddr, std::net::UdpSocket),
    /// Speak QUIC on this socket.
    Quic(SocketAddr, std::net::UdpSocket),
    /// Stop accepting for this address.
    Unlisten(ListenSpec),
    /// End what is idle of this address, which no rule names any more.
    EndIdle(ListenSpec),
    /// Stop accepting, end what is idle, and answer when the last connection is gone.
    Drain(oneshot::Sender<()>),
}

/// An open connection, as the bus shows it.
#[derive(Debug, Clone)]
pub(crate) struct OpenConnection {
    pub(crate) remote: SocketAddr,
    pub(crate) listener: SocketAddr,
    pub(crate) since: Instant,
}

/// What others may look at while the worker works.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) figures: Arc<Figures>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) connections: Arc<Mutex<HashMap<u64, OpenConnection>>>,
}

/// How a worker reaches one of its connections.
struct Open {
    slot: Rc<Slot>,
    /// Whether it is between two requests.
    idle: Rc<Cell<bool>>,
    listener: ListenSpec,
}

pub(crate) struct Worker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) pools: Pools,
    pub(crate) dialer: Dialer,
    /// What speaks QUIC here.
    pub(crate) endpoints: RefCell<Vec<Weak<quinn::Endpoint>>>,
    pub(crate) plugins: Instances,
    pub(crate) figures: Arc<Figures>,
    pub(crate) flows: Arc<Flows>,
    clock: Rc<Clock>,
    plan: RefCell<Arc<Plan>>,
    generation: Cell<u64>,
    turn: Cell<usize>,
    heads: RefCell<Vec<ResponseHead>>,
    open: RefCell<HashMap<u64, Open>>,
    visible: Arc<Mutex<HashMap<u64, OpenConnection>>>,
    gone: Notify,
}

impl Worker {
    /// The plan that holds now.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        let generation = self.shared.generation();
        if generation != self.generation.get() {
            *self.plan.borrow_mut() = self.shared.plan();
            self.generation.set(generation);
            self.plugins.sweep(&self.plan.borrow().places);
        }
        Arc::clone(&self.plan.borrow())
    }

    /// A deadline of its own for a request that shares its connection.
    pub(crate) fn slot(&self) -> Rc<Slot> {
        self.clock.slot()
    }

    /// Counts a request that ended.
    pub(crate) fn answered(&self, ended: &Ended, duration: Duration) {
        let figures = &self.figures;
        figures.answered(ended.status, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        figures.bytes_in.add(ended.bytes_in);
        figures.bytes_out.add(ended.bytes_out);
        if matches!(ended.status, 408 | 504) {
            figures.timeouts.add(1);
        }
    }

    /// A number that grows with every call, for taking turns.
    pub(crate) fn turn(&self) -> usize {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    pub(crate) fn take_response_head(&self) -> ResponseHead {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn give_response_head(&self, head: ResponseHead) {
        let mut heads = self.heads.borrow_mut();
        if heads.len() < 64 {
            heads.push(head);
        }
    }

    /// Notes a connection that ended before it could ask for anything.
    fn refused(&self, connection: u64, remote: SocketAddr, error: &str) {
        let client = canonical(remote.ip()).to_string();
        let entry = Entry { connection, client: &client, error, ..Entry::default() };
        self.flows.push(&entry, Instant::now());
    }

    /// Ends connections between two requests, of one listener or all.
    fn end_idle(&self, listener: Option<ListenSpec>) {
        for open in self.open.borrow().values() {
            if open.idle.get() && listener.is_none_or(|l| l == open.listener) {
                open.slot.expire();
            }
        }
    }
}

/// Runs a worker on the calling thread until it was told to drain and is empty, or its commands end.
pub(crate) fn run(
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    window: &Window,
    commands: mpsc::UnboundedReceiver<Command>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return tracing::error!("start a worker's runtime: {e}"),
    };
    let clock = Rc::new(Clock::new());
    let worker = Rc::new(Worker {
        pools: Pools::new(Rc::clone(&clock), settings.idle_upstream, settings.idle_upstream_time),
        pool: Pool::default(),
        dialer: Dialer::default(),
        endpoints: RefCell::default(),
        plugins: Instances::default(),
        figures: Arc::clone(&window.figures),
        flows: Arc::clone(&window.flows),
        visible: Arc::clone(&window.connections),
        // The number first: a plan that comes in between is then seen again instead of never.
        generation: Cell::new(shared.generation()),
        plan: RefCell::new(shared.plan()),
        turn: Cell::new(0),
        heads: RefCell::default(),
        open: RefCell::default(),
        gone: Notify::new(),
        settings,
        shared,
        clock,
    });
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, obey(worker, commands));
}

async fn obey(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let ticking = Rc::clone(&worker);
    tokio::task::spawn_local(async move { ticking.clock.run().await });
    tokio::task::spawn_local(sweep(Rc::clone(&worker)));
    let mut listeners: HashMap<ListenSpec, Vec<tokio::task::JoinHandle<()>>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(address, socket) => match TcpListener::from_std(socket) {
                Ok(listener) => {
                    let accepting = tokio::task::spawn_local(accept(Rc::clone(&worker), listener, address));
                    listeners.entry(ListenSpec { transport: Transport::Tcp, address }).or_default().push(accepting);
                }
                Err(e) => tracing::error!("listen on {address}: {e}"),
            },
            Command::Receive(address, socket) => match UdpSocket::from_std(socket) {
                Ok(socket) => {
                    let receiving = tokio::task::spawn_local(udp::receive(Rc::clone(&worker), socket, address));
                    listeners.entry(ListenSpec { transport: Transport::Udp, address }).or_default().push(receiving);
                }
                Err(e) => tracing::error!("receive on udp {address}: {e}"),
            },
            Command::Quic(address, socket) => {
                let speaking = tokio::task::spawn_local(http3::server::listen(Rc::clone(&worker), socket, address));
                listeners.entry(ListenSpec { transport: Transport::Quic, address }).or_default().push(speaking);
            }
            Command::Unlisten(address) => {
                listeners.remove(&address).into_iter().flatten().for_each(|l| l.abort());
            }
            Command::EndIdle(address) => worker.end_idle(Some(address)),
            Command::Drain(done) => {
                // Who speaks QUIC has to say to newcomers that they are not wanted.
                let streams = listeners.drain().filter(|(spec, _)| spec.transport != Transport::Quic);
                streams.flat_map(|(_, l)| l).for_each(|l| l.abort());
                let gone = worker.gone.notified();
                worker.end_idle(None);
                if !worker.open.borrow().is_empty() {
                    gone.await;
                }
                let endpoints: Vec<_> = worker.endpoints.take().iter().filter_map(Weak::upgrade).collect();
                let farewell = futures_util::future::join_all(endpoints.iter().map(|e| e.wait_idle()));
                // What could not be told by then, the next instance or a time limit tells.
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
                // Who asked may have given up waiting.
                let _ = done.send(());
                return;
            }
        }
    }
}

/// Closes what was idle for too long, every few seconds for as long as there are visitors and until what they left is too
/// old to be kept. A worker that nobody visits sleeps; but for another plan: it lets go of the one before, and of what its
/// last requests called.
async fn sweep(worker: Rc<Worker>) {
    let mut swaps = worker.shared.swaps();
    loop {
        tokio::select! {
            () = worker.clock.visited() => {}
            swapped = swaps.changed() => if swapped.is_err() { return },
        }
        let mut quiet = Duration::ZERO;
        while quiet <= worker.settings.idle_upstream_time + SWEEP {
            tokio::time::sleep(SWEEP).await;
            quiet = if worker.clock.is_quiet() { quiet + SWEEP } else { Duration::ZERO };
            worker.clock.update();
            worker.pools.sweep();
            worker.plugins.sweep(&worker.plan().places);
        }
    }
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, address: SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => admit(&worker, stream, remote, logical(address, remote)),
            Err(e) => {
                // Out of descriptors or memory: others must end first, and trying at once would only burn time.
                tracing::warn!("accept on {address}: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection, or the session of a client that sends datagrams, in the books.
pub(crate) struct Entered {
    pub(crate) id: u64,
    pub(crate) slot: Rc<Slot>,
    pub(crate) idle: Rc<Cell<bool>>,
    pub(crate) leave: Leave,
}

/// Takes a client into the books, unless a limit forbids it.
pub(crate) fn enter(worker: &Rc<Worker>, remote: SocketAddr, listener: ListenSpec) -> Option<Entered> {
    let ip = canonical(remote.ip());
    let Some(id) = worker.shared.enter(ip, &worker.settings) else {
        worker.figures.refused.add(1);
        return None;
    };
    worker.figures.accepted.add(1);
    worker.figures.open.add(1);
    let slot = worker.clock.slot();
    let idle = Rc::new(Cell::new(false));
    let open = Open { slot: Rc::clone(&slot), idle: Rc::clone(&idle), listener };
    worker.open.borrow_mut().insert(id, open);
    let seen = OpenConnection { remote, listener: listener.address, since: Instant::now() };
    worker.visible.lock().unwrap_or_else(PoisonError::into_inner).insert(id, seen);
    Some(Entered { id, slot, idle, leave: Leave { worker: Rc::clone(worker), id, ip } })
}

fn admit(worker: &Rc<Worker>, mut stream: TcpStream, remote: SocketAddr, address: SocketAddr) {
    let spec = ListenSpec { transport: Transport::Tcp, address };
    let Some(Entered { id, slot, idle, leave }) = enter(worker, remote, spec) else { return };
    tokio::task::spawn_local(async move {
        // An answer in small pieces must not wait for acknowledgements.
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!("set TCP_NODELAY for {remote}: {e}");
        }
        let mut ends = (remote, stream.local_addr().unwrap_or(address));
        if proxied(&leave.worker, remote, address) {
            match Box::pin(proxy_protocol::take(&mut stream, leave.worker.settings.peek_time)).await {
                Ok(told) => ends = told.unwrap_or(ends),
                Err(e) => return leave.worker.refused(id, remote, &e.to_string()),
            }
        }
        let (remote, local) = ends;
        let peer = Peer {
            id,
            transport: Transport::Tcp,
            remote,
            remote_text: canonical(remote.ip()).to_string(),
            local,
            listener: address,
            peeked: Box::default(),
            sni: None,
            tls: None,
            accepted_unix_ms: unix_ms(),
        };
        greet(&leave.worker, stream, peer, slot, idle).await;
        drop(leave);
    });
}

/// Whether this peer must say for whom it connects.
fn proxied(worker: &Worker, remote: SocketAddr, address: SocketAddr) -> bool {
    let plan = worker.plan();
    let ip = canonical(remote.ip());
    plan.listener(Transport::Tcp, address).is_some_and(|l| l.proxied_by.iter().any(|n| n.contains(&ip)))
}

pub(crate) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Takes a connection out of the books when its task ends, however it ends.
pub(crate) struct Leave {
    pub(crate) worker: Rc<Worker>,
    id: u64,
    ip: std::net::IpAddr,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let worker = &self.worker;
        worker.shared.leave(self.ip);
        worker.figures.open.sub(1);
        worker.visible.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        let mut open = worker.open.borrow_mut();
        open.remove(&self.id);
        if open.is_empty() {
            worker.gone.notify_waiters();
        }
    }
}

/// Decides what a new connection is.
async fn greet(worker: &Rc<Worker>, stream: TcpStream, mut peer: Peer, slot: Rc<Slot>, idle: Rc<Cell<bool>>) {
    let plan = worker.plan();
    let Some(listener) = plan.listener(Transport::Tcp, peer.listener) else { return };
    let mut arrival = arrive(&plan, listener.entry, &peer, None, &worker.plugins);
    if arrival == Arrival::Peek {
        let began = Instant::now();
        let first = Box::pin(look(worker, &stream, &mut peer)).await;
        arrival = arrive(&plan, listener.entry, &peer, Some(first == First::Http), &worker.plugins);
        if let Arrival::Refused { rule, error } = &arrival {
            let (connection, client) = (peer.id, peer.remote_text.as_str());
            let entry = Entry { connection, client, rule, error, duration: began.elapsed(), ..Entry::default() };
            worker.flows.push(&entry, Instant::now());
        }
        if arrival == Arrival::Close {
            let entry = Entry {
                connection: peer.id,
                client: &peer.remote_text,
                host: peer.sni.as_deref().unwrap_or("").as_bytes(),
                error: "no rule wants it",
                duration: began.elapsed(),
                ..Entry::default()
            };
            worker.flows.push(&entry, Instant::now());
        }
    }
    if arrival == Arrival::Tls {
        let Some(config) = plan.tls(Transport::Tcp, peer.listener) else { return };
        let acceptor = TlsAcceptor::from(Arc::clone(config));
        drop(plan);
        let began = Instant::now();
        let handshake = Box::pin(tokio::time::timeout(worker.settings.head_time, acceptor.accept(stream)));
        match handshake.await {
            Ok(Ok(stream)) => {
                let (settled, name) = tls::settled(stream.get_ref().1);
                let two = settled.alpn.as_deref() == Some(b"h2");
                (peer.tls, peer.sni) = (Some(settled), name);
                if two {
                    let stream = Stream::Tls(Box::new(stream));
                    let worker = Rc::clone(worker);
                    return Box::pin(http2::server::serve(worker, Bytes::new(), stream, peer, slot, idle)).await;
                }
                let client = Io::new(Stream::Tls(Box::new(stream)), slot);
                connection::serve(Rc::clone(worker), client, peer, idle).await;
            }
            failed => {
                let error = match failed {
                    Ok(Err(e)) => format!("TLS handshake: {e}"),
                    _ => "TLS handshake: a time limit passed".to_owned(),
                };
                let (connection, client, error) = (peer.id, peer.remote_text.as_str(), error.as_str());
                let entry = Entry { connection, client, error, duration: began.elapsed(), ..Entry::default() };
                worker.flows.push(&entry, Instant::now());
            }
        }
        return;
    }
    let client = Io::new(Stream::Tcp(stream), slot);
    match arrival {
        Arrival::Http => {
            drop(plan);
            connection::serve(Rc::clone(worker), client, peer, idle).await;
        }
        Arrival::Forward(terminator) => {
            Box::pin(forward::forward(worker, &plan, terminator, client, &peer)).await;
        }
        Arrival::Close | Arrival::Refused { .. } | Arrival::Peek | Arrival::Tls => {}
    }
}

/// Looks at the first bytes without taking them, until it is clear what they are, there are enough, or time is up.
async fn look(worker: &Worker, stream: &TcpStream, peer: &mut Peer) -> First {
    let mut bytes = vec![0; peek::PEEK_BYTES];
    let mut have = 0;
    let looking = async {
        loop {
            match more(stream, &mut bytes, have).await {
                Ok(n) if n > have => {
                    have = n;
                    match peek::look(&bytes[..n]) {
                        First::Unclear if n == peek::PEEK_BYTES => return First::Other,
                        First::Unclear => {}
                        first => return first,
                    }
                }
                // No more will come.
                _ => return First::Other,
            }
        }
    };
    let first = tokio::time::timeout(worker.settings.peek_time, looking).await.unwrap_or(First::Other);
    bytes.truncate(have);
    peer.peeked = bytes.into_boxed_slice();
    if let First::Tls(name) = &first {
        peer.sni.clone_from(name);
    }
    first
}
