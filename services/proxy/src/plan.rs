//! A graph linked to what it needs at run time: upstreams and rate limits. Immutable, swapped whole.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use shipote_bus::proxy::CertInfo;
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_rules::{
    CgiSpec, CheckId, Graph, HttpVersion, Listener, Middleware, MiddlewareEntry, Node, NodeId, Shortcuts, Terminator,
    TerminatorEntry, TerminatorId, Transport, Upstream, View,
};
use tokio::sync::Semaphore;

use crate::acme::{Acme, Challenges};
use crate::http3::config::Crypto;
use crate::plugin::{Canary, Place, PluginCode, Runtime};
use crate::rate::Limiter;
use crate::upstream::{Registry, Speak, Target};

/// A rule that this build cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{whose}: {reason}")]
pub struct LinkError {
    /// Its file and its name.
    pub whose: String,
    /// What is missing, and what can be written instead.
    pub reason: String,
}

/// What workers run by.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) graph: Graph,
    shortcuts: Shortcuts,
    /// By terminator.
    pub(crate) targets: Vec<Vec<Arc<Target>>>,
    /// By middleware; rate limits only.
    pub(crate) limiters: Vec<Option<Arc<Limiter>>>,
    /// By middleware; those that ask another server only.
    pub(crate) auth: Vec<Option<Arc<Target>>>,
    /// By middleware; plugins only.
    pub(crate) places: Vec<Option<Place>>,
    /// By terminator; programs only: the runs that it may have at once.
    pub(crate) runs: Vec<Option<Arc<Semaphore>>>,
    /// By terminator: it takes more than passing HTTP/1.1 on as it is.
    others: Vec<bool>,
    /// The largest body that a rule may hold in memory.
    pub(crate) body_limit: u64,
    /// What the certificates of listeners say.
    pub(crate) certs: Vec<CertInfo>,
    /// What authorities are answered that look whether a name leads here.
    pub(crate) challenges: Arc<Challenges>,
    /// By listener.
    tls: Vec<Option<Arc<rustls::ServerConfig>>>,
    /// By listener; those of QUIC only.
    quic: Vec<Option<Crypto>>,
    listeners: HashMap<(Transport, SocketAddr), usize>,
}

impl Plan {
    /// Links a graph. Upstreams and rate limits that the plan before had are kept with all that they know.
    pub(crate) fn link(
        graph: Graph,
        registry: &Registry,
        plugins: &Plugins<'_>,
        acme: &Acme,
        before: Option<&Plan>,
    ) -> Result<Self, LinkError> {
        let refuse = |rule: &str, reason: String| LinkError { whose: graph.whose(rule), reason };
        let mut targets = Vec::with_capacity(graph.terminators.len());
        let mut others = Vec::with_capacity(graph.terminators.len());
        let mut runs_of = Vec::with_capacity(graph.terminators.len());
        for entry in &graph.terminators {
            let upstreams = upstreams_of(entry).map_err(|reason| refuse(&entry.rule, reason))?;
            let version = match &entry.terminator {
                Terminator::HttpProxy(spec) => Some(spec.version),
                _ => None,
            };
            let linked: Result<Vec<_>, String> = upstreams.iter().map(|u| registry.target(u, version)).collect();
            let linked = linked.map_err(|reason| refuse(&entry.rule, reason))?;
            let retries = matches!(&entry.terminator, Terminator::HttpProxy(spec) if spec.retries > 0);
            let program = match &entry.terminator {
                // The same program of the same rule goes on counting across a reload.
                Terminator::Cgi(spec) => Some(before.and_then(|b| b.program(entry)).unwrap_or_else(|| runs(spec))),
                _ => None,
            };
            others.push(
                retries
                    || program.is_some()
                    || linked.iter().any(|t| matches!(t.speak, Speak::Two | Speak::Three | Speak::Either)),
            );
            runs_of.push(program);
            targets.push(linked);
        }
        // What the compiler adds has no name, and no limit that somebody meant.
        let named = graph.terminators.iter().filter(|t| !t.rule.is_empty());
        let body_limit = named.map(|t| t.request_body_limit).max().unwrap_or(0);
        let mut tls = Vec::with_capacity(graph.listeners.len());
        let mut quic = Vec::with_capacity(graph.listeners.len());
        let mut certs = Vec::new();
        for listener in &graph.listeners {
            let rule = listener.rules.first().cloned().unwrap_or_default();
            let configure = |tls| crate::tls::configure(&listener.listen.address.to_string(), tls, acme.store.as_ref());
            let configured = listener.tls.as_ref().map(configure).transpose();
            let configured = configured.map_err(|reason| refuse(&rule, reason))?;
            let configured = configured.map(|(config, infos)| {
                certs.extend(infos);
                config
            });
            let over = configured.as_ref().filter(|_| listener.listen.transport == Transport::Quic);
            quic.push(over.map(|tls| Crypto::new(tls)).transpose().map_err(|reason| refuse(&rule, reason))?);
            tls.push(configured);
        }
        let mut places: Vec<Option<Place>> = Vec::with_capacity(graph.middleware.len());
        let mut seen = HashMap::new();
        let mut auth = Vec::with_capacity(graph.middleware.len());
        let mut limiters = Vec::with_capacity(graph.middleware.len());
        for entry in &graph.middleware {
            let place = plugins.place(entry, before, &mut seen);
            let mut place = place.map_err(|reason| refuse(&entry.rule, reason))?;
            if let Some(place) = &mut place {
                fits(&graph, places.len(), place.site.kind).map_err(|reason| refuse(&entry.rule, reason))?;
                let same = |canary: &Canary| canary.site.kind == place.site.kind;
                if let Some(canary) = place.canary.take_if(|canary| !same(canary)) {
                    let (was, is) = (place.site.kind.name(), canary.site.kind.name());
                    canary.trial.fail(format!("its {} is a {is}, not a {was}", canary.site.export));
                }
            }
            places.push(place);
            auth.push(match &entry.middleware {
                Middleware::ForwardAuth { upstream, .. } => {
                    let linked = registry.target(upstream, Some(HttpVersion::H1));
                    Some(linked.map_err(|reason| refuse(&entry.rule, reason))?)
                }
                _ => None,
            });
            limiters.push(match &entry.middleware {
                Middleware::RateLimit { rate, burst, window, .. } => {
                    // The same limit of the same rule goes on counting across a reload.
                    let kept = before.and_then(|b| b.limiter(&entry.rule, &entry.middleware));
                    Some(kept.unwrap_or_else(|| Arc::new(Limiter::new(*rate, *window, *burst))))
                }
                _ => None,
            });
        }
        let listeners =
            graph.listeners.iter().enumerate().map(|(i, l)| ((l.listen.transport, l.listen.address), i)).collect();
        Ok(Self {
            shortcuts: Shortcuts::of(&graph),
            graph,
            targets,
            others,
            runs: runs_of,
            body_limit,
            certs,
            challenges: Arc::clone(&acme.challenges),
            limiters,
            auth,
            places,
            tls,
            quic,
            listeners,
        })
    }

    /// Where a walk goes on from a check: after the first of its chain that holds.
    pub(crate) fn after(&self, node: NodeId, check: CheckId, (yes, no): (NodeId, NodeId), view: &dyn View) -> NodeId {
        let tried = || if self.graph.check(check).holds(view) { yes } else { no };
        self.shortcuts.next(node, view).unwrap_or_else(tried)
    }

    fn program(&self, entry: &TerminatorEntry) -> Option<Arc<Semaphore>> {
        let same = |e: &TerminatorEntry| e.rule == entry.rule && e.terminator == entry.terminator;
        let at = self.graph.terminators.iter().position(same)?;
        self.runs[at].clone()
    }

    fn limiter(&self, rule: &str, middleware: &Middleware) -> Option<Arc<Limiter>> {
        let alike = |a: &Middleware, b: &Middleware| match (a, b) {
            (
                Middleware::RateLimit { key, rate, burst, window, .. },
                Middleware::RateLimit { key: k, rate: r, burst: b, window: w, .. },
            ) => (key, rate, burst, window) == (k, r, b, w),
            _ => false,
        };
        let at = self.graph.middleware.iter().position(|e| e.rule == rule && alike(&e.middleware, middleware))?;
        self.limiters[at].clone()
    }

    /// Whether HTTP/2 or 3 may be spoken to an upstream of this terminator, or another one be asked after a failure, or a
    /// program answers.
    pub(crate) fn takes_more(&self, terminator: TerminatorId) -> bool {
        self.others[terminator.index()]
    }

    /// Whether a WebSocket may pass this terminator.
    pub(crate) fn takes_websocket(&self, terminator: TerminatorId) -> bool {
        let terminator = &self.graph.terminator(terminator).terminator;
        matches!(terminator, Terminator::HttpProxy(spec) if spec.websocket && !matches!(spec.version, HttpVersion::H2 | HttpVersion::H3))
    }

    pub(crate) fn listener(&self, transport: Transport, address: SocketAddr) -> Option<&Listener> {
        self.listeners.get(&(transport, address)).map(|&i| &self.graph.listeners[i])
    }

    /// How a listener does its handshakes.
    pub(crate) fn tls(&self, transport: Transport, address: SocketAddr) -> Option<&Arc<rustls::ServerConfig>> {
        self.listeners.get(&(transport, address)).and_then(|&i| self.tls[i].as_ref())
    }

    /// How a listener speaks QUIC.
    pub(crate) fn quic(&self, address: SocketAddr) -> Option<&Crypto> {
        self.listeners.get(&(Transport::Quic, address)).and_then(|&i| self.quic[i].as_ref())
    }
}

/// The plugins that rules may use.
pub(crate) struct Plugins<'a> {
    pub(crate) runtime: Option<&'a Runtime>,
    pub(crate) codes: &'a [PluginCode],
}

impl Plugins<'_> {
    /// The place where a plugin is called. `seen` counts those that are alike, so that each finds its own in the plan
    /// before.
    fn place(
        &self,
        entry: &MiddlewareEntry,
        before: Option<&Plan>,
        seen: &mut HashMap<(String, String, String, String), usize>,
    ) -> Result<Option<Place>, String> {
        let Middleware::Plugin { module, export, args, .. } = &entry.middleware else { return Ok(None) };
        let code = self.codes.iter().find(|c| c.name == *module);
        let (Some(code), Some(runtime)) = (code, self.runtime) else {
            return Err(format!("plugin {module:?} is not in the registry; add it with `shipote plugin add`"));
        };
        let nth = seen.entry((entry.rule.clone(), module.clone(), export.clone(), args.clone())).or_insert(0);
        let place = before.and_then(|before| {
            let places = before.graph.middleware.iter().zip(&before.places);
            let alike = places.filter(|(e, _)| {
                e.rule == entry.rule
                    && matches!(&e.middleware, Middleware::Plugin { module: m, export: x, args: a, .. }
                        if m == module && x == export && a == args)
            });
            alike.skip(*nth).find_map(|(_, place)| place.as_ref())
        });
        *nth += 1;
        // A canary that is at work now goes on with all that its instances know, and the other way round.
        let there =
            || place.into_iter().flat_map(|p| std::iter::once(&p.site).chain(p.canary.as_ref().map(|c| &c.site)));
        let site = |code: &PluginCode| match there().find(|site| site.is_still(code, export, args)) {
            Some(kept) => Ok(Arc::clone(kept)),
            None => runtime.site(code, export, args),
        };
        let mut place = Place { site: site(code)?, canary: None };
        if let Some(canary) = &code.canary {
            let trial = runtime.trial(code, canary);
            match canary.code.as_ref().map_err(String::clone).and_then(site) {
                Ok(site) => place.canary = Some(Canary { site, share: canary.share, trial }),
                // What is at work does not suffer from what is on trial.
                Err(reason) => trial.fail(reason),
            }
        }
        Ok(Some(place))
    }
}

fn runs(spec: &CgiSpec) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(spec.at_once as usize))
}

/// Whether a plugin of this kind can stand where its middleware stands.
fn fits(graph: &Graph, middleware: usize, kind: MiddlewareKind) -> Result<(), String> {
    let bytes = matches!(kind, MiddlewareKind::L4Peek | MiddlewareKind::L4Bytes);
    for node in &graph.nodes {
        let Node::Middleware { middleware: id, next, .. } = node else { continue };
        if id.index() != middleware {
            continue;
        }
        let mut at = next;
        let end = loop {
            match graph.node(*at) {
                Node::Middleware { next, .. } => at = next,
                Node::Terminate { terminator, .. } => break &graph.terminator(*terminator).terminator,
                _ => return Err("a chain does not end in a terminator".to_owned()),
            }
        };
        let forwards = matches!(end, Terminator::TcpForward { .. } | Terminator::UdpForward { .. });
        if bytes != forwards {
            let (kind, end) = (kind.name(), end.name());
            let why = if bytes {
                "it looks at bytes, and HTTP is read there"
            } else {
                "it looks at HTTP, which is not read there"
            };
            return Err(format!("a plugin of the kind {kind} cannot stand before {end}: {why}"));
        }
    }
    Ok(())
}

fn upstreams_of(entry: &TerminatorEntry) -> Result<&[Upstream], String> {
    let upstreams: &[Upstream] = match &entry.terminator {
        Terminator::HttpProxy(spec) => &spec.upstreams,
        Terminator::TcpForward { upstreams, .. } | Terminator::UdpForward { upstreams, .. } => upstreams,
        Terminator::Cgi(_)
        | Terminator::Static(_)
        | Terminator::RedirectHttps(_)
        | Terminator::Close
        | Terminator::Send => &[],
    };
    Ok(upstreams)
}
