//! The thread that lets clients out.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use shipote_egress::{Denial, Policy};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::ask::{self, How, Wanted};
use super::client::Client;
use super::questions::{Questions, Verdict};
use super::socks::{self, HOST_UNREACHABLE, NOT_ALLOWED, Socks};
use super::{ASK_TIME, Command, Listeners, Queries, names};
use crate::flows::{Entry, Flows};
use crate::http1::compose::reason;
use crate::io::{Buf, Clock, Io, IoError, Pool, Stream};
use crate::tunnel::{Passed, buffers, tunnel};

/// Connections of one client at once.
const OPEN: usize = 512;
/// For the beginning of a connection.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// For resolving and connecting.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// Without a byte either way.
const IDLE_TIME: Duration = Duration::from_secs(600);

struct Common {
    clock: Clock,
    pool: Pool,
    flows: Arc<Flows>,
    questions: Arc<Questions>,
    number: Cell<u64>,
}

pub(super) fn run(commands: mpsc::UnboundedReceiver<Command>, (flows, questions): (Arc<Flows>, Arc<Questions>)) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return tracing::error!("nothing is let out: start a runtime: {e}"),
    };
    let common = Rc::new(Common { clock: Clock::new(), pool: Pool::default(), flows, questions, number: Cell::new(0) });
    tokio::task::LocalSet::new().block_on(&runtime, obey(common, commands));
}

async fn obey(common: Rc<Common>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let ticking = Rc::clone(&common);
    tokio::task::spawn_local(async move { ticking.clock.run().await });
    let mut running: HashMap<String, AbortHandle> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Open(client, listeners) => {
                let name = client.name.clone();
                let task = tokio::task::spawn_local(attend(Rc::clone(&common), client, listeners));
                if let Some(before) = running.insert(name, task.abort_handle()) {
                    before.abort();
                }
            }
            // Its connections are its task's own, and end with it.
            Command::Close(name) => {
                if let Some(task) = running.remove(&name) {
                    task.abort();
                }
            }
        }
    }
}

/// All that a client has, until it is aborted.
async fn attend(common: Rc<Common>, client: Arc<Client>, listeners: Listeners) {
    let Listeners { unix, tcp, names } = listeners;
    let queries = async {
        match names {
            Some(Queries::Datagrams(socket)) => names::datagrams(Arc::clone(&client), socket).await,
            Some(Queries::Connections(listener)) => names::connections(Arc::clone(&client), listener).await,
            None => std::future::pending().await,
        }
    };
    tokio::join!(accept(common, Arc::clone(&client), unix, tcp), queries);
}

async fn accept(
    common: Rc<Common>,
    client: Arc<Client>,
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<std::net::TcpListener>,
) {
    let (unix, tcp) = match (unix.map(UnixListener::from_std).transpose(), tcp.map(TcpListener::from_std).transpose()) {
        (Ok(unix), Ok(tcp)) => (unix, tcp),
        (Err(e), _) | (_, Err(e)) => return tracing::error!("listen for {}: {e}", client.name),
    };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                match &unix {
                    Some(unix) => unix.accept().await,
                    None => std::future::pending().await,
                }
            } => match accepted {
                Ok((stream, _)) => match stream.peer_cred() {
                    Ok(peer) if client.is_for(peer.uid()) => Ok(Stream::Unix(stream)),
                    // Closed unheard: the socket says who the client is, so nobody else may use it.
                    peer => {
                        let uid = peer.map_or_else(|e| e.to_string(), |p| p.uid().to_string());
                        client.deny(&Denial::other(format!("uid {uid} may not use the socket of {}", client.name)));
                        continue;
                    }
                },
                Err(e) => Err(e),
            },
            accepted = async {
                match &tcp {
                    Some(tcp) => tcp.accept().await,
                    None => std::future::pending().await,
                }
            } => accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| Stream::Tcp(stream))),
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(stream) if connections.len() < OPEN => {
                let (common, client) = (Rc::clone(&common), Arc::clone(&client));
                connections.spawn_local(async move { serve(&common, &client, stream).await });
            }
            // Closed unheard: the client has more than enough open.
            Ok(_) => client.deny(&Denial::other(format!("{OPEN} connections are open already"))),
            Err(e) => {
                tracing::warn!("accept for {}: {e}", client.name);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Counts a connection as open for as long as it lives.
struct Open<'c>(&'c Client);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

async fn serve(common: &Common, client: &Client, stream: Stream) {
    client.open.fetch_add(1, Relaxed);
    let _open = Open(client);
    let began = Instant::now();
    let number = common.number.replace(common.number.get() + 1);
    let slot = common.clock.slot();
    slot.set(HEAD_TIME);
    let io = Io::new(stream, slot);
    let mut buf = common.pool.head();
    let asked = listen(&io, &mut buf).await;
    let passed = Cell::new(Passed::default());
    let (wanted, status, upstream, error) = match asked {
        Ok(Some(wanted)) => {
            let (status, upstream, error) = let_out(common, client, &io, &wanted, &mut buf, &passed).await;
            (Some(wanted), status, upstream, error)
        }
        Ok(None) => (None, 0, None, String::new()),
        Err((status, error)) => (None, status, None, error),
    };
    common.pool.give(buf);
    if wanted.is_none() && error.is_empty() {
        return;
    }
    let host = wanted.as_ref().map(|w| format!("{}:{}", w.host, w.port)).unwrap_or_default();
    let upstream = upstream.map(|a: SocketAddr| a.to_string()).unwrap_or_default();
    let flow = Entry {
        connection: number,
        client: &client.name,
        rule: "egress",
        method: wanted.as_ref().map_or("", |w| w.method).as_bytes(),
        host: host.as_bytes(),
        status,
        upstream: &upstream,
        bytes_in: passed.get().up,
        bytes_out: passed.get().down,
        duration: began.elapsed(),
        error: &error,
        ..Entry::default()
    };
    common.flows.push(&flow, Instant::now());
}

/// Reads what the client wants. `Ok(None)`: it went away. The error is answered already.
async fn listen(io: &Io, buf: &mut Buf) -> Result<Option<Wanted>, (u16, String)> {
    let mut greeted = false;
    loop {
        let bytes = buf.filled();
        match bytes.first() {
            None => {}
            Some(5) => match if greeted { socks::request(bytes) } else { socks::greeting(bytes) } {
                Socks::More => {}
                Socks::Answer(n, answer) => {
                    buf.consume(n);
                    greeted = true;
                    if io.write(answer).await.is_err() {
                        return Ok(None);
                    }
                    continue;
                }
                Socks::Wanted(n, host, port) => {
                    buf.consume(n);
                    return Ok(Some(Wanted { host, port, method: "SOCKS5", how: How::Socks }));
                }
                Socks::End(answer) => {
                    // A client that is gone needs no answer.
                    let _ = io.write(answer).await;
                    return Err((400, "not a request of SOCKS5 that is served here".to_owned()));
                }
            },
            // Only a line feed can complete a head.
            Some(_) if !greeted && bytes.contains(&b'\n') => match ask::http(bytes) {
                Ok(None) => {}
                Ok(Some((wanted, length))) => {
                    buf.consume(length);
                    return Ok(Some(wanted));
                }
                Err(refusal) => {
                    answer(io, refusal.status, refusal.reason).await;
                    return Err((refusal.status, refusal.reason.to_owned()));
                }
            },
            Some(_) => {}
        }
        if buf.spare().is_empty() {
            answer(io, 431, "the head is too large").await;
            return Err((431, "the head is too large".to_owned()));
        }
        match io.fill_within(buf).await {
            Ok(0) | Err(IoError::System(_)) => return Ok(None),
            Ok(_) => {}
            Err(IoError::TimedOut) => return Err((408, "the request took too long".to_owned())),
        }
    }
}

/// Lets a connection out if it may go; status, the address that it went to, and what went wrong.
async fn let_out(
    common: &Common,
    client: &Client,
    io: &Io,
    wanted: &Wanted,
    buf: &mut Buf,
    passed: &Cell<Passed>,
) -> (u16, Option<SocketAddr>, String) {
    io.slot().set(ASK_TIME + CONNECT_TIME * 2);
    let reached = match admit(common, client, wanted).await {
        Err(denial) => Err(Failed::Denied(denial)),
        Ok(policy) => reach(wanted, |address| policy.allows_address(&wanted.host, address)).await,
    };
    let (stream, address) = match reached {
        Ok(reached) => reached,
        Err(Failed::Denied(denial)) => {
            client.deny(&denial);
            let text = format!("{} may not go there: {denial}{}", client.name, client.way_out(&denial));
            refuse(io, wanted, (403, NOT_ALLOWED), &text).await;
            return (403, None, denial.text);
        }
        Err(Failed::Unreachable(text)) => {
            refuse(io, wanted, (502, HOST_UNREACHABLE), &text).await;
            return (502, None, text);
        }
    };
    client.allowed.fetch_add(1, Relaxed);
    let upstream = Io::new(Stream::Tcp(stream), io.share_slot());
    io.slot().set(IDLE_TIME);
    let first = match &wanted.how {
        How::Connect => io.write(b"HTTP/1.1 200 Connection established\r\n\r\n").await,
        How::Socks => io.write(&socks::reply(0)).await,
        How::Whole(head) => upstream.write(head).await,
    };
    let result = match first {
        Ok(()) => {
            let (mut up, mut down) = buffers(&common.pool);
            // What came with the request goes first.
            let early = buf.len();
            let moved = match upstream.write(buf.filled()).await {
                Ok(()) => {
                    buf.consume(early);
                    passed.set(Passed { up: early as u64, down: 0 });
                    tunnel(io, &upstream, &mut up, &mut down, passed).await
                }
                Err(e) => Err(e),
            };
            common.pool.give(up);
            common.pool.give(down);
            moved
        }
        Err(e) => Err(e),
    };
    (200, Some(address), result.err().map(|e| e.to_string()).unwrap_or_default())
}

/// The list by which a connection may go where it wants to, as far as names are concerned. Where the client's owner
/// wants to be asked, that may take a while.
async fn admit(common: &Common, client: &Client, wanted: &Wanted) -> Result<Arc<Policy>, Denial> {
    let policy = client.policy();
    let Err(denial) = policy.allows(&wanted.host, wanted.port) else { return Ok(policy) };
    // What a name was resolved to here is as good as the name.
    if client.told(&wanted.host).is_some_and(|name| policy.allows(&name, wanted.port).is_ok()) {
        return Ok(policy);
    }
    if !client.asks() {
        return Err(denial);
    }
    let no = |why: &str| Denial { text: format!("{}; {why}", denial.text), entry: denial.entry.clone() };
    match common.questions.ask(&client.name, &wanted.host, wanted.port, &denial.entry).await {
        Some(Verdict::Once) => client.policy_with(&denial.entry).map(Arc::new).map_err(|e| no(&e.to_string())),
        Some(Verdict::Denied) => Err(no("whoever was asked said no")),
        Some(Verdict::Open) | None => {
            Err(no(&format!("nobody approved it within {} s (`shipote egress pending`)", ASK_TIME.as_secs())))
        }
    }
}

enum Failed {
    Denied(Denial),
    Unreachable(String),
}

/// Resolves, looks at the addresses, and connects to one that was looked at.
async fn reach(
    wanted: &Wanted,
    allows: impl Fn(SocketAddr) -> Result<(), Denial>,
) -> Result<(TcpStream, SocketAddr), Failed> {
    let unreachable = |what: &str, e: &dyn std::fmt::Display| {
        Failed::Unreachable(format!("{what} {}:{}: {e}", wanted.host, wanted.port))
    };
    let resolving = tokio::net::lookup_host((wanted.host.as_str(), wanted.port));
    let found = match tokio::time::timeout(CONNECT_TIME, resolving).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => return Err(unreachable("resolve", &e)),
        Err(_) => return Err(unreachable("resolve", &"no answer within the time limit")),
    };
    let mut failed = None;
    for address in found {
        if let Err(denial) = allows(address) {
            failed.get_or_insert(Failed::Denied(denial));
            continue;
        }
        match tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                if let Err(e) = stream.set_nodelay(true) {
                    tracing::debug!("set TCP_NODELAY for {address}: {e}");
                }
                return Ok((stream, address));
            }
            Ok(Err(e)) => failed = Some(unreachable("connect to", &e)),
            Err(_) => failed = Some(unreachable("connect to", &"no answer within the time limit")),
        }
    }
    Err(failed.unwrap_or_else(|| unreachable("resolve", &"the name has no address")))
}

async fn refuse(io: &Io, wanted: &Wanted, (status, code): (u16, u8), text: &str) {
    match wanted.how {
        How::Connect | How::Whole(_) => answer(io, status, text).await,
        // A client that is gone needs no answer.
        How::Socks => drop(io.write(&socks::reply(code)).await),
    }
}

async fn answer(io: &Io, status: u16, text: &str) {
    // Of an answer to CONNECT most programs, and a machine's agent, show no more than the head: it is there as well.
    let line = text.replace(char::is_control, " ");
    let head = format!(
        "HTTP/1.1 {status} {}\r\nx-reason: {line}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n{text}\n",
        reason(status),
        text.len() + 1
    );
    // A client that is gone needs no answer.
    if io.write(head.as_bytes()).await.is_ok() {
        let _ = io.shutdown().await;
    }
}
