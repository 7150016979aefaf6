//! A request from its head to the end of its answer, whatever it takes: bodies that rules look at, and upstreams of
//! any version.

use std::rc::Rc;
use std::time::Duration;

use shipote_rules::{HeaderEdit, Response, Terminator, TimeLimits};

use super::auth;
use super::exchange::{self, Way, deliver};
use super::reply::Reply;
use super::{Body, Client, websocket};
use crate::http1::exchange::{Ended, broken_body};
use crate::http1::request::RequestHead;
use crate::io::Slot;
use crate::plan::Plan;
use crate::plugin::{Called, request_apart};
use crate::walk::{Edits, Held, Need, Peer, Resume, Verdict, response_edits, route};
use crate::worker::Worker;

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
