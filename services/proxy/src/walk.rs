//! Walking the graph for a connection and for each of its requests.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use shipote_plugin_abi::handlers::L7RequestInput;
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_rules::{
    Field, HeaderEdit, LimitKey, Middleware, MiddlewareId, Node, NodeId, OnError, Phase, Response, TerminatorId,
    Transport, Value, View,
};

use crate::http1::request::RequestHead;
use crate::plan::Plan;
use crate::plugin::input::Texts;
use crate::plugin::{Apart, Called, Instances, Passed, Site, Turn};
use crate::rate::Key;
use crate::tls::{PeerCert, Settled};

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) id: u64,
    /// What carries its bytes.
    pub(crate) transport: Transport,
    pub(crate) remote: SocketAddr,
    /// The remote address as headers and logs carry it.
    pub(crate) remote_text: String,
    pub(crate) local: SocketAddr,
    /// The address of the listener, by which plans know it.
    pub(crate) listener: SocketAddr,
    /// The first bytes, where rules asked for them.
    pub(crate) peeked: Box<[u8]>,
    /// The server name in the first bytes.
    pub(crate) sni: Option<String>,
    /// What the handshake settled, where there was one.
    pub(crate) tls: Option<Settled>,
    /// When it was accepted.
    pub(crate) accepted_unix_ms: u64,
}

#[cfg(test)]
impl Peer {
    pub(crate) fn for_tests(remote: SocketAddr, local: SocketAddr) -> Self {
        Self {
            id: 1,
            transport: Transport::Tcp,
            remote,
            remote_text: remote.ip().to_string(),
            local,
            listener: local,
            peeked: Box::default(),
            sni: None,
            tls: None,
            accepted_unix_ms: 0,
        }
    }
}

impl View for Peer {
    fn any(&self, field: &Field, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        match field {
            Field::Transport => f(Value::Bytes(self.carrier().as_bytes())),
            Field::RemoteIp => f(Value::Address(canonical(self.remote.ip()))),
            Field::RemotePort => f(Value::Integer(self.remote.port().into())),
            Field::LocalIp => f(Value::Address(canonical(self.local.ip()))),
            Field::LocalPort => f(Value::Integer(self.local.port().into())),
            Field::Peek => !self.peeked.is_empty() && f(Value::Bytes(&self.peeked)),
            Field::TlsVersion => self.tls.as_ref().is_some_and(|t| f(Value::Bytes(t.version.as_bytes()))),
            Field::TlsAlpn => self.tls.as_ref().and_then(|t| t.alpn.as_deref()).is_some_and(|a| f(Value::Bytes(a))),
            Field::PeerCertPresent => self.tls.as_ref().is_some_and(|t| f(Value::Boolean(t.fingerprint.is_some()))),
            Field::PeerCertFingerprint => {
                let fingerprint = self.tls.as_ref().and_then(|t| t.fingerprint.as_ref());
                fingerprint.is_some_and(|text| f(Value::Bytes(text.as_bytes())))
            }
            Field::PeerCertSubjectCn => text(self.cert().and_then(|c| c.subject_cn.as_ref()), f),
            Field::PeerCertIssuerCn => text(self.cert().and_then(|c| c.issuer_cn.as_ref()), f),
            Field::PeerCertSerial => text(self.cert().map(|c| &c.serial), f),
            Field::PeerCertSpki => text(self.cert().map(|c| &c.spki), f),
            Field::PeerCertSanDns => {
                self.cert().is_some_and(|c| c.san_dns.iter().any(|name| f(Value::Bytes(name.as_bytes()))))
            }
            Field::TlsSni => self.sni.as_ref().is_some_and(|name| f(Value::Bytes(name.as_bytes()))),
            _ => false,
        }
    }
}

impl Peer {
    /// What carries its bytes, as rules and plugins call it.
    pub(crate) fn carrier(&self) -> &'static str {
        if self.transport == Transport::Tcp { "tcp" } else { "udp" }
    }

    /// What the client's certificate says, where it showed one.
    pub(crate) fn cert(&self) -> Option<&PeerCert> {
        self.tls.as_ref()?.cert.as_ref()
    }
}

fn text(value: Option<&String>, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
    value.is_some_and(|text| f(Value::Bytes(text.as_bytes())))
}

/// A client over IPv4 on an IPv6 socket is an IPv4 client to the rules.
pub(crate) fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

struct RequestView<'a> {
    peer: &'a Peer,
    head: &'a RequestHead,
    bytes: &'a [u8],
    held: Option<&'a Held>,
}

/// What of a request's body is in memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Vec<u8>,
    /// There was more.
    pub(crate) truncated: bool,
    /// How many bytes were asked for.
    pub(crate) limit: u64,
}

impl Held {
    /// Whether `limit` bytes, or all there are, are held.
    fn has(&self, limit: u64) -> bool {
        !self.truncated || self.limit >= limit
    }
}

impl View for RequestView<'_> {
    fn any(&self, field: &Field, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
        match field {
            Field::Method => f(Value::Bytes(self.head.method(self.bytes))),
            Field::UriPath => f(Value::Bytes(self.head.path(self.bytes))),
            Field::UriQuery => self.head.query(self.bytes).is_some_and(|q| f(Value::Bytes(q))),
            // In the absolute form the host stands in the target.
            Field::Header(name) if name == "host" => self.head.host(self.bytes).is_some_and(|h| f(Value::Bytes(h))),
            Field::Header(name) => self.head.lines.values(self.bytes, name.as_bytes()).any(|v| f(Value::Bytes(v))),
            Field::Body => self.held.is_some_and(|held| f(Value::Bytes(&held.bytes))),
            other => self.peer.any(other, f),
        }
    }
}

/// Where a connection goes before any request was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first bytes are needed to decide.
    Peek,
    /// It is to be decrypted, and speaks HTTP then.
    Tls,
    /// It speaks HTTP.
    Http,
    /// It is forwarded.
    Forward(TerminatorId),
    /// Nobody wants it.
    Close,
    /// A plugin refused it, or failed.
    Refused { rule: String, error: String },
}

/// Walks until bytes are needed; `peeked` says that the first ones are there, and whether they look like HTTP.
pub(crate) fn arrive(plan: &Plan, entry: NodeId, peer: &Peer, peeked: Option<bool>, plugins: &Instances) -> Arrival {
    let mut at = entry;
    let mut tunnel = false;
    loop {
        at = match plan.graph.node(at) {
            Node::Check { check, yes, no } => plan.after(at, *check, (*yes, *no), peer),
            Node::Upgrade { to: Phase::Peek, next } if peeked.is_some() => *next,
            Node::Upgrade { to: Phase::Peek, .. } => return Arrival::Peek,
            Node::Upgrade { to: Phase::Tls, .. } => return Arrival::Tls,
            Node::Upgrade { .. } => return Arrival::Http,
            Node::Detect { http, other } => {
                if peeked == Some(true) {
                    *http
                } else {
                    *other
                }
            }
            Node::Middleware { next, .. } if tunnel => *next,
            Node::Middleware { middleware, next, .. } => {
                // Of rules that forward bytes; those of HTTP come once a request is read.
                let Some(place) = &plan.places[middleware.index()] else { return Arrival::Close };
                if peeked.is_none() {
                    return Arrival::Peek;
                }
                let refused = |error: String| {
                    let rule = plan.graph.middleware[middleware.index()].rule.clone();
                    Arrival::Refused { rule, error }
                };
                match plugins.connection(place.turn(plugins.draw()), peer) {
                    Passed::On => {}
                    Passed::Tunnel => tunnel = true,
                    Passed::Close => return refused("closed by a plugin".to_owned()),
                    Passed::Failed(error) | Passed::Broken(error) => return refused(error),
                }
                *next
            }
            Node::Terminate { terminator, .. } => {
                return match plan.graph.terminator(*terminator).terminator {
                    shipote_rules::Terminator::TcpForward { .. } | shipote_rules::Terminator::UdpForward { .. } => {
                        Arrival::Forward(*terminator)
                    }
                    _ => Arrival::Close,
                };
            }
        };
    }
}

/// Changes to a request on its way.
#[derive(Debug, Default)]
pub(crate) struct Edits<'p> {
    pub(crate) forwarded_for: bool,
    pub(crate) real_ip: bool,
    pub(crate) headers: Vec<&'p HeaderEdit>,
    pub(crate) rewrite: Option<(&'p str, &'p str)>,
    /// What another server had to say.
    pub(crate) given: Vec<HeaderEdit>,
    /// Plugins that look at the answer.
    pub(crate) after: Vec<After<'p>>,
    /// The number that decides whether canaries have this request, the same for all of them.
    pub(crate) drawn: Option<u32>,
}

/// A plugin of the response phase.
#[derive(Debug)]
pub(crate) struct After<'p> {
    pub(crate) turn: Turn<'p>,
    pub(crate) on_error: Option<&'p OnError>,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Verdict<'p> {
    /// A terminator takes it; `response` begins the response phase.
    Take { terminator: TerminatorId, response: Option<NodeId> },
    /// It is answered in place of the terminator, for the rule that the middleware stands in.
    Answer { response: &'p Response, rule: &'p str, limited: bool },
    /// The same, with an answer that a plugin made, or one to a plugin that failed.
    Made { response: Box<Response>, rule: &'p str, error: Option<String> },
    /// The connection is closed without an answer.
    Close { rule: &'p str },
    /// Something must be had before the walk goes on at a node.
    Pause { need: Need, at: NodeId },
}

/// What a walk waits for.
#[derive(Debug)]
pub(crate) enum Need {
    /// The request's body, at most so many bytes of it; with `whole`, a larger one is refused.
    Body { limit: u64, whole: bool },
    /// What the server of a `forward_auth` says.
    Auth { middleware: MiddlewareId },
    /// A plugin's answer that takes its time.
    Call { turn: Apart, inputs: Vec<L7RequestInput> },
}

/// Where a walk goes on, and what it got meanwhile.
#[derive(Debug)]
pub(crate) struct Resume<'a> {
    pub(crate) at: NodeId,
    pub(crate) held: Option<&'a Held>,
    pub(crate) called: Option<Called>,
}

/// Walks the graph for one request, from the beginning or from where it paused.
pub(crate) fn route<'p>(
    plan: &'p Plan,
    peer: &Peer,
    head: &RequestHead,
    bytes: &[u8],
    edits: &mut Edits<'p>,
    plugins: &Instances,
    resume: Option<Resume<'_>>,
) -> Verdict<'p> {
    let Some(listener) = plan.listener(peer.transport, peer.listener) else { return Verdict::Close { rule: "" } };
    if plan.challenges.any()
        && let Some(answer) = plan.challenges.answer(head.path(bytes))
    {
        let headers = vec![("content-type".into(), "application/octet-stream".into())];
        let response = Response { headers, body: answer.into_bytes(), ..Response::empty(200) };
        return Verdict::Made { response: Box::new(response), rule: "", error: None };
    }
    let mut at = resume.as_ref().map_or(listener.entry, |r| r.at);
    let held = resume.as_ref().and_then(|r| r.held);
    let mut called = resume.and_then(|r| r.called);
    let view = RequestView { peer, head, bytes, held };
    loop {
        at = match plan.graph.node(at) {
            Node::Check { check, yes, no } => plan.after(at, *check, (*yes, *no), &view),
            Node::Detect { http, .. } => *http,
            Node::Upgrade { to: Phase::Body, next } if !held.is_some_and(|h| h.has(plan.body_limit)) => {
                return Verdict::Pause { need: Need::Body { limit: plan.body_limit, whole: true }, at: *next };
            }
            Node::Upgrade { next, .. } => *next,
            Node::Middleware { middleware, next, on_error } => {
                match run(plan, (*middleware, on_error.as_ref()), &view, edits, plugins, called.take()) {
                    Ran::On => *next,
                    Ran::Pause(need) => return Verdict::Pause { need, at },
                    Ran::Answer(response) => {
                        let rule = &plan.graph.middleware[middleware.index()].rule;
                        return Verdict::Answer { response, rule, limited: true };
                    }
                    Ran::Made(response) => {
                        let rule = &plan.graph.middleware[middleware.index()].rule;
                        return Verdict::Made { response, rule, error: None };
                    }
                    Ran::Closed => return Verdict::Close { rule: &plan.graph.middleware[middleware.index()].rule },
                    Ran::Failed { error, rule_decides } => {
                        let rule = &plan.graph.middleware[middleware.index()].rule;
                        let response = match on_error {
                            Some(OnError::Close) if rule_decides => return Verdict::Close { rule },
                            Some(OnError::Respond(response)) if rule_decides => response.clone(),
                            _ => Response::empty(500),
                        };
                        return Verdict::Made { response: Box::new(response), rule, error: Some(error) };
                    }
                    Ran::Refused => {
                        let rule = &plan.graph.middleware[middleware.index()].rule;
                        return match on_error {
                            Some(OnError::Respond(response)) => Verdict::Answer { response, rule, limited: false },
                            Some(OnError::Close) | None => Verdict::Close { rule },
                        };
                    }
                }
            }
            Node::Terminate { terminator, response } => {
                return Verdict::Take { terminator: *terminator, response: *response };
            }
        };
    }
}

enum Ran<'p> {
    On,
    /// It runs again once this is there.
    Pause(Need),
    Refused,
    Answer(&'p Response),
    Made(Box<Response>),
    Closed,
    Failed {
        error: String,
        rule_decides: bool,
    },
}

fn run<'p>(
    plan: &'p Plan,
    (id, on_error): (MiddlewareId, Option<&'p OnError>),
    view: &RequestView<'_>,
    edits: &mut Edits<'p>,
    plugins: &Instances,
    called: Option<Called>,
) -> Ran<'p> {
    let pass = |yes: bool| if yes { Ran::On } else { Ran::Refused };
    match &plan.graph.middleware[id.index()].middleware {
        Middleware::PathPrefix(paths) => {
            let path = view.head.path(view.bytes);
            pass(paths.prefixes.iter().any(|p| path.starts_with(p.as_bytes())))
        }
        Middleware::MethodMatch { methods } => {
            let method = view.head.method(view.bytes);
            pass(methods.iter().any(|m| m.as_bytes() == method))
        }
        Middleware::HostHeaderMatch { hosts } => {
            let host = view.head.host(view.bytes).unwrap_or_default();
            pass(hosts.iter().any(|h| h.as_bytes().eq_ignore_ascii_case(host)))
        }
        Middleware::ForwardClientIp { forwarded_for, real_ip } => {
            edits.forwarded_for |= forwarded_for;
            edits.real_ip |= real_ip;
            Ran::On
        }
        Middleware::RateLimit { key, on_limit, .. } => {
            let key = match key {
                LimitKey::RemoteIp => Key::address(view.peer.remote.ip()),
                LimitKey::Global => Key::Everybody,
                LimitKey::Header(name) => Key::Value(view.head.lines.values(view.bytes, name.as_bytes()).next()),
            };
            match &plan.limiters[id.index()] {
                Some(limiter) if !limiter.allows(&key, Instant::now()) => Ran::Answer(on_limit),
                _ => Ran::On,
            }
        }
        Middleware::RequestHeaders(edit) => {
            edits.headers.push(edit);
            Ran::On
        }
        Middleware::RewritePath { strip_prefix, add_prefix } => {
            edits.rewrite = Some((strip_prefix, add_prefix));
            Ran::On
        }
        Middleware::Plugin { .. } => match &plan.places[id.index()] {
            // Linking gives every plugin its site.
            None => Ran::Failed { error: "the plugin is not linked".to_owned(), rule_decides: true },
            Some(place) => {
                let turn = place.turn(*edits.drawn.get_or_insert_with(|| plugins.draw()));
                if turn.site.kind == MiddlewareKind::L7Response {
                    edits.after.push(After { turn, on_error });
                    return Ran::On;
                }
                let called = match (called, turn.body(|site| site.limits.request_body)) {
                    (Some(called), _) => called,
                    (None, Some(limit)) if !view.held.is_some_and(|h| h.has(limit)) => {
                        return Ran::Pause(Need::Body { limit, whole: false });
                    }
                    (None, _) => {
                        let texts = Texts::of(view.head, view.bytes);
                        let input = |site: &Site| texts.request(site, view.peer, view.held);
                        if turn.fetches() {
                            let sites = std::iter::once(turn.site).chain(turn.spare);
                            let inputs = sites.map(|site| input(site).into()).collect();
                            return Ran::Pause(Need::Call { turn: turn.apart(), inputs });
                        }
                        plugins.request(turn, input)
                    }
                };
                match called {
                    Called::On => Ran::On,
                    Called::Answer(response) => Ran::Made(response),
                    Called::Close => Ran::Closed,
                    Called::Failed(error) | Called::Broken(error) => Ran::Failed { error, rule_decides: true },
                    Called::Internal(error) => Ran::Failed { error, rule_decides: false },
                }
            }
        },
        Middleware::ForwardAuth { .. } => match called {
            None => Ran::Pause(Need::Auth { middleware: id }),
            Some(Called::On) => Ran::On,
            Some(Called::Answer(response)) => Ran::Made(response),
            Some(Called::Close) => Ran::Closed,
            Some(Called::Failed(error) | Called::Broken(error) | Called::Internal(error)) => {
                Ran::Failed { error, rule_decides: true }
            }
        },
        // They stand in the response phase.
        Middleware::ResponseHeaders(_) | Middleware::Compress { .. } => Ran::On,
    }
}

/// The compression of the response phase that begins at `at`: from how many bytes on, and what types.
pub(crate) fn compression(plan: &Plan, mut at: Option<NodeId>) -> Option<(u64, &[String])> {
    while let Some(id) = at {
        let Node::Middleware { middleware, next, .. } = plan.graph.node(id) else { return None };
        if let Middleware::Compress { min_bytes, types } = &plan.graph.middleware[middleware.index()].middleware {
            return Some((*min_bytes, types));
        }
        at = Some(*next);
    }
    None
}

/// The header edits of the response phase that begins at `at`.
pub(crate) fn response_edits(plan: &Plan, mut at: Option<NodeId>) -> Vec<&HeaderEdit> {
    let mut edits = Vec::new();
    while let Some(id) = at {
        at = match plan.graph.node(id) {
            Node::Middleware { middleware, next, .. } => {
                if let Middleware::ResponseHeaders(edit) = &plan.graph.middleware[middleware.index()].middleware {
                    edits.push(edit);
                }
                Some(*next)
            }
            _ => None,
        };
    }
    edits
}
