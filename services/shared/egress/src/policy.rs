//! What one client may reach: hosts by name, by everything below a name, or by address, each with its ports.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::address::{is_own, private};

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
pub struct Denial {
    /// What is in the way, and what to allow.
    pub text: String,
    /// The entry that would allow it; empty: there is none.
    pub entry: String,
}

impl Denial {
    /// A denial that no entry of a list would change.
    #[must_use]
    pub fn other(text: String) -> Self {
        Self { text, entry: String::new() }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An allow-list; an empty one allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    entries: Vec<Entry>,
}

impl Policy {
    /// A list as people write it.
    ///
    /// # Errors
    /// The first entry that is none.
    pub fn parse(texts: &[String]) -> Result<Self, EntryError> {
        texts.iter().map(|t| Entry::parse(t)).collect::<Result<_, _>>().map(|entries| Self { entries })
    }

    /// Whether this host may be asked for at all, by the name or address that the client wrote.
    ///
    /// # Errors
    /// The denial.
    pub fn allows(&self, host: &str, port: u16) -> Result<(), Denial> {
        let (name, ip) = canonical(host);
        let named = self.entries.iter().filter(|e| e.host.covers(&name, ip));
        let mut other_port = false;
        for entry in named {
            if entry.ports.has(port) {
                return Ok(());
            }
            other_port = true;
        }
        let entry =
            if matches!(ip, Some(IpAddr::V6(_))) { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let text = if other_port {
            format!("{host} is allowed, but not its port {port}; allow \"{entry}\"")
        } else {
            format!("{host} is not on the list of allowed hosts; allow \"{entry}\"")
        };
        Err(Denial { text, entry })
    }

    /// Whether a name may be known at all: some port of it is allowed.
    ///
    /// # Errors
    /// The denial.
    pub fn knows(&self, host: &str) -> Result<(), Denial> {
        let (name, ip) = canonical(host);
        if self.entries.iter().any(|e| e.host.covers(&name, ip)) {
            return Ok(());
        }
        let text = format!("{name} is not on the list of allowed hosts, and so has no address; allow \"{name}\"");
        Err(Denial { text, entry: name })
    }

    /// Whether an address that an allowed host resolved to may be connected to.
    /// Loopback, link-local, private and reserved addresses and the host's own may only where the list has the address.
    ///
    /// # Errors
    /// The denial.
    pub fn allows_address(&self, host: &str, address: SocketAddr) -> Result<(), Denial> {
        let ip = address.ip().to_canonical();
        let own = || is_own(ip).then_some("it is this host's own");
        let Some(why) = private(address.ip()).or_else(own) else { return Ok(()) };
        if self.networks(ip).any(|e| e.ports.has(address.port())) {
            return Ok(());
        }
        let entry = SocketAddr::new(ip, address.port()).to_string();
        Err(Denial { text: format!("{host} is at {ip}, and {why}; allow \"{entry}\" if that is meant"), entry })
    }

    /// Whether the address of a name may be told: it could be connected to by some port.
    #[must_use]
    pub fn tells(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        (private(ip).is_none() && !is_own(ip)) || self.networks(ip).next().is_some()
    }

    fn networks(&self, ip: IpAddr) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |e| matches!(&e.host, Host::Network(net) if net.contains(&ip)))
    }
}

/// A host as it is compared: without the root's dot, in lower case, and as an address if it is one.
fn canonical(host: &str) -> (String, Option<IpAddr>) {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let ip = name.parse().ok();
    (name, ip)
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
        // An address of IPv6 has colons of its own: with a port it stands in brackets, without one it may.
        let inner = bare.strip_prefix('[').and_then(|b| b.strip_suffix(']')).unwrap_or(&bare);
        let whole: Option<IpNet> = inner.parse().ok().or_else(|| inner.parse::<IpAddr>().ok().map(IpNet::from));
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
            "[2001:db8::2]",
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
            ("2001:db8::2", 443, true),
            ("2001:db8::2", 22, false),
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
            assert!(denial.text.contains("allow"), "{denial}");
        }
        assert!(open.allows_address("a.example", "93.184.216.34:80".parse().unwrap()).is_ok());
        let inner = policy(&["db.internal:5432", "10.0.0.0/8:5432"]);
        assert!(inner.allows_address("db.internal", "10.1.1.1:5432".parse().unwrap()).is_ok());
        assert!(inner.allows_address("db.internal", "10.1.1.1:80".parse().unwrap()).is_err());
    }

    #[test]
    fn names_are_known_by_any_port_and_addresses_told_where_they_could_be_reached() {
        let p = policy(&["a.example:8443", "*.b.example", "10.0.0.0/8:5432"]);
        assert!(p.knows("A.example.").is_ok() && p.knows("x.b.example").is_ok());
        assert_eq!(p.knows("b.example").unwrap_err().entry, "b.example");
        assert!(p.tells([1, 1, 1, 1].into()) && p.tells([10, 1, 1, 1].into()));
        assert!(!p.tells([127, 0, 0, 1].into()) && !p.tells("::ffff:192.168.0.1".parse().unwrap()));
        assert_eq!(p.allows("2001:db8::1", 80).unwrap_err().entry, "[2001:db8::1]:80");
    }

    #[test]
    fn entries_that_are_none_are_refused() {
        for text in ["", "a b", "*.", "a:0", "a:x", "a:70000", "*.*.a", "a..b", "http://a", "a/b", "[::1"] {
            assert!(Policy::parse(&[text.to_owned()]).is_err(), "{text:?}");
        }
    }
}
