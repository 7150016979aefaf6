//! One request to an upstream and its response back.
//!
//! A request that is wholly in the buffer (the usual one) is written with one call, and can be written again to
//! another connection if a used one turns out to be closed. A longer body is streamed while the response is already
//! being waited for, because an upstream may answer before it read all of it.

use std::cell::Cell;
use std::fmt::Display;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use shipote_rules::{HeaderEdit, NodeId, ProxySpec, TerminatorId};

use super::body::{BodyError, Coding, Relayed, SourceError, relay};
use super::compose::{self, Outgoing};
use super::request::RequestHead;
use super::response::ResponseHead;
use super::{Framing, Refusal};
use crate::http::acquire::{self, Link, Want};
use crate::io::{Buf, Io, IoError, after_others};
use crate::plan::Plan;
use crate::tunnel::{Passed, tunnel};
use crate::upstream::{Key, Target, Used};
use crate::walk::{Edits, Peer, response_edits};
use crate::worker::Worker;

/// A request on its way.
pub(crate) struct Ask<'a> {
    pub(crate) worker: &'a Worker,
    pub(crate) plan: &'a Plan,
    pub(crate) peer: &'a Peer,
    pub(crate) client: &'a Io,
    pub(crate) head: &'a RequestHead,
    pub(crate) terminator: TerminatorId,
    pub(crate) response: Option<NodeId>,
    pub(crate) spec: &'a ProxySpec,
    /// What a consistent hash is taken of, where it is not the address.
    pub(crate) key: Option<Vec<u8>>,
}

/// How it ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// The status that the client got, or is yet to get if `refuse`.
    pub(crate) status: u16,
    /// Nothing was sent to the client yet: it gets an answer of the proxy's own.
    pub(crate) refuse: bool,
    /// The client's connection can carry another request.
    pub(crate) reusable: bool,
    /// The request was not read to its end.
    pub(crate) unread: bool,
    /// The answer of an upstream was not read to its end: its connection carries the rest of it.
    pub(crate) abandoned: bool,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) upstream: Option<Arc<Target>>,
    /// What another path would have been answered with is the answer; nothing was sent yet.
    pub(crate) elsewhere: Option<String>,
    pub(crate) error: Option<String>,
    /// What the client is told beside the status. Never where an upstream is, nor what it said: `error` is for those who
    /// run the proxy.
    pub(crate) told: Option<String>,
}

impl Ended {
    /// The body of the proxy's own answer.
    pub(crate) fn own_body(&self) -> Vec<u8> {
        let told = self.told.as_deref().unwrap_or("");
        let end = if told.is_empty() { "" } else { "\n" };
        format!("{} {}\n{told}{end}", self.status, super::compose::reason(self.status)).into_bytes()
    }

    pub(crate) fn refuse(status: u16, error: &dyn Display) -> Self {
        Self { status, refuse: true, error: Some(error.to_string()), ..Self::default() }
    }

    /// An answer that an upstream owes; `told` is what the client hears of `error`.
    pub(crate) fn owed(status: u16, error: &dyn Display, told: &str) -> Self {
        Self { told: Some(told.to_owned()), ..Self::refuse(status, error) }
    }

    /// The same for a reason that anybody may hear.
    pub(crate) fn fault(status: u16, error: &dyn Display) -> Self {
        Self { told: Some(error.to_string()), ..Self::refuse(status, error) }
    }

    pub(crate) fn broken(status: u16, error: &dyn Display) -> Self {
        Self { status, error: Some(error.to_string()), ..Self::default() }
    }
}

/// Counts a request as open at its upstream for as long as it lives.
pub(crate) struct InFlight<'t>(&'t Target);

impl<'t> InFlight<'t> {
    pub(crate) fn new(target: &'t Target) -> Self {
        target.open.fetch_add(1, Relaxed);
        target.total.fetch_add(1, Relaxed);
        Self(target)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// A connection to an upstream that carries this request.
struct Line {
    io: Io,
    target: Arc<Target>,
    /// How many requests it carried before this one.
    served: u32,
}

impl Line {
    fn reused(&self) -> bool {
        self.served > 0
    }
}

/// How long the head of a request waits for its body, and that of an answer for the beginning of its body.
const PARTS_WAIT: Duration = Duration::from_millis(5);
/// What clients are told of an upstream that took longer than it may.
pub(crate) const LATE: &str = "the upstream did not answer within the time limit";
/// What clients are told of a connection to an upstream that failed.
pub(crate) const BROKEN: &str = "the connection to the upstream broke before its answer";

#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("send the request: {0}")]
    Send(IoError),
    #[error("the upstream closed the connection without an answer")]
    Nothing,
    #[error("the upstream closed the connection inside the head of its answer")]
    Short,
    #[error("read the answer: {0}")]
    Io(IoError),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl HeadError {
    pub(crate) fn ended(&self) -> Ended {
        match self {
            Self::Io(IoError::TimedOut) | Self::Send(IoError::TimedOut) => Ended::owed(504, self, LATE),
            Self::Io(_) | Self::Send(_) => Ended::owed(502, self, BROKEN),
            Self::Nothing | Self::Short | Self::Refused(_) => Ended::fault(502, self),
        }
    }

    /// A connection that was closed while it was idle looks like this.
    pub(crate) fn stale(&self) -> bool {
        match self {
            Self::Nothing | Self::Send(IoError::System(_)) => true,
            Self::Io(IoError::System(e)) => e.kind() == std::io::ErrorKind::ConnectionReset,
            _ => false,
        }
    }
}

/// Sends the request whose head begins `buf` to an upstream, and the response to the client.
pub(crate) async fn proxy(ask: &Ask<'_>, buf: &mut Buf, edits: &Edits<'_>) -> Ended {
    let facts = ask.head.facts;
    let websocket = facts.websocket && ask.spec.websocket;
    let mut out = ask.worker.pool.text();
    compose::request(&mut out, ask.head, buf.filled(), edits, ask.peer, ask.spec.host.as_deref(), websocket);
    buf.consume(ask.head.lines.length);
    if let Framing::Length(n) = facts.framing
        && (buf.len() as u64 + 1..=buf.size() as u64).contains(&n)
        && !facts.expects_continue
    {
        // Many clients send head and body with two calls. A request that is whole takes a connection that is there already,
        // and can be sent again.
        ask.client.slot().set(ask.worker.settings.body_time);
        ask.client.fill_soon(buf, n as usize, PARTS_WAIT).await;
    }
    let ended = match facts.framing {
        Framing::Empty => whole(ask, buf, 0, &mut out, websocket).await,
        Framing::Length(n) if n <= buf.len() as u64 => whole(ask, buf, n as usize, &mut out, false).await,
        _ => streamed(ask, buf, &mut out).await,
    };
    ask.worker.pool.give_text(out);
    if let (Some(target), passive @ Some(_)) = (&ended.upstream, &ask.spec.care.passive) {
        target.outcome(!matches!(ended.status, 502..=504), passive.as_ref());
    }
    ended
}

/// A request of which `body` bytes in `buf` are all that is missing after `out`.
async fn whole(ask: &Ask<'_>, buf: &mut Buf, body: usize, out: &mut Vec<u8>, websocket: bool) -> Ended {
    let facts = ask.head.facts;
    let mut fresh = false;
    let mut head = ask.worker.take_response_head();
    let mut answer = ask.worker.pool.body();
    // Before a connection is taken: what was found open is to be written to at once.
    after_others().await;
    let ended = loop {
        let link = match acquire(ask, facts.idempotent, fresh || websocket).await {
            Ok(link) => link,
            Err(ended) => break ended,
        };
        let _open = InFlight::new(&link.target);
        ask.client.slot().set(ask.spec.limits.response);
        let got = match link.io.write_all([out, &buf.filled()[..body], b""]).await {
            Ok(()) => read_head(&link.io, &mut answer, &mut head, facts.is_head).await,
            Err(e) => Err(HeadError::Send(e)),
        };
        match got {
            Ok(()) => {}
            Err(e) if link.reused() && facts.idempotent && e.stale() => {
                ask.worker.figures.retries.add(1);
                fresh = true;
                let all = answer.len();
                answer.consume(all);
                continue;
            }
            Err(e) => break Ended { upstream: Some(Arc::clone(&link.target)), ..e.ended() },
        }
        buf.consume(body);
        out.clear();
        let mut ended = if websocket && head.status == 101 {
            switch(ask, &link.io, buf, &mut answer, &head, out).await
        } else {
            respond(ask, link.io, (&link.target, link.served), &mut answer, &head, out).await
        };
        ended.bytes_in += body as u64;
        ended.upstream = Some(link.target.clone());
        break ended;
    };
    ask.worker.pool.give(answer);
    ask.worker.give_response_head(head);
    ended
}

/// A request whose body goes on after what is in `buf`.
async fn streamed(ask: &Ask<'_>, buf: &mut Buf, out: &mut Vec<u8>) -> Ended {
    let facts = ask.head.facts;
    // What was read from the client cannot be read again, so the connection must be good: a new one.
    let link = match acquire(ask, false, true).await {
        Ok(link) => link,
        Err(ended) => return ended,
    };
    let _open = InFlight::new(&link.target);
    let slot = ask.client.slot();
    slot.set(ask.worker.settings.body_time);
    if facts.expects_continue
        && buf.is_empty()
        && let Err(e) = ask.client.write(b"HTTP/1.1 100 Continue\r\n\r\n").await
    {
        return Ended::broken(0, &e);
    }
    let coding = if facts.framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
    let mut head = ask.worker.take_response_head();
    let mut answer = ask.worker.pool.body();
    let mut back = ask.worker.pool.text();
    let (started, sent) = (Cell::new(false), Cell::new(false));
    let up = &link.io;
    let mut received = 0;
    let mut ended = {
        let mut sending = pin!(relay(ask.client, buf, facts.framing, up, out, coding));
        let mut receiving = pin!(async {
            read_head(up, &mut answer, &mut head, facts.is_head).await.map_err(|e| e.ended())?;
            started.set(true);
            Ok::<_, Ended>(relay_back(ask, up, &mut answer, &head, &mut back, &|| sent.get()).await)
        });
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                result = &mut sending, if open => {
                    open = false;
                    match result {
                        Ok(Relayed { bytes }) => {
                            received = bytes;
                            sent.set(true);
                            if !started.get() {
                                slot.set(ask.spec.limits.response);
                            }
                        }
                        Err(BodyError::Sink(_)) => {} // It may have answered before it closed.
                        Err(BodyError::Source(e)) => break broken_body(&e, started.get()),
                    }
                }
                result = &mut receiving => break match result {
                    Ok((ended, _)) => ended,
                    Err(mut ended) => {
                        if ended.status == 504 && open {
                            (ended.status, ended.told) = (408, None);
                        }
                        ended
                    }
                },
            }
        }
    };
    let clean = sent.get() && !ended.refuse && ended.error.is_none() && head.keep_alive && answer.is_empty();
    ended.reusable &= sent.get();
    ended.bytes_in = received;
    if clean {
        let used = Used { stream: link.io.into_stream(), served: link.served + 1 };
        ask.worker.pools.give(&link.target, used);
    }
    ended.upstream = Some(Arc::clone(&link.target));
    ask.worker.pool.give(answer);
    ask.worker.pool.give_text(back);
    ask.worker.give_response_head(head);
    ended
}

pub(crate) fn broken_body(error: &SourceError, started: bool) -> Ended {
    let status = match error {
        SourceError::Refused(refusal) => refusal.status,
        SourceError::Io(IoError::TimedOut) => 408,
        SourceError::Short | SourceError::Io(_) => 0,
    };
    if started || status == 0 { Ended::broken(status, &error) } else { Ended::refuse(status, &error) }
}

/// A connection of HTTP/1.1 to one of the rule's upstreams.
async fn acquire(ask: &Ask<'_>, repeatable: bool, fresh: bool) -> Result<Line, Ended> {
    let Ask { worker, plan, spec, terminator, .. } = *ask;
    let key = ask.key.as_deref().map_or(Key::Address(ask.peer.remote.ip()), Key::Bytes);
    let slot = &ask.client.share_slot();
    let want = Want { worker, plan, spec, terminator, slot, key, avoid: &[], repeatable, fresh, only_one: true };
    match acquire::acquire(&want).await? {
        Link::One { io, target, served } => Ok(Line { io, target, served }),
        Link::Two { .. } | Link::Three { .. } => Err(Ended::fault(502, &"the upstream does not speak HTTP/1.1")),
    }
}

/// Reads the head of the final response; interim ones are dropped, save for a switch of protocols.
pub(crate) async fn read_head(up: &Io, buf: &mut Buf, head: &mut ResponseHead, to_head: bool) -> Result<(), HeadError> {
    let mut interim = 0;
    loop {
        if !buf.is_empty() && head.parse(buf.filled(), to_head)? {
            if head.status == 101 || head.status >= 200 {
                return Ok(());
            }
            interim += 1;
            if interim > 16 {
                return Err(Refusal { status: 502, reason: "the upstream sent interim answers without end" }.into());
            }
            buf.consume(head.lines.length);
            continue;
        }
        if buf.spare().is_empty() {
            return Err(Refusal { status: 502, reason: "the head of the upstream's answer is too large" }.into());
        }
        match up.fill(buf).await {
            Ok(0) if buf.is_empty() => return Err(HeadError::Nothing),
            Ok(0) => return Err(HeadError::Short),
            Ok(_) => {}
            Err(e) => return Err(HeadError::Io(e)),
        }
    }
}

/// Passes the response on and keeps the connection if it is good for another request.
async fn respond(
    ask: &Ask<'_>,
    up: Io,
    (target, served): (&Target, u32),
    buf: &mut Buf,
    head: &ResponseHead,
    out: &mut Vec<u8>,
) -> Ended {
    let (ended, whole) = relay_back(ask, &up, buf, head, out, &|| true).await;
    if whole && head.keep_alive && buf.is_empty() {
        ask.worker.pools.give(target, Used { stream: up.into_stream(), served: served.saturating_add(1) });
    }
    ended
}

/// Passes the response in `buf` on; whether all of it went through.
async fn relay_back(
    ask: &Ask<'_>,
    up: &Io,
    buf: &mut Buf,
    head: &ResponseHead,
    out: &mut Vec<u8>,
    sent: &dyn Fn() -> bool,
) -> (Ended, bool) {
    let facts = ask.head.facts;
    if head.status == 101 {
        return (Ended::fault(502, &"the upstream switches protocols unasked"), false);
    }
    let incoming = head.framing.unwrap_or(Framing::Empty);
    let framing = match incoming {
        Framing::Chunked | Framing::UntilClose if facts.one_one => Framing::Chunked,
        Framing::Chunked | Framing::UntilClose => Framing::UntilClose,
        other => other,
    };
    let keep_alive = facts.keep_alive && sent() && framing != Framing::UntilClose && !ask.worker.shared.draining();
    let outgoing = Outgoing { framing, keep_alive, one_one: facts.one_one, websocket: false };
    let edits: Vec<&HeaderEdit> = response_edits(ask.plan, ask.response);
    compose::response(out, head, buf.filled(), &edits, outgoing);
    buf.consume(head.lines.length);
    ask.client.slot().set(ask.spec.limits.idle);
    if incoming != Framing::Empty && buf.is_empty() {
        // Many servers send head and body with two calls, which need not be two for the client as well.
        up.fill_soon(buf, 1, PARTS_WAIT).await;
    }
    let coding = if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
    after_others().await;
    match relay(up, buf, incoming, ask.client, out, coding).await {
        Ok(Relayed { bytes }) => {
            (Ended { status: head.status, reusable: keep_alive, bytes_out: bytes, ..Ended::default() }, true)
        }
        Err(e) => (Ended::broken(head.status, &e), false),
    }
}

/// After a 101: bytes both ways.
async fn switch(
    ask: &Ask<'_>,
    up: &Io,
    early_up: &mut Buf,
    early_down: &mut Buf,
    head: &ResponseHead,
    out: &mut Vec<u8>,
) -> Ended {
    let outgoing = Outgoing { framing: Framing::Empty, keep_alive: true, one_one: true, websocket: true };
    let edits = response_edits(ask.plan, ask.response);
    compose::response(out, head, early_down.filled(), &edits, outgoing);
    early_down.consume(head.lines.length);
    ask.client.slot().set(ask.spec.limits.idle);
    let passed = Cell::new(Passed::default());
    let result = match ask.client.write(out).await {
        Ok(()) => tunnel(ask.client, up, early_up, early_down, &passed).await,
        Err(e) => Err(e),
    };
    let Passed { up: bytes_in, down: bytes_out } = passed.get();
    Ended { status: 101, bytes_in, bytes_out, error: result.err().map(|e| e.to_string()), ..Ended::default() }
}
