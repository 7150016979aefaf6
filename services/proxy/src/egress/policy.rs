//! What one client may reach: hosts by name, by everything below a name, or by address, each with its ports.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::address;

/// An entry of an allow-list is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{entry:?} is no host ({reason}); write \"example.com\", \"*.example.com:8443\", \"10.0.0.0/8:5432\" or \"host:*\""
)]
pub struct EntryError {
    entry: String,
    reason: &'static str,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Host,
    ports: Ports,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Any,
    Name(String),
    /// Names below this one, not itself.
    Below(String),
    /// Addresses: also those that allowed names may resolve to although they are not public.
    Network(IpNet),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ports {
    /// 80 and 443.
    Web,
    One(u16),
    All,
}

impl Ports {
    fn has(self, port: u16) -> bool {
        match self {
            Self::Web => matches!(port, 80 | 443),
            Self::One(one) => one == port,
            Self::All => true,
        }
    }
}

/// Why something is not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial(pub(super) String);

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An allow-list; an empty one allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policy {
    entries: Vec<Entry>,
}

impl Policy {
    pub(super) fn parse(texts: &[String]) -> Result<Self, EntryError> {
        texts.iter().map(|t| Entry::parse(t)).collect::<Result<_, _>>().map(|entries| Self { entries })
    }

    /// Whether this host may be asked for at all, by the name or address that the client wrote.
    pub(super) fn allows(&self, host: &str, port: u16) -> Result<(), Denial> {
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let ip: Option<IpAddr> = name.parse().ok();
        let named = self.entries.iter().filter(|e| e.host.covers(&name, ip));
        let mut other_port = false;
        for entry in named {
            if entry.ports.has(port) {
                return Ok(());
            }
            other_port = true;
        }
        Err(Denial(if other_port {
            format!("{host} is allowed, but not its port {port}; allow \"{host}:{port}\"")
        } else {
            format!("{host} is not on the list of allowed hosts; allow \"{host}:{port}\"")
        }))
    }

    /// Whether an address that an allowed host resolved to may be connected to.
    pub(super) fn allows_address(&self, host: &str, address: SocketAddr) -> Result<(), Denial> {
        let ip = address.ip().to_canonical();
        let Some(why) = address::private(address.ip()) else { return Ok(()) };
        let network = |e: &&Entry| matches!(&e.host, Host::Network(net) if net.contains(&ip));
        if self.entries.iter().filter(network).any(|e| e.ports.has(address.port())) {
            return Ok(());
        }
        Err(Denial(format!("{host} is at {ip}, and {why}; allow \"{ip}:{}\" if that is meant", address.port())))
    }
}

impl Host {
    fn covers(&self, name: &str, ip: Option<IpAddr>) -> bool {
        match (self, ip) {
            (Self::Any, _) => true,
            (Self::Name(own), None) => own == name,
            (Self::Below(parent), None) => {
                name.strip_suffix(parent.as_str()).and_then(|r| r.strip_suffix('.')).is_some_and(|r| !r.is_empty())
            }
            (Self::Network(net), Some(ip)) => net.contains(&ip.to_canonical()),
            _ => false,
        }
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, EntryError> {
        let wrong = |reason| EntryError { entry: text.to_owned(), reason };
        let bare = text.trim().to_ascii_lowercase();
        // An address of IPv6 has colons of its own: with a port it stands in brackets.
        let whole: Option<IpNet> = bare.parse().ok().or_else(|| bare.parse::<IpAddr>().ok().map(IpNet::from));
        if let Some(net) = whole {
            return Ok(Self { host: Host::Network(net), ports: Ports::Web });
        }
        let (host, ports) = match bare.rsplit_once(':') {
            None => (bare.as_str(), Ports::Web),
            Some((host, "*")) => (host, Ports::All),
            Some((host, port)) => {
                let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(|| wrong("its port is none"))?;
                (host, Ports::One(port))
            }
        };
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let net: Option<IpNet> = host.parse().ok().or_else(|| host.parse::<IpAddr>().ok().map(IpNet::from));
        let name = |name: &str| {
            let label = |l: &str| {
                !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            };
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.len() <= 253 && name.split('.').all(label) { Ok(name.to_owned()) } else { Err(wrong("not a name")) }
        };
        let host = match (net, host) {
            (Some(net), _) => Host::Network(net),
            (None, "*") => Host::Any,
            (None, host) => match host.strip_prefix("*.") {
                Some(parent) => Host::Below(name(parent)?),
                None => Host::Name(name(host)?),
            },
        };
        Ok(Self { host, ports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(entries: &[&str]) -> Policy {
        Policy::parse(&entries.iter().map(|&e| e.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn hosts_and_ports() {
        let p = policy(&[
            "example.com",
            "*.b.example:8443",
            "any.example:*",
            "10.0.0.0/8:5432",
            "[2001:db8::1]:80",
            "1.1.1.1",
        ]);
        for (host, port, allowed) in [
            ("example.com", 443, true),
            ("EXAMPLE.com.", 80, true),
            ("example.com", 22, false),
            ("www.example.com", 443, false),
            ("evilexample.com", 443, false),
            ("a.b.example", 8443, true),
            ("x.a.b.example", 8443, true),
            ("b.example", 8443, false),
            (".b.example", 8443, false),
            ("a.b.example", 443, false),
            ("any.example", 22, true),
            ("10.1.2.3", 5432, true),
            ("::ffff:10.1.2.3", 5432, true),
            ("10.1.2.3", 80, false),
            ("2001:db8::1", 80, true),
            ("1.1.1.1", 443, true),
            ("1.1.1.2", 443, false),
            ("", 443, false),
        ] {
            assert_eq!(p.allows(host, port).is_ok(), allowed, "{host}:{port}");
        }
        assert!(policy(&[]).allows("a", 80).is_err());
        assert!(policy(&["*"]).allows("a", 80).is_ok() && policy(&["*"]).allows("a", 81).is_err());
    }

    #[test]
    fn names_that_lead_home_are_refused_unless_the_address_is_allowed() {
        let open = policy(&["*:*"]);
        for address in ["127.0.0.1:80", "169.254.169.254:80", "10.0.0.1:80", "[::1]:80", "[::ffff:169.254.169.254]:80"]
        {
            let denial = open.allows_address("a.example", address.parse().unwrap()).unwrap_err();
            assert!(denial.0.contains("allow"), "{denial}");
        }
        assert!(open.allows_address("a.example", "93.184.216.34:80".parse().unwrap()).is_ok());
        let inner = policy(&["db.internal:5432", "10.0.0.0/8:5432"]);
        assert!(inner.allows_address("db.internal", "10.1.1.1:5432".parse().unwrap()).is_ok());
        assert!(inner.allows_address("db.internal", "10.1.1.1:80".parse().unwrap()).is_err());
    }

    #[test]
    fn entries_that_are_none_are_refused() {
        for text in ["", "a b", "*.", "a:0", "a:x", "a:70000", "*.*.a", "a..b", "http://a", "a/b", "[::1"] {
            assert!(Policy::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
    }
}
