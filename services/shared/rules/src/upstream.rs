//! Where a rule sends to: `host:port`, `http://host:port`, `https://host:port`, `unix:/path`, `workspace:name:port`,
//! `machine:name:port`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::error::Problem;
use crate::section::Section;
use crate::tls::TlsCert;

/// The address of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// A host (address or name) and a port.
    Tcp {
        /// An IP address without brackets, or a name.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
    /// A port of a workspace, known by the bus.
    Workspace {
        /// The workspace's name.
        name: String,
        /// The port inside it.
        port: u16,
    },
    /// A port of a machine, known by the bus.
    Machine {
        /// The machine's name.
        name: String,
        /// The port inside it.
        port: u16,
    },
}

/// TLS towards an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamTls {
    /// The name that the certificate must carry; the upstream's host if absent.
    pub verify_hostname: Option<String>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
    /// PEM: trust these authorities instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown to the upstream where it asks for one.
    pub client_cert: Option<TlsCert>,
}

/// One upstream of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Upstream {
    /// Where.
    pub address: UpstreamAddress,
    /// TLS, where the address or the rule asks for it.
    pub tls: Option<UpstreamTls>,
    /// Tell it who the client is before the client's own bytes.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl Upstream {
    pub(crate) fn parse(text: &str, path: &str) -> Result<Self, Problem> {
        let plain = |address| Ok(Self { address, tls: None, proxy_protocol: None });
        if let Some(socket) = text.strip_prefix("unix:") {
            let socket = socket.strip_prefix("//").unwrap_or(socket);
            if !socket.starts_with('/') {
                return Err(Problem::new(path, format!("{text:?}: the path of a Unix socket must be absolute")));
            }
            return plain(UpstreamAddress::Unix(PathBuf::from(socket)));
        }
        if let Some(rest) = text.strip_prefix("workspace:") {
            let (name, port) = host_port(rest, None, text, path)?;
            return plain(UpstreamAddress::Workspace { name, port });
        }
        if let Some(rest) = text.strip_prefix("machine:") {
            let (name, port) = host_port(rest, None, text, path)?;
            return plain(UpstreamAddress::Machine { name, port });
        }
        let (rest, tls, default_port) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (rest, Some(UpstreamTls::default()), Some(443)),
            (_, Some(rest)) => (rest, None, Some(80)),
            _ => (text, None, None),
        };
        let (host, port) = host_port(rest.strip_suffix('/').unwrap_or(rest), default_port, text, path)?;
        Ok(Self { address: UpstreamAddress::Tcp { host, port }, tls, proxy_protocol: None })
    }

    /// Reads `upstream` or `upstreams` of a terminator.
    pub(crate) fn read(section: &mut Section<'_>) -> Result<Vec<Self>, Problem> {
        let one = section.text("upstream")?;
        let many = section.texts("upstreams", true)?;
        let mut upstreams = match (one, many) {
            (Some(_), Some(_)) => {
                return Err(Problem::new(section.path("upstreams"), "give either upstream or upstreams, not both"));
            }
            (Some(text), None) => vec![Self::parse(text, &section.path("upstream"))?],
            (None, Some(texts)) => texts
                .iter()
                .enumerate()
                .map(|(i, text)| Self::parse(text, &format!("{}[{i}]", section.path("upstreams"))))
                .collect::<Result<_, _>>()?,
            (None, None) => return Err(section.missing("upstream")),
        };
        if let Some(value) = section.get("tls") {
            let tls = UpstreamTls::parse(value, &section.path("tls"))?;
            for upstream in &mut upstreams {
                upstream.tls = Some(tls.clone());
            }
        }
        let version = match section.text("send_proxy_protocol")? {
            None => None,
            Some("v1") => Some(ProxyProtocol::V1),
            Some("v2") => Some(ProxyProtocol::V2),
            Some(other) => {
                let message = format!("{other:?}: known: v1, v2");
                return Err(Problem::new(section.path("send_proxy_protocol"), message));
            }
        };
        for upstream in &mut upstreams {
            upstream.proxy_protocol = version;
        }
        Ok(upstreams)
    }
}

impl UpstreamTls {
    fn parse(value: &Json, path: &str) -> Result<Self, Problem> {
        if let Json::Bool(on) = value {
            return if *on { Ok(Self::default()) } else { Err(Problem::new(path, "leave it out for plain text")) };
        }
        let mut section = Section::new(value, path)?;
        let tls = Self {
            verify_hostname: section.text("verify_hostname")?.map(str::to_ascii_lowercase),
            insecure_skip_verify: section.flag("insecure_skip_verify")?.unwrap_or(false),
            ca_file: section.text("ca_file")?.map(PathBuf::from),
            client_cert: match (section.text("cert_file")?, section.text("key_file")?) {
                (None, None) => None,
                (Some(cert), Some(key)) => {
                    Some(TlsCert { cert_file: cert.into(), key_file: key.into(), ocsp_file: None })
                }
                (Some(_), None) => return Err(section.missing("key_file")),
                (None, Some(_)) => return Err(section.missing("cert_file")),
            },
        };
        section.finish()?;
        Ok(tls)
    }
}

fn host_port(rest: &str, default: Option<u16>, whole: &str, path: &str) -> Result<(String, u16), Problem> {
    let wrong = |why: &str| {
        let forms = r#""host:port", "unix:/path", "workspace:NAME:PORT" or "machine:NAME:PORT""#;
        Problem::new(path, format!("{whole:?} is no upstream ({why}); write {forms}"))
    };
    if let Some(v6) = rest.strip_prefix('[') {
        let (host, after) = v6.split_once(']').ok_or_else(|| wrong("a bracket is open"))?;
        host.parse::<IpAddr>().map_err(|_| wrong("not an IPv6 address"))?;
        let port = match (after.strip_prefix(':'), default) {
            (Some(port), _) => port.parse().map_err(|_| wrong("not a port"))?,
            (None, Some(port)) if after.is_empty() => port,
            _ => return Err(wrong("the port is missing")),
        };
        return Ok((host.to_owned(), port));
    }
    let (host, port) = match (rest.rsplit_once(':'), default) {
        (Some((host, port)), _) => (host, port.parse().map_err(|_| wrong("not a port"))?),
        (None, Some(port)) => (rest, port),
        (None, None) => return Err(wrong("the port is missing")),
    };
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if host.is_empty() || !host.chars().all(well_formed) {
        return Err(wrong("not a host"));
    }
    if port == 0 {
        return Err(wrong("port 0"));
    }
    Ok((host.to_ascii_lowercase(), port))
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Workspace { name, port } => write!(f, "workspace:{name}:{port}"),
            Self::Machine { name, port } => write!(f, "machine:{name}:{port}"),
        }
    }
}

impl Serialize for UpstreamAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, shown, tls) in [
            ("127.0.0.1:9000", "127.0.0.1:9000", false),
            ("[::1]:9000", "[::1]:9000", false),
            ("App.internal:80", "app.internal:80", false),
            ("http://app", "app:80", false),
            ("https://app/", "app:443", true),
            ("https://app:8443", "app:8443", true),
            ("unix:/run/app.sock", "unix:/run/app.sock", false),
            ("unix:///run/app.sock", "unix:/run/app.sock", false),
            ("workspace:web:8080", "workspace:web:8080", false),
            ("machine:db:5432", "machine:db:5432", false),
        ] {
            let upstream = Upstream::parse(text, "u").unwrap();
            assert_eq!((upstream.address.to_string().as_str(), upstream.tls.is_some()), (shown, tls), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in
            ["", "app", "app:0", "app:x", "[::1", "[app]:80", "http://app/path", "unix:app.sock", "a b:80", ":80"]
        {
            assert!(Upstream::parse(text, "u").is_err(), "{text}");
        }
    }
}
