//! The proxy's rules, compiled to an immutable flow graph.
//!
//! For: everything between the text of rule files and the graph that a data plane walks: parse, merge, expand
//! (presets), analyse, lower (hash-consed), validate, print. Pure functions over strings and values, apart from
//! [`load_dir`], which reads the files of a directory.
//!
//! Not for: sockets, upstream connections, plugins' code or anything else that has a state at run time.
//!
//! Invariant: a [`Graph`] that [`compile`] returns has no dangling index and no cycle, every path from a listener
//! ends in a terminator, and no path goes back to an earlier [`Phase`].
//!
//! ```
//! let file = shipote_rules::Source::new("site.json", r#"{"rules": [{
//!     "name": "hello", "listen": ["127.0.0.1:8080"],
//!     "match": {"http.uri.path": {"prefix": "/hello"}},
//!     "terminate": {"type": "static", "status": 200, "text": "hi"}}]}"#);
//! let graph = shipote_rules::compile(&[file]).unwrap();
//! assert_eq!(graph.listeners.len(), 1);
//! ```
#![forbid(unsafe_code)]

mod analyse;
mod care;
mod cgi;
mod error;
mod field;
mod graph;
mod listen;
mod load;
mod lower;
mod middleware;
mod operator;
mod predicate;
mod preset;
mod print;
mod response;
mod rule;
mod section;
mod shortcuts;
mod source;
mod terminate;
mod tls;
mod upstream;
mod validate;

pub use care::{Care, HealthCheck, Passive};
pub use cgi::CgiSpec;
pub use error::{Problems, RuleProblem};
pub use field::{Field, Kind, Phase};
pub use graph::{
    CheckId, Graph, Listener, MiddlewareEntry, MiddlewareId, Node, NodeId, OnError, TerminatorEntry, TerminatorId,
};
pub use listen::{ListenSpec, Transport};
pub use load::{LoadError, load_dir};
pub use middleware::{HeaderEdit, LimitKey, Middleware, PathMatch};
pub use operator::{Operator, Value};
pub use predicate::{Check, Predicate, View};
pub use print::mermaid;
pub use response::Response;
pub use rule::{Limits, Rule};
pub use shortcuts::Shortcuts;
pub use source::Source;
pub use terminate::{Balance, HashOn, HttpVersion, ProxySpec, RedirectSpec, Terminator, TimeLimits};
pub use tls::{CertSource, ClientAuth, ListenerTls, TlsCert};
pub use upstream::{ProxyProtocol, Upstream, UpstreamAddress, UpstreamTls};

/// Compiles rule files to a graph: merge, expand, analyse, lower, validate.
///
/// Files are ordered by their `order`, then by path. Every rule is looked at, so that the error lists all that is
/// wrong, not only the first thing.
///
/// # Errors
/// [`Problems`]: at least one problem, each naming file, rule and field.
pub fn compile(sources: &[Source]) -> Result<Graph, Problems> {
    compile_with_pauses(sources, &|| ())
}

/// The same, with a call of `pause` after every rule in every stage that takes long: for a thread that shares its processor
/// with others that are in a hurry.
///
/// # Errors
/// As [`compile`].
pub fn compile_with_pauses(sources: &[Source], pause: &dyn Fn()) -> Result<Graph, Problems> {
    let rules = source::merge(sources, pause)?;
    let analysed = analyse::analyse(rules)?;
    let graph = lower::lower(&analysed, pause);
    validate::validate(&graph)?;
    Ok(graph)
}
