//! One request to an upstream and its answer back, of any version on either side.
//!
//! The body goes up while the answer is already waited for: an upstream may answer before it read all of it, and in
//! calls of gRPC both go on together. A request is sent a second time only if nothing of it can have been acted upon
//! (the upstream says so, or it may be repeated and the connection was one that had been idle) and all of it is still
//! in memory.

use std::cell::Cell;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h3::error::{Code, StreamError};
use shipote_rules::{NodeId, OnError, ProxySpec, Response, TerminatorId};

use super::acquire::{Link, Want, acquire, key};
use super::body::within;
use super::client::Begun;
use super::compress::{self, Encoder};
use super::general::Request;
use super::multiplexed::TOOK_BACK;
use super::reply::Reply;
use super::sink::{Sink, relay};
use super::{Body, Client, Source};
use crate::http1::body::{BodyError, Coding};
use crate::http1::compose;
use crate::http1::exchange::{BROKEN, Ended, InFlight, LATE, broken_body, read_head};
use crate::http1::{Framing, Refusal};
use crate::http2;
use crate::http3::{
    self,
    stream::{Receiving, Sending},
};
use crate::io::{Io, IoError};
use crate::plugin::{self, Answered};
use crate::upstream::{Multiplexed, Requests, Target, Used};
use crate::walk::{After, Edits, compression, response_edits};

/// A body of known length up to this is read before an upstream is chosen, so that the request can go on a connection
/// that is there and can be repeated.
const SMALL: u64 = 64 << 10;

/// Where a request goes.
pub(crate) struct Way<'p> {
    pub(crate) spec: &'p ProxySpec,
    pub(crate) terminator: TerminatorId,
    pub(crate) response: Option<NodeId>,
}

impl Way<'_> {
    /// The request as HTTP/1.1 has it; with `upgrade`, one that asks to switch protocols.
    pub(crate) fn text(&self, request: &Request<'_, '_>, edits: &Edits<'_>, upgrade: bool) -> Vec<u8> {
        let Request { head, bytes, peer, .. } = *request;
        let mut text = Vec::with_capacity(1024);
        compose::request(&mut text, head, bytes, edits, peer, self.spec.host.as_deref(), upgrade);
        text
    }

    /// Any connection to any upstream of this way, for a request that must not be sent twice.
    pub(crate) fn want<'a>(&'a self, request: &'a Request<'_, '_>) -> Want<'a> {
        Want {
            worker: request.worker,
            plan: request.plan,
            spec: self.spec,
            terminator: self.terminator,
            slot: request.slot,
            key: key(self.spec, request.peer, request.head, request.bytes),
            avoid: &[],
            repeatable: false,
            fresh: false,
            only_one: false,
        }
    }
}

/// An attempt that came to nothing.
pub(crate) enum Failed {
    /// Nothing was done: it can be made again whatever the request is.
    Again(Ended),
    /// The upstream failed: another one can be asked if the request may be repeated.
    Elsewhere(Ended),
    For(Ended),
}

impl Failed {
    /// How it ended, where nothing is tried again.
    pub(crate) fn ended(self) -> Ended {
        match self {
            Self::Again(ended) | Self::Elsewhere(ended) | Self::For(ended) => ended,
        }
    }
}

/// Sends the request to an upstream, and the answer to the client.
pub(crate) async fn pass(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Ended {
    let facts = request.head.facts;
    let text = way.text(request, edits, false);
    if let Framing::Length(n) = facts.framing
        && n <= SMALL
    {
        request.slot.set(request.worker.settings.body_time);
        if let Err(e) = body.hold(SMALL).await {
            return broken_body(&e, false);
        }
    }
    let mut fresh = false;
    let (mut again, mut elsewhere) = (2, if facts.idempotent { way.spec.retries } else { 0 });
    let mut avoid = Vec::new();
    loop {
        let whole = body.can_repeat();
        if avoid.len() >= request.plan.targets[way.terminator.index()].len() {
            avoid.clear();
        }
        let want = Want { avoid: &avoid, repeatable: facts.idempotent && whole, fresh, ..way.want(request) };
        let link = match client.unless_gone(acquire_for(&want, whole)).await {
            None => return taken_back(),
            Some(Err(ended)) => return ended,
            Some(Ok(link)) => link,
        };
        let target = Arc::clone(link.target());
        let _open = InFlight::new(&target);
        let limits = &way.spec.limits;
        request.slot.set(if body.is_over() { limits.response } else { request.worker.settings.body_time });
        let try_status = elsewhere > 0 && whole;
        let result = attempt(request, way, edits, link, &text, try_status, body, client).await;
        let passive = way.spec.care.passive.as_ref();
        let mut ended = match result {
            Ok(ended) | Err(Failed::For(ended)) => {
                target.outcome(!matches!(ended.status, 502..=504), passive);
                ended
            }
            Err(Failed::Again(_)) if again > 0 && body.is_held() => {
                request.worker.figures.retries.add(1);
                body.repeat();
                again -= 1;
                fresh = true;
                continue;
            }
            Err(Failed::Elsewhere(_)) if elsewhere > 0 && body.is_held() => {
                request.worker.figures.retries.add(1);
                target.outcome(false, passive);
                body.repeat();
                elsewhere -= 1;
                avoid.push(target.id);
                continue;
            }
            Err(Failed::Again(ended) | Failed::Elsewhere(ended)) => {
                target.outcome(false, passive);
                ended
            }
        };
        ended.bytes_in = body.bytes;
        ended.upstream = Some(Arc::clone(&target));
        return ended;
    }
}

/// A body that is read as it goes cannot be read again, so over HTTP/1.1 it gets a connection that must be good.
async fn acquire_for(want: &Want<'_>, whole: bool) -> Result<Link, Ended> {
    if whole {
        return acquire(want).await;
    }
    match acquire(want).await? {
        Link::One { served: 1.., .. } => acquire(&Want { fresh: true, ..*want }).await,
        Link::Two { place, .. } if place.served > 0 && !place.is_good().await => acquire(want).await,
        Link::Three { place, .. } if place.served > 0 && !place.is_good().await => acquire(want).await,
        good => Ok(good),
    }
}

pub(crate) fn taken_back() -> Ended {
    Ended::broken(0, &TOOK_BACK)
}

#[allow(clippy::too_many_arguments, reason = "one step of an exchange needs what the exchange needs")]
async fn attempt(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    link: Link,
    text: &[u8],
    try_status: bool,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Result<Ended, Failed> {
    match link {
        Link::One { io, target, served } => {
            one(request, way, edits, (io, &target, served), text, try_status, body, client).await
        }
        Link::Two { place, target } => {
            let scheme = if target.secure().is_some() { "https" } else { "http" };
            let asked = http2::head::request(text, scheme, request.wants_trailers()).map_err(refused)?;
            two(request, way, edits, place, asked, try_status, body, client).await
        }
        Link::Three { place, .. } => {
            let asked = http2::head::request(text, "https", request.wants_trailers()).map_err(refused)?;
            three(request, way, edits, place, asked, try_status, body, client).await
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one step of an exchange needs what the exchange needs")]
async fn one(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    (io, target, served): (Io, &Target, u32),
    text: &[u8],
    try_status: bool,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Result<Ended, Failed> {
    let facts = request.head.facts;
    let worker = request.worker;
    let mut head = worker.take_response_head();
    let mut answer = worker.pool.body();
    let coding = if facts.framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain };
    let progress = Progress::default();
    let result = {
        let mut sink = Sink::One { io: &io, coding, before: text.to_vec() };
        let sending = send_body(body, &mut sink);
        let receiving = async {
            match client.unless_gone(read_head(&io, &mut answer, &mut head, facts.is_head)).await {
                None => return Err(Failed::For(taken_back())),
                Some(Ok(())) => {}
                Some(Err(e)) if served > 0 && facts.idempotent && e.stale() => return Err(Failed::Again(e.ended())),
                Some(Err(e)) => return Err(Failed::Elsewhere(e.ended())),
            }
            if try_status && matches!(head.status, 502..=504) {
                return Err(Failed::Elsewhere(Ended::fault(head.status, &"the upstream said so")));
            }
            progress.started.set(true);
            if head.status == 101 {
                return Err(Failed::For(Ended::fault(502, &"the upstream switches protocols unasked")));
            }
            let reply = Reply::one(&head, answer.filled()).map_err(refused)?;
            answer.consume(head.lines.length);
            let framing = head.framing.unwrap_or(Framing::Empty);
            let source = Source::one(&io, &mut answer, framing, false);
            let phase = (way.response, way.spec.limits.idle);
            Ok(deliver(request, phase, edits, reply, source, client, progress.sent.get()).await)
        };
        both(request, way.spec.limits.response, sending, receiving, &progress).await
    };
    if let Ok(ended) = &result
        && progress.sent.get()
        && !ended.refuse
        && !ended.abandoned
        && ended.error.is_none()
        && head.keep_alive
        && answer.is_empty()
    {
        worker.pools.give(target, Used { stream: io.into_stream(), served: served.saturating_add(1) });
    }
    worker.pool.give(answer);
    worker.give_response_head(head);
    result
}

#[allow(clippy::too_many_arguments, reason = "one step of an exchange needs what the exchange needs")]
async fn two(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    mut place: Multiplexed<SendRequest<Bytes>>,
    asked: http::Request<()>,
    try_status: bool,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Result<Ended, Failed> {
    let again = |e: h2::Error| Failed::Again(Ended::owed(502, &format_args!("send the request: {e}"), BROKEN));
    match within(request.slot, std::future::poll_fn(|cx| place.send.poll_ready(cx))).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => {
            place.give_up();
            return Err(again(e));
        }
        Err(e) => return Err(Failed::For(Ended::owed(504, &e, LATE))),
    }
    let (answer, stream) = place.send.send_request(asked, body.is_over()).map_err(again)?;
    let progress = Progress::default();
    let mut sink = if body.is_over() { Sink::Nothing } else { Sink::Two { stream, slot: request.slot } };
    let sending = send_body(body, &mut sink);
    let facts = request.head.facts;
    let served = place.served;
    let receiving = async {
        let answer = match client.unless_gone(within(request.slot, answer)).await {
            None => return Err(Failed::For(taken_back())),
            Some(Ok(Ok(answer))) => answer,
            Some(Err(e)) => {
                // Nothing says whether the connection still lives.
                place.give_up();
                return Err(Failed::Elsewhere(Ended::owed(504, &e, LATE)));
            }
            Some(Ok(Err(e))) => {
                let ended = Ended::owed(502, &format_args!("read the answer: {e}"), BROKEN);
                // A refused stream was not acted upon (RFC 9113, section 8.7); a connection that went away while it
                // was idle looks like an error of the connection on its first use after that.
                let untouched = e.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR));
                if e.is_io() || e.is_go_away() {
                    place.give_up();
                }
                let stale = e.is_io() && served > 0 && facts.idempotent;
                return Err(if untouched || stale { Failed::Again(ended) } else { Failed::Elsewhere(ended) });
            }
        };
        if try_status && matches!(answer.status().as_u16(), 502..=504) {
            return Err(Failed::Elsewhere(Ended::fault(answer.status().as_u16(), &"the upstream said so")));
        }
        progress.started.set(true);
        let (parts, stream) = answer.into_parts();
        let source = Source::two(stream, request.slot);
        let phase = (way.response, way.spec.limits.idle);
        Ok(deliver(request, phase, edits, Reply::two(parts), source, client, progress.sent.get()).await)
    };
    both(request, way.spec.limits.response, sending, receiving, &progress).await
}

#[allow(clippy::too_many_arguments, reason = "one step of an exchange needs what the exchange needs")]
async fn three(
    request: &Request<'_, '_>,
    way: &Way<'_>,
    edits: &Edits<'_>,
    mut place: Multiplexed<Requests>,
    asked: http::Request<()>,
    try_status: bool,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Result<Ended, Failed> {
    let facts = request.head.facts;
    let served = place.served;
    let stream = match within(request.slot, place.send.send_request(asked)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            place.give_up();
            return Err(Failed::Again(Ended::owed(502, &format_args!("send the request: {e}"), BROKEN)));
        }
        Err(e) => {
            place.give_up();
            return Err(Failed::For(Ended::owed(504, &e, LATE)));
        }
    };
    let (send, mut answer) = stream.split();
    let progress = Progress::default();
    let mut sink = Sink::Three { sending: Box::new(Sending::Request(send)), head: None, slot: request.slot };
    let sending = send_body(body, &mut sink);
    let receiving = async {
        let response = loop {
            match client.unless_gone(within(request.slot, answer.recv_response())).await {
                None => return Err(Failed::For(taken_back())),
                Some(Ok(Ok(interim))) if interim.status().is_informational() => {}
                Some(Ok(Ok(response))) => break response,
                Some(Err(e)) => {
                    // Nothing says whether the connection still lives.
                    place.give_up();
                    return Err(Failed::Elsewhere(Ended::owed(504, &e, LATE)));
                }
                Some(Ok(Err(e))) => {
                    let ended = Ended::owed(502, &format_args!("read the answer: {e}"), BROKEN);
                    // A rejected request was not acted upon (RFC 9114, section 4.1.1).
                    let rejected = matches!(e, StreamError::RemoteTerminate { code: Code::H3_REQUEST_REJECTED, .. });
                    let lost = matches!(e, StreamError::ConnectionError { .. } | StreamError::RemoteClosing { .. });
                    if lost {
                        place.give_up();
                    }
                    let stale = lost && served > 0 && facts.idempotent;
                    return Err(if rejected || stale { Failed::Again(ended) } else { Failed::Elsewhere(ended) });
                }
            }
        };
        if try_status && matches!(response.status().as_u16(), 502..=504) {
            return Err(Failed::Elsewhere(Ended::fault(response.status().as_u16(), &"the upstream said so")));
        }
        progress.started.set(true);
        let (parts, ()) = response.into_parts();
        let wrong = |e: Refusal| refused(Refusal { status: 502, ..e });
        http3::head::check(&parts.headers).map_err(wrong)?;
        let declared = http3::head::length(&parts.headers).map_err(wrong)?;
        let bodiless = facts.is_head || matches!(parts.status.as_u16(), 204 | 304);
        let source = if bodiless {
            Source::Empty
        } else {
            Source::three(Receiving::Answer(answer), request.slot, declared, None)
        };
        let phase = (way.response, way.spec.limits.idle);
        Ok(deliver(request, phase, edits, Reply::two(parts), source, client, progress.sent.get()).await)
    };
    both(request, way.spec.limits.response, sending, receiving, &progress).await
}

fn refused(refusal: Refusal) -> Failed {
    Failed::For(match refusal.status {
        502 => Ended::fault(502, &refusal),
        status => Ended::refuse(status, &refusal),
    })
}

/// What the two directions know of each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The request is out.
    pub(crate) sent: Cell<bool>,
    /// The answer has begun.
    pub(crate) started: Cell<bool>,
}

pub(crate) async fn send_body(body: &mut Body<'_>, sink: &mut Sink<'_>) -> Result<(), BodyError> {
    let result = relay(body, sink, None).await;
    if matches!(result, Err(BodyError::Source(_))) {
        sink.tear();
    }
    result.map(|_| ())
}

/// Both directions together, until the answer is through or the client breaks off. `wait` is how long the answer may take to
/// begin once the request is out.
pub(crate) async fn both(
    request: &Request<'_, '_>,
    wait: Duration,
    sending: impl Future<Output = Result<(), BodyError>>,
    receiving: impl Future<Output = Result<Ended, Failed>>,
    progress: &Progress,
) -> Result<Ended, Failed> {
    let (mut sending, mut receiving) = (pin!(sending), pin!(receiving));
    let mut open = true;
    loop {
        tokio::select! {
            biased;
            result = &mut sending, if open => {
                open = false;
                match result {
                    Ok(()) => {
                        progress.sent.set(true);
                        if !progress.started.get() {
                            request.slot.set(wait);
                        }
                    }
                    Err(BodyError::Sink(_)) => {} // It may have answered before it closed.
                    Err(BodyError::Source(e)) => return Err(Failed::For(broken_body(&e, progress.started.get()))),
                }
            }
            result = &mut receiving => return match result {
                Err(Failed::For(mut ended) | Failed::Elsewhere(mut ended)) if ended.status == 504 && open => {
                    // It was the client that the time ran out for.
                    (ended.status, ended.told) = (408, None);
                    Err(Failed::For(ended))
                }
                other => other,
            },
        }
    }
}

/// The response phase, and the answer to the client.
pub(crate) async fn deliver(
    request: &Request<'_, '_>,
    (response, idle): (Option<NodeId>, Duration),
    edits: &Edits<'_>,
    mut reply: Reply,
    source: Source<'_>,
    client: &mut Client<'_>,
    may_keep: bool,
) -> Ended {
    request.slot.set(idle);
    let mut body = Body::new(source);
    let mut error = None;
    for after in &edits.after {
        match look(request, after, &mut reply, &mut body).await {
            Looked::On => {}
            Looked::Failed(text) => error = Some(text),
            Looked::Close(text) => return Ended::broken(0, &text),
        }
    }
    reply.edit(&response_edits(request.plan, response));
    let mut encoder = compression(request.plan, response).and_then(|wanted| {
        let takes = compress::accepted(&request.head.lines, request.bytes) && !request.head.facts.is_head;
        compress::prepare(&mut reply, wanted, takes)
    });
    let mut ended = send_reply(request, reply, &mut body, client, may_keep, encoder.as_mut()).await;
    ended.error = ended.error.or(error);
    ended.abandoned = body.abandoned;
    ended
}

/// What came of a plugin that looked at an answer.
enum Looked {
    On,
    /// The answer was replaced by what the rule says.
    Failed(String),
    Close(String),
}

/// Lets a plugin look at an answer, and does what it says.
async fn look(request: &Request<'_, '_>, after: &After<'_>, reply: &mut Reply, body: &mut Body<'_>) -> Looked {
    let turn = after.turn;
    let mut view = None;
    if let Some(limit) = turn.body(|site| site.limits.response_body) {
        if let Err(e) = body.hold(limit).await {
            let broken = Ended::fault(502, &"the upstream's answer broke off before a plugin could look at it");
            return replace(reply, body, Response { body: broken.own_body(), ..Response::empty(502) }, e.to_string());
        }
        view = Some(body.view(usize::try_from(limit).unwrap_or(usize::MAX)));
    }
    // A second one gets a copy.
    let mut input = |site: &plugin::Site| {
        let view = if turn.spare.is_none() { view.take() } else { view.clone() };
        plugin::input::response(site, request.peer, reply, view)
    };
    let answered = if turn.fetches() {
        let inputs = std::iter::once(turn.site).chain(turn.spare).map(|site| input(site)).collect();
        let turn = turn.apart();
        let call = tokio::task::spawn_blocking(move || plugin::response_apart(turn.turn(), inputs));
        call.await.unwrap_or_else(|e| Answered::Failed(format!("the call broke off: {e}")))
    } else {
        request.worker.plugins.response(turn, input)
    };
    match answered {
        Answered::On => Looked::On,
        Answered::Close => Looked::Close("closed by a plugin".to_owned()),
        Answered::Changed { status, headers, body: content } => {
            reply.status = status.unwrap_or(reply.status);
            if let Some(headers) = headers {
                reply.set_headers(&headers);
            }
            if let Some(content) = content {
                let bodiless = request.head.facts.is_head || matches!(reply.status, 204 | 304);
                reply.length = (!matches!(reply.status, 204 | 304)).then_some(content.len() as u64);
                let over = bodiless || content.is_empty();
                body.replace(if over { Source::Empty } else { Source::Whole(content.into()) });
            } else if matches!(reply.status, 204 | 304) {
                reply.length = None;
                body.replace(Source::Empty);
            }
            Looked::On
        }
        Answered::Failed(error) | Answered::Broken(error) => match after.on_error {
            Some(OnError::Close) => Looked::Close(error),
            Some(OnError::Respond(response)) => replace(reply, body, response.clone(), error),
            None => replace(reply, body, Response::empty(500), error),
        },
        Answered::Internal(error) => replace(reply, body, Response::empty(500), error),
    }
}

fn replace(reply: &mut Reply, body: &mut Body<'_>, response: Response, error: String) -> Looked {
    *reply = Reply::own(&response);
    let source = if response.body.is_empty() { Source::Empty } else { Source::Whole(response.body.into()) };
    body.replace(source);
    Looked::Failed(error)
}

/// Sends an answer to the client. `may_keep`: the request was read to its end.
pub(crate) async fn send_reply(
    request: &Request<'_, '_>,
    reply: Reply,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
    may_keep: bool,
    encoder: Option<&mut Encoder>,
) -> Ended {
    let status = reply.status;
    if request.head.facts.is_head || matches!(status, 100..=199 | 204 | 304) {
        // An upstream of HTTP/2 may send data all the same, which HTTP/1.1 would take for the next answer.
        body.replace(Source::Empty);
    }
    let may_keep = may_keep && !request.worker.shared.draining();
    let Begun { mut sink, keep_alive } = match client.begin(reply, body.is_over(), may_keep) {
        Ok(begun) => begun,
        Err(e) => return Ended::broken(status, &e),
    };
    match relay(body, &mut sink, encoder).await {
        Ok(bytes_out) => Ended { status, reusable: keep_alive, bytes_out, ..Ended::default() },
        Err(e) => {
            sink.tear();
            let ended = Ended { bytes_out: body.bytes, ..Ended::broken(status, &e) };
            if let BodyError::Sink(IoError::TimedOut) = e {
                request.worker.figures.timeouts.add(1);
            }
            ended
        }
    }
}
