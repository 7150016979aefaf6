//! A request from its head to the end of its answer, whatever it takes: bodies that rules look at, and upstreams of
//! any version.

use std::rc::Rc;
use std::time::Duration;

use shipote_rules::{HeaderEdit, Response, Terminator, TimeLimits};

use super::auth;
use super::exchange::{self, Way, deliver};
use super::reply::Reply;
use super::{Body, Client, Source, websocket};
use crate::cgi;
use crate::http1::Refusal;
use crate::http1::exchange::{Ended, broken_body};
use crate::http1::head::{Known, nominated};
use crate::http1::request::RequestHead;
use crate::io::Slot;
use crate::plan::Plan;
use crate::plugin::{Called, request_apart};
use crate::walk::{Edits, Held, Need, Peer, Resume, Verdict, response_edits, route};
use crate::worker::Worker;

/// How often programs may redirect a request.
const HOPS: u32 = 5;
/// How long a call that fetches may take: longer than any policy should let it.
const APART: Duration = Duration::from_secs(300);

/// A request, its head as the text of HTTP/1.1 whichever version it came in.
pub(crate) struct Request<'a, 'p> {
    pub(crate) worker: &'a Worker,
    pub(crate) plan: &'p Plan,
    pub(crate) peer: &'a Peer,
    pub(crate) head: &'a RequestHead,
    pub(crate) bytes: &'a [u8],
    pub(crate) slot: &'a Rc<Slot>,
}

impl Request<'_, '_> {
    /// The client takes trailers, as gRPC needs.
    pub(crate) fn wants_trailers(&self) -> bool {
        self.head.lines.values(self.bytes, b"te").any(|v| v.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    }

    /// The same place by HTTPS.
    fn location(&self, port: Option<u16>) -> Option<String> {
        self.head.location(self.bytes, port)
    }
}

/// How it ended, and the rule that took it.
pub(crate) struct Outcome<'p> {
    pub(crate) ended: Ended,
    pub(crate) rule: &'p str,
}

/// Goes on from `verdict` to the end. A refusal is answered here.
pub(crate) async fn run<'p>(
    request: &Request<'_, 'p>,
    verdict: Verdict<'p>,
    edits: &mut Edits<'p>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Outcome<'p> {
    let mut outcome = once(request, verdict, edits, body, client).await;
    let mut hops = 0;
    // A program may answer with what another path would be answered with (RFC 3875, section 6.2.2).
    while let Some(target) = outcome.ended.elsewhere.take() {
        hops += 1;
        let elsewhere = match elsewhere(request, &target) {
            _ if hops > HOPS => Err(Refusal { status: 502, reason: "programs of the rules redirect without end" }),
            // What is left of its body would be taken for the next request.
            _ if !body.is_read() => {
                Err(Refusal { status: 502, reason: "the program redirects a request that it did not read" })
            }
            found => found,
        };
        let (head, bytes) = match elsewhere {
            Ok(found) => found,
            Err(refusal) => {
                let ended = own(request, Ended::fault(refusal.status, &refusal), body, client).await;
                return Outcome { ended, ..outcome };
            }
        };
        let Request { worker, plan, peer, slot, .. } = *request;
        let again = Request { head: &head, bytes: &bytes, worker, plan, peer, slot };
        let mut edits = Edits::default();
        let verdict = route(plan, peer, &head, &bytes, &mut edits, &worker.plugins, None);
        outcome = once(&again, verdict, &mut edits, &mut Body::new(Source::Empty), client).await;
    }
    outcome
}

/// The request as it would be for another path: a `GET` (or `HEAD`) with the same headers, but those of its body.
fn elsewhere(request: &Request<'_, '_>, target: &str) -> Result<(RequestHead, Vec<u8>), Refusal> {
    let method: &[u8] = if request.head.facts.is_head { b"HEAD " } else { b"GET " };
    let mut bytes = Vec::with_capacity(request.bytes.len() + target.len());
    for part in [method, target.as_bytes(), b" HTTP/1.1\r\n"] {
        bytes.extend_from_slice(part);
    }
    for (known, name, value) in request.head.lines.iter(request.bytes) {
        let kept = matches!(known, Known::Other | Known::Host | Known::ForwardedFor | Known::RealIp | Known::Date);
        let of_body = name.get(..8).is_some_and(|n| n.eq_ignore_ascii_case(b"content-"));
        let of_hop = request.head.facts.nominates && nominated(&request.head.lines, request.bytes, name);
        if kept && !of_body && !of_hop {
            for part in [name, b": ", value, b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
    }
    bytes.extend_from_slice(b"\r\n");
    let mut head = RequestHead::default();
    match head.parse(&bytes) {
        Ok(true) => Ok((head, bytes)),
        _ => Err(Refusal { status: 502, reason: "the program redirects to what is no path" }),
    }
}

async fn once<'p>(
    request: &Request<'_, 'p>,
    mut verdict: Verdict<'p>,
    edits: &mut Edits<'p>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Outcome<'p> {
    let mut held: Option<Held> = None;
    loop {
        let (need, at) = match verdict {
            Verdict::Pause { need, at } => (need, at),
            decided => return finish(request, decided, edits, body, client).await,
        };
        let mut called = None;
        match need {
            Need::Body { limit, whole } => {
                request.slot.set(request.worker.settings.body_time);
                let complete = match body.hold(limit).await {
                    Ok(complete) => complete,
                    Err(e) => {
                        let ended = broken_body(&e, false);
                        let ended = if ended.refuse { own(request, ended, body, client).await } else { ended };
                        return Outcome { ended, rule: "" };
                    }
                };
                if whole && !complete {
                    let ended = Ended::refuse(413, &"the body is larger than what rules may hold in memory");
                    return Outcome { ended: own(request, ended, body, client).await, rule: "" };
                }
                let (bytes, truncated) = body.view(usize::try_from(limit).unwrap_or(usize::MAX));
                held = Some(Held { bytes, truncated, limit });
            }
            Need::Auth { middleware } => {
                let (answer, given) = auth::ask(request, middleware).await;
                edits.given.extend(given);
                called = Some(answer);
            }
            Need::Call { turn, inputs } => {
                request.slot.set(APART);
                let call = tokio::task::spawn_blocking(move || request_apart(turn.turn(), inputs));
                called = Some(call.await.unwrap_or_else(|e| Called::Failed(format!("the call broke off: {e}"))));
            }
        }
        let Request { plan, peer, head, bytes, worker, .. } = request;
        verdict =
            route(plan, peer, head, bytes, edits, &worker.plugins, Some(Resume { at, held: held.as_ref(), called }));
    }
}

async fn finish<'p>(
    request: &Request<'_, 'p>,
    verdict: Verdict<'p>,
    edits: &Edits<'p>,
    body: &mut Body<'_>,
    client: &mut Client<'_>,
) -> Outcome<'p> {
    match verdict {
        Verdict::Close { rule } => {
            Outcome { ended: Ended { error: Some("refused by the rule".into()), ..Ended::default() }, rule }
        }
        Verdict::Answer { response, rule, limited } => {
            if limited {
                request.worker.figures.limited.add(1);
            }
            Outcome { ended: answer(request, response, &[], body, client).await, rule }
        }
        Verdict::Made { response, rule, error } => {
            let mut ended = answer(request, &response, &[], body, client).await;
            ended.error = ended.error.or(error);
            Outcome { ended, rule }
        }
        Verdict::Take { terminator, response } => {
            let entry = request.plan.graph.terminator(terminator);
            let rule = entry.rule.as_str();
            let ended = match &entry.terminator {
                Terminator::HttpProxy(spec) => {
                    let way = Way { spec, terminator, response };
                    let ended = if !client.wants_tunnel() {
                        exchange::pass(request, &way, edits, body, client).await
                    } else if request.head.facts.websocket && request.plan.takes_websocket(terminator) {
                        websocket::pass(request, &way, edits, body, client).await
                    } else {
                        Ended::refuse(501, &"the rule passes no WebSocket on")
                    };
                    if ended.refuse { own(request, ended, body, client).await } else { ended }
                }
                Terminator::Static(fixed) => {
                    let content = if request.head.facts.is_head { Vec::new() } else { fixed.body.clone() };
                    let source =
                        if content.is_empty() { super::Source::Empty } else { super::Source::Whole(content.into()) };
                    let way = (response, TimeLimits::default().idle);
                    let ended = deliver(request, way, edits, Reply::own(fixed), source, client, body.is_read()).await;
                    Ended { unread: !body.is_read(), ..ended }
                }
                Terminator::RedirectHttps(spec) => {
                    let edits = response_edits(request.plan, response);
                    let made = match request.location(spec.port) {
                        Some(to) => Response { headers: vec![("location".into(), to)], ..Response::empty(spec.status) },
                        None => Response { body: b"no host to redirect to\n".to_vec(), ..Response::empty(400) },
                    };
                    answer(request, &made, &edits, body, client).await
                }
                Terminator::Cgi(spec) => match &request.plan.runs[terminator.index()] {
                    _ if client.wants_tunnel() => {
                        let ended = Ended::refuse(501, &"the rule passes no WebSocket on");
                        own(request, ended, body, client).await
                    }
                    // Linking counts the runs of every program.
                    None => Ended::default(),
                    Some(places) => {
                        let way = cgi::Way { spec, rule, places, response };
                        // Kept apart: other requests must not carry the room that this takes.
                        let ended = Box::pin(cgi::pass(request, &way, edits, body, client)).await;
                        if ended.refuse { own(request, ended, body, client).await } else { ended }
                    }
                },
                // Forwards of bytes are taken before a request is read, so only a reload leads here.
                _ => Ended::default(),
            };
            Outcome { ended, rule }
        }
        Verdict::Pause { .. } => Outcome { ended: Ended::default(), rule: "" },
    }
}

/// The proxy's own answer in place of one that the upstream did not give.
async fn own(request: &Request<'_, '_>, ended: Ended, body: &mut Body<'_>, client: &mut Client<'_>) -> Ended {
    let body_text = ended.own_body();
    let sent = answer(request, &Response { body: body_text, ..Response::empty(ended.status) }, &[], body, client).await;
    Ended { refuse: false, bytes_out: sent.bytes_out, reusable: sent.reusable, unread: sent.unread, ..ended }
}

async fn answer(
    request: &Request<'_, '_>,
    response: &Response,
    edits: &[&HeaderEdit],
    body: &Body<'_>,
    client: &mut Client<'_>,
) -> Ended {
    request.slot.set(TimeLimits::default().idle.min(request.worker.settings.body_time));
    let mut reply = Reply::own(response);
    reply.edit(edits);
    let content = if request.head.facts.is_head || reply.length.is_none() { Vec::new() } else { response.body.clone() };
    let source = if content.is_empty() { super::Source::Empty } else { super::Source::Whole(content.into()) };
    let mut content = Body::new(source);
    let mut ended = exchange::send_reply(request, reply, &mut content, client, body.is_read(), None).await;
    ended.unread = !body.is_read();
    ended
}
