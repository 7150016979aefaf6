//! Rules to nodes. Equal nodes, checks, middlewares and terminators are kept once (hash-consed), so rules that share
//! a tail share its nodes, and listeners with the same rules share the whole graph.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::analyse::{Analysed, AnalysedSet, Group};
use crate::field::Phase;
use crate::graph::{
    CheckId, Graph, Listener, MiddlewareEntry, MiddlewareId, Node, NodeId, OnError, TerminatorEntry, TerminatorId,
};
use crate::listen::Transport;
use crate::middleware::{HeaderEdit, Middleware};
use crate::predicate::{Check, Predicate};
use crate::response::Response;
use crate::rule::{Limits, Rule};
use crate::terminate::Terminator;

pub(crate) fn lower(set: &AnalysedSet, pause: &dyn Fn()) -> Graph {
    let mut builder = Builder::default();
    let mut shared: HashMap<(Vec<usize>, Transport, bool), NodeId> = HashMap::new();
    let mut entries = Vec::with_capacity(set.groups.len());
    for group in &set.groups {
        let key = (group.rules.clone(), group.listen.transport, group.tls.is_some());
        let entry = match shared.get(&key) {
            Some(entry) => *entry,
            None => {
                let entry = builder.listener(set, group, pause);
                shared.insert(key, entry);
                entry
            }
        };
        entries.push(entry);
    }
    let (nodes, entries) = prune(&builder.nodes, &entries);
    let listeners = set.groups.iter().zip(entries).map(|(group, entry)| Listener {
        listen: group.listen,
        entry,
        proxied_by: group.proxied_by.clone(),
        tls: group.tls.clone(),
        rules: group.rules.iter().map(|&i| set.rules[i].rule.name.clone()).collect(),
    });
    let reached: std::collections::HashSet<&str> = nodes
        .iter()
        .filter_map(|node| match node {
            Node::Terminate { terminator, .. } => Some(builder.terminators[terminator.index()].rule.as_str()),
            _ => None,
        })
        .collect();
    let unreached = set.rules.iter().filter(|r| !reached.contains(r.rule.name.as_str()));
    let warnings = unreached.map(|r| {
        let (file, name) = (r.rule.file.display(), &r.rule.name);
        format!("{file}: rule {name:?}: never reached: rules before it take everything")
    });
    let ignored = set.rules.iter().flat_map(|Analysed { rule, .. }| {
        match &rule.terminate {
            Terminator::Cgi(spec) => spec.ignored.as_slice(),
            _ => &[],
        }
        .iter()
        .map(|what| format!("{}: rule {:?}: {what}", rule.file.display(), rule.name))
    });
    Graph {
        warnings: warnings.chain(ignored).collect(),
        listeners: listeners.collect(),
        nodes,
        checks: builder.checks,
        middleware: builder.middleware,
        terminators: builder.terminators,
        files: set.files.clone(),
        sources: set.rules.iter().map(|r| (r.rule.name.clone(), r.rule.file.clone())).collect(),
    }
}

/// Graphs are large, and none but the machine's administrator writes what is in them.
type Known<K, V> = HashMap<K, V, RandomState>;

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    known_nodes: Known<Node, NodeId>,
    checks: Vec<Check>,
    known_checks: Known<String, CheckId>,
    middleware: Vec<MiddlewareEntry>,
    known_middleware: Known<Middleware, MiddlewareId>,
    terminators: Vec<TerminatorEntry>,
    known_terminators: Known<(String, Terminator), TerminatorId>,
}

/// The phases in which rules are decided, the earliest first.
const PHASES: [Phase; 5] = [Phase::Raw, Phase::Peek, Phase::Tls, Phase::Request, Phase::Body];

impl Builder {
    fn node(&mut self, node: Node) -> NodeId {
        if let Some(id) = self.known_nodes.get(&node) {
            return *id;
        }
        let id = NodeId(count(self.nodes.len()));
        self.nodes.push(node.clone());
        self.known_nodes.insert(node, id);
        id
    }

    /// Builds the rules of a listener from the last to the first, in every phase that can be reached, from the
    /// latest to the earliest: `tails[p]` is what happens in phase `p` if no rule so far matched.
    fn listener(&mut self, set: &AnalysedSet, group: &Group, pause: &dyn Fn()) -> NodeId {
        let encrypted = group.tls.is_some();
        let close = self.terminate("", Terminator::Close, Limits::default(), None);
        let not_found = {
            let send = self.terminate("", Terminator::Send, Limits::default(), None);
            let answer = Terminator::Static(Response { body: b"no rule matches\n".to_vec(), ..Response::empty(404) });
            self.terminate("", answer, Limits::default(), Some(send))
        };
        let rules: Vec<&Analysed> = group.rules.iter().map(|&i| &set.rules[i]).collect();
        let mut tails = [close, close, close, not_found, not_found];
        for analysed in rules.iter().rev() {
            tails = self.rule(analysed, tails, encrypted);
            pause();
        }
        tails[0]
    }

    fn rule(&mut self, analysed: &Analysed, tails: [NodeId; 5], encrypted: bool) -> [NodeId; 5] {
        let rule = &analysed.rule;
        let end = self.chain(rule);
        // Where the rule is decided: its match, and for HTTP at least a request.
        let at = analysed.decided.max(analysed.ends);
        let mut heads = tails;
        for (i, phase) in PHASES.into_iter().enumerate().rev() {
            heads[i] = if analysed.ends == Phase::Raw && phase > Phase::Peek {
                // Bytes that were read cannot be forwarded unread: later phases pass the rule by.
                tails[i]
            } else if phase >= at {
                match &rule.matches {
                    None => end,
                    Some(predicate) => self.predicate(predicate, end, tails[i]),
                }
            } else {
                let next = next_phase(phase, encrypted);
                let up = self.node(Node::Upgrade { to: next, next: heads[place(next)] });
                // HTTP rules before a forward of all other bytes: look at the first bytes to tell them apart.
                match self.other_bytes(tails[i]) {
                    Some(other) if phase == Phase::Peek && analysed.ends != Phase::Raw && !encrypted => {
                        self.node(Node::Detect { http: up, other })
                    }
                    _ => up,
                }
            };
        }
        heads
    }

    /// Where bytes that are not HTTP go, if the rules so far say so.
    fn other_bytes(&self, tail: NodeId) -> Option<NodeId> {
        match &self.nodes[tail.index()] {
            Node::Terminate { terminator, .. } => {
                let forward = &self.terminators[terminator.index()].terminator;
                matches!(forward, Terminator::TcpForward { .. }).then_some(tail)
            }
            Node::Detect { other, .. } => Some(*other),
            _ => None,
        }
    }

    fn predicate(&mut self, predicate: &Predicate, yes: NodeId, no: NodeId) -> NodeId {
        match predicate {
            Predicate::Check(check) => {
                let check = self.check(check);
                if yes == no { yes } else { self.node(Node::Check { check, yes, no }) }
            }
            Predicate::AllOf(parts) => parts.iter().rev().fold(yes, |yes, part| self.predicate(part, yes, no)),
            Predicate::AnyOf(parts) => parts.iter().rev().fold(no, |no, part| self.predicate(part, yes, no)),
            Predicate::Not(part) => self.predicate(part, no, yes),
        }
    }

    fn check(&mut self, check: &Check) -> CheckId {
        let key = serde_json::to_string(check).unwrap_or_default();
        let checks = &mut self.checks;
        *self.known_checks.entry(key).or_insert_with(|| {
            checks.push(check.clone());
            CheckId(count(checks.len() - 1))
        })
    }

    /// A rule's chain and terminator: request middleware, terminator, response middleware, send.
    fn chain(&mut self, rule: &Rule) -> NodeId {
        let (after, before): (Vec<_>, Vec<_>) = rule.chain.iter().partition(|(m, _)| m.phase() == Phase::Response);
        let told = alt_svc(rule).map(|edit| (edit, None));
        let response = (rule.terminate.phase() == Phase::Request).then(|| {
            let send = self.terminate("", Terminator::Send, Limits::default(), None);
            // The rule's own edits come after, so that they can say otherwise.
            told.iter().chain(after).rev().fold(send, |next, entry| self.middleware(rule, entry, next))
        });
        let end = self.terminate(&rule.name, rule.terminate.clone(), rule.limits, response);
        before.into_iter().rev().fold(end, |next, entry| self.middleware(rule, entry, next))
    }

    fn middleware(&mut self, rule: &Rule, entry: &(Middleware, Option<OnError>), next: NodeId) -> NodeId {
        let (middleware, on_error) = entry;
        let all = &mut self.middleware;
        let id = *self.known_middleware.entry(middleware.clone()).or_insert_with(|| {
            all.push(MiddlewareEntry { rule: rule.name.clone(), middleware: middleware.clone() });
            MiddlewareId(count(all.len() - 1))
        });
        self.node(Node::Middleware { middleware: id, next, on_error: on_error.clone() })
    }

    /// A terminator is kept per rule, so that logs and figures can name the rule.
    fn terminate(&mut self, rule: &str, terminator: Terminator, limits: Limits, response: Option<NodeId>) -> NodeId {
        let all = &mut self.terminators;
        let id = *self.known_terminators.entry((rule.to_owned(), terminator.clone())).or_insert_with(|| {
            all.push(TerminatorEntry {
                rule: rule.to_owned(),
                terminator,
                request_body_limit: limits.request_body,
                response_body_limit: limits.response_body,
            });
            TerminatorId(count(all.len() - 1))
        });
        self.node(Node::Terminate { terminator: id, response })
    }
}

/// Answers of a rule that is served by HTTP/3 as well say so (RFC 9114, section 3.1.1).
fn alt_svc(rule: &Rule) -> Option<Middleware> {
    let mut ports: Vec<u16> =
        rule.listen.iter().filter(|l| l.transport == Transport::Quic).map(|l| l.address.port()).collect();
    ports.dedup();
    let value: Vec<String> = ports.iter().map(|port| format!("h3=\":{port}\"; ma=86400")).collect();
    let set = vec![("alt-svc".to_owned(), value.join(", "))];
    (!ports.is_empty()).then(|| Middleware::ResponseHeaders(HeaderEdit { set, ..HeaderEdit::default() }))
}

fn next_phase(phase: Phase, encrypted: bool) -> Phase {
    match phase {
        Phase::Raw => Phase::Peek,
        Phase::Peek if encrypted => Phase::Tls,
        Phase::Peek | Phase::Tls => Phase::Request,
        _ => Phase::Body,
    }
}

fn place(phase: Phase) -> usize {
    PHASES.iter().position(|p| *p == phase).unwrap_or(PHASES.len() - 1)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Keeps what the entries reach, without upgrades that another upgrade follows at once (nobody looks at the phase in
/// between), numbered so that successors come first.
fn prune(nodes: &[Node], entries: &[NodeId]) -> (Vec<Node>, Vec<NodeId>) {
    // Successors of a node are always built before it, so one pass from the front sees them first.
    let mut skip: Vec<NodeId> = (0..nodes.len()).map(|i| NodeId(count(i))).collect();
    for (i, node) in nodes.iter().enumerate() {
        if let Node::Upgrade { to: Phase::Peek, next } = node {
            let target = skip[next.index()];
            if matches!(nodes[target.index()], Node::Upgrade { .. }) {
                skip[i] = target;
            }
        }
    }
    let mut wanted = vec![false; nodes.len()];
    for entry in entries {
        wanted[skip[entry.index()].index()] = true;
    }
    for i in (0..nodes.len()).rev() {
        if wanted[i] {
            nodes[i].successors().for_each(|s| wanted[skip[s.index()].index()] = true);
        }
    }
    let mut renamed = vec![NodeId(0); nodes.len()];
    let mut kept: Vec<Node> = Vec::new();
    for (i, node) in nodes.iter().enumerate().filter(|(i, _)| wanted[*i]) {
        renamed[i] = NodeId(count(kept.len()));
        let to = |id: NodeId| renamed[skip[id.index()].index()];
        kept.push(match node.clone() {
            Node::Check { check, yes, no } => Node::Check { check, yes: to(yes), no: to(no) },
            Node::Detect { http, other } => Node::Detect { http: to(http), other: to(other) },
            Node::Upgrade { to: phase, next } => Node::Upgrade { to: phase, next: to(next) },
            Node::Middleware { middleware, next, on_error } => {
                Node::Middleware { middleware, next: to(next), on_error }
            }
            Node::Terminate { terminator, response } => Node::Terminate { terminator, response: response.map(to) },
        });
    }
    let entries = entries.iter().map(|e| renamed[skip[e.index()].index()]).collect();
    (kept, entries)
}
