//! One rule, read from its file.

use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::Value as Json;

use crate::error::Problem;
use crate::field::Phase;
use crate::graph::OnError;
use crate::listen::{ListenSpec, Transport};
use crate::middleware::{Middleware, parse_chain};
use crate::predicate::Predicate;
use crate::section::Section;
use crate::terminate::Terminator;
use crate::tls::RuleTls;

/// How much of a body may be held in memory where a rule or a plugin reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub request_body: u64,
    /// Bytes of a response's body.
    pub response_body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { request_body: 8 << 20, response_body: 8 << 20 }
    }
}

/// A rule with its fields typed and its presets expanded.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique among all rules.
    pub name: String,
    /// The file it came from.
    pub file: PathBuf,
    /// The file's `order`: lower comes first.
    pub order: i64,
    /// Where it listens.
    pub listen: Vec<ListenSpec>,
    /// Peers (usually load balancers) that must say by the PROXY protocol for whom they connect.
    pub proxied_by: Vec<IpNet>,
    /// What it matches; `None` for everything.
    pub matches: Option<Predicate>,
    /// What happens before the terminator, and after it to the response.
    pub chain: Vec<(Middleware, Option<OnError>)>,
    /// Its certificate.
    pub(crate) tls: Option<RuleTls>,
    /// What it does.
    pub terminate: Terminator,
    /// How much of a body may be held in memory.
    pub limits: Limits,
}

/// Where a rule stands, and the counter that tells rate limits apart.
pub(crate) struct Place<'a> {
    pub(crate) file: &'a std::path::Path,
    pub(crate) order: i64,
    pub(crate) sites: &'a mut u32,
}

impl Rule {
    pub(crate) fn parse(value: &Json, place: &mut Place<'_>) -> Result<Self, Problem> {
        let mut section = Section::new(value, "")?;
        let name = section.require_text("name")?;
        if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
            return Err(Problem::new("name", "must have 1 to 128 characters and no control characters"));
        }
        let mut listen = parse_listen(&mut section)?;
        let proxied_by = read_proxied_by(&mut section)?;
        let matches = section.get("match").map(|v| Predicate::parse(v, "match")).transpose()?;
        let chain = match section.get("middleware_chain") {
            None => Vec::new(),
            Some(value) => parse_chain(value, "middleware_chain", place.sites)?,
        };
        let tls = section.get("tls").map(|v| RuleTls::parse(v, "tls")).transpose()?;
        if section.flag("allow_zero_rtt")? == Some(true) {
            return Err(Problem::new("allow_zero_rtt", "early data is not accepted: it can be replayed"));
        }
        let terminate = Terminator::parse(section.require("terminate")?, "terminate")?;
        if terminate.phase() == Phase::Request {
            listen.iter_mut().filter(|l| l.transport == Transport::Udp).for_each(|l| l.transport = Transport::Quic);
        }
        if !proxied_by.is_empty() && listen.iter().all(|l| l.transport != Transport::Tcp) {
            return Err(Problem::new("accept_proxy_protocol", "the PROXY protocol is spoken over TCP alone"));
        }
        let bytes = 0..=1 << 40;
        let defaults = Limits::default();
        let limits = Limits {
            request_body: section.size("max_body_bytes_request", bytes.clone())?.unwrap_or(defaults.request_body),
            response_body: section.size("max_body_bytes_response", bytes)?.unwrap_or(defaults.response_body),
        };
        section.get("source"); // Where another tool says that it generated the rule from.
        section.finish()?;
        Ok(Self {
            name: name.to_owned(),
            file: place.file.to_path_buf(),
            order: place.order,
            listen,
            proxied_by,
            matches,
            chain,
            tls,
            terminate,
            limits,
        })
    }
}

/// `accept_proxy_protocol`: a list of networks.
fn read_proxied_by(section: &mut Section<'_>) -> Result<Vec<IpNet>, Problem> {
    let Some(texts) = section.texts("accept_proxy_protocol", true)? else { return Ok(Vec::new()) };
    let mut networks = Vec::with_capacity(texts.len());
    for (i, text) in texts.into_iter().enumerate() {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        networks.push(network.map_err(|_| {
            let path = format!("{}[{i}]", section.path("accept_proxy_protocol"));
            Problem::new(path, format!("{text:?} is no network; write \"10.0.0.0/8\" or an address"))
        })?);
    }
    Ok(networks)
}

pub(crate) fn parse_listen(section: &mut Section<'_>) -> Result<Vec<ListenSpec>, Problem> {
    let mut listen = Vec::new();
    for (i, text) in section.require_texts("listen")?.into_iter().enumerate() {
        listen.extend(ListenSpec::parse(text, &format!("listen[{i}]"))?);
    }
    listen.sort_unstable();
    listen.dedup();
    Ok(listen)
}
