//! The flow graph: what the data plane walks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Serialize;

use crate::field::Phase;
use crate::listen::ListenSpec;
use crate::middleware::Middleware;
use crate::predicate::Check;
use crate::response::Response;
use crate::terminate::Terminator;
use crate::tls::ListenerTls;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// As an index.
            #[must_use]
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// A node of [`Graph::nodes`].
    NodeId
);
index!(
    /// A check of [`Graph::checks`].
    CheckId
);
index!(
    /// A middleware of [`Graph::middleware`].
    MiddlewareId
);
index!(
    /// A terminator of [`Graph::terminators`].
    TerminatorId
);

/// What happens when a middleware fails or refuses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The connection is closed without an answer.
    Close,
    /// The client gets this answer.
    Respond(Response),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "node", rename_all = "snake_case")]
pub enum Node {
    /// Goes one way or the other.
    Check {
        /// What is checked.
        check: CheckId,
        /// Where it goes on if it holds.
        yes: NodeId,
        /// Where it goes on if not.
        no: NodeId,
    },
    /// Goes to HTTP if the first bytes look like a request, else stays with bytes. Only where rules for both share a
    /// listener.
    Detect {
        /// Where HTTP goes on.
        http: NodeId,
        /// Where anything else goes on.
        other: NodeId,
    },
    /// Brings the connection to a later phase: reads the first bytes, does the TLS handshake, reads a request's head
    /// or its body.
    Upgrade {
        /// The phase that is reached.
        to: Phase,
        /// Where it goes on.
        next: NodeId,
    },
    /// Runs a middleware.
    Middleware {
        /// Which.
        middleware: MiddlewareId,
        /// Where it goes on.
        next: NodeId,
        /// What happens instead when it fails or refuses; `None`: what the middleware does by itself.
        on_error: Option<OnError>,
    },
    /// Ends the path.
    Terminate {
        /// How.
        terminator: TerminatorId,
        /// The response phase of a path that makes a response; ends in [`Terminator::Send`].
        response: Option<NodeId>,
    },
}

/// A terminator and the rule that it belongs to.
#[derive(Debug, Clone, Serialize)]
pub struct TerminatorEntry {
    /// The rule's name; empty for what the compiler adds.
    pub rule: String,
    /// How the path ends.
    #[serde(flatten)]
    pub terminator: Terminator,
    /// Bytes of a request's body that may be held in memory.
    pub request_body_limit: u64,
    /// Bytes of a response's body that may be held in memory.
    pub response_body_limit: u64,
}

/// A middleware.
#[derive(Debug, Clone, Serialize)]
pub struct MiddlewareEntry {
    /// The first rule that uses it.
    pub rule: String,
    /// What it does.
    #[serde(flatten)]
    pub middleware: Middleware,
}

/// One address to listen on, and where its connections start.
#[derive(Debug, Clone, Serialize)]
pub struct Listener {
    /// The address.
    #[serde(flatten)]
    pub listen: ListenSpec,
    /// The first node.
    pub entry: NodeId,
    /// Peers that must say by the PROXY protocol for whom they connect; others are clients themselves.
    pub proxied_by: Vec<IpNet>,
    /// Certificates, where the listener has any.
    pub tls: Option<ListenerTls>,
    /// Its rules in the order in which they are tried.
    pub rules: Vec<String>,
}

/// The whole of it. Immutable: a change of the rules makes another one.
#[derive(Debug, Clone, Serialize)]
pub struct Graph {
    /// Sorted by address.
    pub listeners: Vec<Listener>,
    /// The nodes; a node's successors always have smaller indices, so there is no cycle.
    pub nodes: Vec<Node>,
    /// The checks.
    pub checks: Vec<Check>,
    /// The middlewares.
    pub middleware: Vec<MiddlewareEntry>,
    /// The terminators.
    pub terminators: Vec<TerminatorEntry>,
    /// The files that the rules came from.
    pub files: Vec<PathBuf>,
    /// The file of each rule, by the rule's name: what cannot be served is named as what does not compile.
    pub sources: BTreeMap<String, PathBuf>,
    /// What is allowed but hardly meant, such as a rule that nothing reaches.
    pub warnings: Vec<String>,
}

impl Graph {
    /// A node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A check.
    #[must_use]
    pub fn check(&self, id: CheckId) -> &Check {
        &self.checks[id.index()]
    }

    /// File and name of a rule, as errors begin with them.
    #[must_use]
    pub fn whose(&self, rule: &str) -> String {
        match self.sources.get(rule) {
            Some(file) => format!("{}: rule {rule:?}", file.display()),
            None => format!("rule {rule:?}"),
        }
    }

    /// A terminator.
    #[must_use]
    pub fn terminator(&self, id: TerminatorId) -> &TerminatorEntry {
        &self.terminators[id.index()]
    }
}

impl Node {
    /// The nodes that may come next, the response phase included.
    pub fn successors(&self) -> impl Iterator<Item = NodeId> + use<> {
        let two = match self {
            Self::Check { yes, no, .. } => [Some(*yes), Some(*no)],
            Self::Detect { http, other } => [Some(*http), Some(*other)],
            Self::Upgrade { next, .. } | Self::Middleware { next, .. } => [Some(*next), None],
            Self::Terminate { response, .. } => [*response, None],
        };
        two.into_iter().flatten()
    }
}
