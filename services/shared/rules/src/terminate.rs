//! Terminators: what a rule does with what it matched.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::care::Care;
use crate::cgi::CgiSpec;
use crate::error::{Problem, suggest};
use crate::field::Phase;
use crate::listen::Transport;
use crate::response::Response;
use crate::section::Section;
use crate::upstream::{Upstream, UpstreamAddress};

/// The version of HTTP spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// By ALPN where there is TLS, else HTTP/1.1.
    Auto,
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/3.
    H3,
}

/// How one of several upstreams is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastRequests,
    /// By the client's address or what `hash_on` says: the same one each time while it lasts.
    ConsistentHash,
}

/// Time limits of a forwarded request. Each bounds a wait, not the whole: a body may take as long as it moves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct TimeLimits {
    /// Until the upstream accepted the connection.
    #[serde(serialize_with = "millis")]
    pub connect: Duration,
    /// Until the upstream began to answer.
    #[serde(serialize_with = "millis")]
    pub response: Duration,
    /// Between two pieces of a body or of a tunnel, either way.
    #[serde(serialize_with = "millis")]
    pub idle: Duration,
    /// Until a workspace or a machine is awake and accepted the connection; takes the place of `connect` there.
    #[serde(serialize_with = "millis")]
    pub wake: Duration,
}

/// What a consistent hash is taken of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HashOn {
    /// The client's address.
    RemoteIp,
    /// The path of the request.
    Path,
    /// The value of a request header; requests without it go by the client's address.
    Header(String),
}

/// Forwarding requests over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct ProxySpec {
    /// At least one.
    pub upstreams: Vec<Upstream>,
    /// How one is picked.
    pub balance: Balance,
    /// What a consistent hash is taken of.
    pub hash_on: HashOn,
    /// How upstreams are looked after.
    pub care: Care,
    /// How often a request that may be repeated is sent to another upstream when one fails with it.
    pub retries: u32,
    /// The version spoken.
    pub version: HttpVersion,
    /// Time limits.
    pub limits: TimeLimits,
    /// Whether an `Upgrade: websocket` is passed on.
    pub websocket: bool,
    /// Send this as `Host` instead of what the client asked for.
    pub host: Option<String>,
}

/// A redirection to the same place by HTTPS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct RedirectSpec {
    /// 301, 302, 307 or 308.
    pub status: u16,
    /// The port in the new address; absent where it is 443.
    pub port: Option<u16>,
}

/// What ends a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Terminator {
    /// Forwards the request.
    HttpProxy(ProxySpec),
    /// Answers by itself.
    Static(Response),
    /// Sends the client to HTTPS.
    RedirectHttps(RedirectSpec),
    /// Forwards bytes.
    TcpForward {
        /// At least one.
        upstreams: Vec<Upstream>,
        /// How one is picked.
        balance: Balance,
        /// Time limits; `response` does not apply.
        limits: TimeLimits,
        /// How upstreams are looked after.
        care: Care,
    },
    /// Forwards datagrams.
    UdpForward {
        /// At least one.
        upstreams: Vec<Upstream>,
        /// How one is picked for a new client.
        balance: Balance,
        /// How long a client's mapping lasts without a datagram.
        #[serde(serialize_with = "millis")]
        idle: Duration,
    },
    /// Runs a program for each request, by CGI.
    Cgi(CgiSpec),
    /// Closes without an answer. No rule writes it: it stands where no rule matches.
    Close,
    /// Sends a response on once the response phase is through.
    Send,
}

pub(crate) fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

const TYPES: [&str; 11] = [
    "tcp_forward",
    "udp_forward",
    "http_proxy",
    "http1_proxy",
    "http2_proxy",
    "http3_proxy",
    "unix_proxy",
    "static",
    "redirect_https",
    "websocket",
    "cgi",
];

impl Default for TimeLimits {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { connect: Duration::from_secs(5), response: minute, idle: minute, wake: minute }
    }
}

impl Terminator {
    pub(crate) fn parse(value: &Json, path: &str) -> Result<Self, Problem> {
        let mut section = Section::new(value, path)?;
        let kind = section.require_text("type")?;
        let terminator = match kind {
            "http_proxy" => Self::HttpProxy(read_proxy(&mut section, HttpVersion::Auto)?),
            "http1_proxy" => Self::HttpProxy(read_proxy(&mut section, HttpVersion::H1)?),
            "http2_proxy" => Self::HttpProxy(read_proxy(&mut section, HttpVersion::H2)?),
            "http3_proxy" => Self::HttpProxy(read_proxy(&mut section, HttpVersion::H3)?),
            "unix_proxy" => Self::HttpProxy(read_unix(&mut section)?),
            "websocket" => Self::HttpProxy(ProxySpec { websocket: true, ..read_proxy(&mut section, HttpVersion::H1)? }),
            "static" => Self::Static(Response::read(&mut section, None)?),
            "redirect_https" => Self::RedirectHttps(read_redirect(&mut section)?),
            "tcp_forward" => {
                transport(&mut section, "tcp")?;
                let upstreams = Upstream::read(&mut section)?;
                let limits = read_limits(&mut section, Duration::from_secs(600))?;
                let care = Care::read(&mut section, false)?;
                Self::TcpForward { upstreams, balance: read_balance(&mut section)?, limits, care }
            }
            "udp_forward" => {
                transport(&mut section, "udp")?;
                let upstreams = Upstream::read(&mut section)?;
                let idle = section.duration("idle_timeout")?.unwrap_or(Duration::from_secs(60));
                if idle.is_zero() {
                    return Err(Problem::new(section.path("idle_timeout"), "must be more than zero"));
                }
                if let Some(other) =
                    upstreams.iter().find(|u| !matches!(u.address, UpstreamAddress::Tcp { .. }) || u.tls.is_some())
                {
                    let message = format!("{} takes no datagrams; write \"host:port\"", other.address);
                    return Err(Problem::new(section.path("upstreams"), message));
                }
                Self::UdpForward { upstreams, balance: read_balance(&mut section)?, idle }
            }
            "cgi" => Self::Cgi(CgiSpec::read(&mut section)?),
            other => {
                return Err(Problem::new(section.path("type"), format!("{other:?}: {}", suggest(other, TYPES))));
            }
        };
        section.finish()?;
        Ok(terminator)
    }

    /// The phase that a path must have reached to end here.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self {
            Self::TcpForward { .. } | Self::UdpForward { .. } | Self::Close => Phase::Raw,
            Self::HttpProxy(_) | Self::Static(_) | Self::RedirectHttps(_) | Self::Cgi(_) => Phase::Request,
            Self::Send => Phase::Response,
        }
    }

    /// The transport that it takes bytes from.
    #[must_use]
    pub fn transport(&self) -> Transport {
        if matches!(self, Self::UdpForward { .. }) { Transport::Udp } else { Transport::Tcp }
    }

    /// The name that a rule calls it by.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::HttpProxy(spec) if spec.websocket => "websocket",
            Self::HttpProxy(_) => "http_proxy",
            Self::Static(_) => "static",
            Self::RedirectHttps(_) => "redirect_https",
            Self::TcpForward { .. } => "tcp_forward",
            Self::UdpForward { .. } => "udp_forward",
            Self::Cgi(_) => "cgi",
            Self::Close => "close",
            Self::Send => "send",
        }
    }
}

/// `transport` may repeat what the type says; anything else contradicts it.
fn transport(section: &mut Section<'_>, expected: &str) -> Result<(), Problem> {
    match section.text("transport")? {
        Some(other) if other != expected => {
            Err(Problem::new(section.path("transport"), format!("{other:?} contradicts the type; it is {expected:?}")))
        }
        _ => Ok(()),
    }
}

fn read_proxy(section: &mut Section<'_>, version: HttpVersion) -> Result<ProxySpec, Problem> {
    let mut upstreams = Upstream::read(section)?;
    let version = match section.text("version")? {
        None => version,
        Some("auto") => HttpVersion::Auto,
        Some("h1") => HttpVersion::H1,
        Some("h2") => HttpVersion::H2,
        Some("h3") => HttpVersion::H3,
        Some(other) => {
            let message = format!("{other:?}: {}", suggest(other, ["auto", "h1", "h2", "h3"]));
            return Err(Problem::new(section.path("version"), message));
        }
    };
    if version == HttpVersion::H3 {
        for upstream in &mut upstreams {
            if !matches!(upstream.address, UpstreamAddress::Tcp { .. }) {
                let message = format!("{} cannot be reached by HTTP/3; write \"host:port\"", upstream.address);
                return Err(Problem::new(section.path("upstreams"), message));
            }
            // There is no HTTP/3 in the clear.
            upstream.tls.get_or_insert_default();
        }
    }
    let host = match section.text("host")? {
        None => None,
        Some(host) => Some(crate::response::header_value(host, &section.path("host"))?),
    };
    if let Some(other) = upstreams.iter().find(|u| u.proxy_protocol.is_some()) {
        let message = format!("{}: connections are shared by clients, so only tcp_forward can name one", other.address);
        return Err(Problem::new(section.path("send_proxy_protocol"), message));
    }
    Ok(ProxySpec {
        upstreams,
        balance: read_balance(section)?,
        hash_on: read_hash_on(section)?,
        care: Care::read(section, true)?,
        retries: section.number("retries", 0..=5)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        version,
        limits: read_limits(section, TimeLimits::default().idle)?,
        websocket: section.flag("websocket")?.unwrap_or(false),
        host,
    })
}

/// `unix_proxy` takes its socket as `path` or as any upstream form that is a socket.
fn read_unix(section: &mut Section<'_>) -> Result<ProxySpec, Problem> {
    let Some(path) = section.text("path")? else {
        let spec = read_proxy(section, HttpVersion::H1)?;
        return match spec.upstreams.iter().find(|u| !matches!(u.address, UpstreamAddress::Unix(_))) {
            None => Ok(spec),
            Some(other) => Err(Problem::new(
                section.path("upstream"),
                format!("{} is no Unix socket; write \"unix:/path\"", other.address),
            )),
        };
    };
    let upstream = Upstream::parse(&format!("unix:{path}"), &section.path("path"))?;
    Ok(ProxySpec {
        upstreams: vec![upstream],
        balance: Balance::RoundRobin,
        hash_on: HashOn::RemoteIp,
        care: Care::read(section, true)?,
        retries: 0,
        version: HttpVersion::H1,
        limits: read_limits(section, TimeLimits::default().idle)?,
        websocket: section.flag("websocket")?.unwrap_or(false),
        host: None,
    })
}

fn read_balance(section: &mut Section<'_>) -> Result<Balance, Problem> {
    match section.text("balance")? {
        None | Some("round_robin") => Ok(Balance::RoundRobin),
        Some("least_requests") => Ok(Balance::LeastRequests),
        Some("consistent_hash") => Ok(Balance::ConsistentHash),
        Some(other) => {
            let known = ["round_robin", "least_requests", "consistent_hash"];
            Err(Problem::new(section.path("balance"), format!("{other:?}: {}", suggest(other, known))))
        }
    }
}

fn read_hash_on(section: &mut Section<'_>) -> Result<HashOn, Problem> {
    let path = section.path("hash_on");
    match section.text("hash_on")? {
        None | Some("remote.ip") => Ok(HashOn::RemoteIp),
        Some("http.uri.path") => Ok(HashOn::Path),
        Some(other) => match other.strip_prefix("http.header.") {
            Some(name) if crate::field::is_token(name) => Ok(HashOn::Header(name.to_ascii_lowercase())),
            _ => {
                let known = ["remote.ip", "http.uri.path", "http.header.<name>"];
                Err(Problem::new(path, format!("{other:?}: {}", suggest(other, known))))
            }
        },
    }
}

/// `timeouts: {connect, response, idle, wake}`, or `connect_timeout` and `idle_timeout` beside the upstream.
pub(crate) fn read_limits(section: &mut Section<'_>, idle: Duration) -> Result<TimeLimits, Problem> {
    let mut limits = TimeLimits { idle, ..TimeLimits::default() };
    if let Some(value) = section.get("timeouts") {
        let mut inner = Section::new(value, section.path("timeouts"))?;
        limits.connect = inner.duration("connect")?.unwrap_or(limits.connect);
        limits.response = inner.duration("response")?.or(inner.duration("total")?).unwrap_or(limits.response);
        limits.idle = inner.duration("idle")?.unwrap_or(limits.idle);
        limits.wake = inner.duration("wake")?.unwrap_or(limits.wake);
        inner.finish()?;
    }
    limits.connect = section.duration("connect_timeout")?.unwrap_or(limits.connect);
    limits.idle = section.duration("idle_timeout")?.unwrap_or(limits.idle);
    let TimeLimits { connect, response, idle, wake } = &limits;
    for (name, limit) in [("connect", connect), ("response", response), ("idle", idle), ("wake", wake)] {
        if limit.is_zero() {
            return Err(Problem::new(section.path(&format!("timeouts.{name}")), "must be more than zero"));
        }
    }
    Ok(limits)
}

fn read_redirect(section: &mut Section<'_>) -> Result<RedirectSpec, Problem> {
    let status = section.number("status", 301..=308)?.unwrap_or(308);
    if !matches!(status, 301 | 302 | 307 | 308) {
        return Err(Problem::new(section.path("status"), "a redirection is 301, 302, 307 or 308"));
    }
    let port = section.number("port", 1..=65_535)?.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 443);
    Ok(RedirectSpec { status: u16::try_from(status).unwrap_or(308), port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_type_parses_and_names_itself() {
        for (value, name) in [
            (json!({"type": "http_proxy", "upstream": "a:1"}), "http_proxy"),
            (json!({"type": "http1_proxy", "upstreams": ["a:1", "b:1"], "balance": "least_requests"}), "http_proxy"),
            (json!({"type": "unix_proxy", "path": "/run/a"}), "http_proxy"),
            (json!({"type": "unix_proxy", "upstream": "unix:/run/a"}), "http_proxy"),
            (json!({"type": "websocket", "upstream": "a:1"}), "websocket"),
            (json!({"type": "static", "status": 200, "body": "aGk="}), "static"),
            (json!({"type": "redirect_https"}), "redirect_https"),
            (json!({"type": "tcp_forward", "upstream": "a:1", "idle_timeout": "5m"}), "tcp_forward"),
            (json!({"type": "udp_forward", "upstream": "a:1", "transport": "udp"}), "udp_forward"),
            (json!({"type": "cgi", "command": ["/x"]}), "cgi"),
        ] {
            assert_eq!(Terminator::parse(&value, "terminate").unwrap().name(), name, "{value}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_field() {
        for (value, field) in [
            (json!({"type": "http_prox", "upstream": "a:1"}), "terminate.type"),
            (json!({"type": "http_proxy"}), "terminate.upstream"),
            (json!({"type": "http_proxy", "upsteam": "a:1"}), "terminate.upsteam"),
            (json!({"type": "http_proxy", "upstream": "a:1", "version": "h4"}), "terminate.version"),
            (
                json!({"type": "http_proxy", "upstream": "a:1", "timeouts": {"connect": 0}}),
                "terminate.timeouts.connect",
            ),
            (json!({"type": "unix_proxy", "upstream": "a:1"}), "terminate.upstream"),
            (json!({"type": "redirect_https", "status": 303}), "terminate.status"),
            (json!({"type": "tcp_forward", "upstream": "a:1", "transport": "udp"}), "terminate.transport"),
        ] {
            assert_eq!(Terminator::parse(&value, "terminate").unwrap_err().field, field, "{value}");
        }
    }
}
