//! What a machine may reach: `HOST[:PORT]`, one rule each.
//!
//! A host is a name, a name with `*.` before it (all names beneath, not itself), an address, or `*` (any name). A port is a
//! number or `*`; without one it is 80 and 443.

use std::net::IpAddr;

/// Rules that a machine may have.
pub const RULES_MAX: usize = 256;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    host: Host,
    port: Port,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Name(String),
    Beneath(String),
    Address(IpAddr),
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Web,
    One(u16),
    Any,
}

/// Where a guest wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name in lower case, or an address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Which addresses a permitted name may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// The rule names them itself.
    All,
    /// Any but the host's own loopback and link-local ones.
    Elsewhere,
    /// Only public ones: a rule that names nobody in particular opens no way into private networks.
    Public,
}

impl Rule {
    /// Reads a rule.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("egress rule {text:?}: {what}; write HOST:PORT, *.DOMAIN:PORT or HOST");
        let (host, port) = split(text);
        let port = match port {
            None => Port::Web,
            Some("*") => Port::Any,
            Some(port) => Port::One(port.parse().ok().filter(|&p| p > 0).ok_or_else(|| wrong("the port is none"))?),
        };
        let host = host.strip_suffix('.').filter(|host| *host != "*").unwrap_or(host).to_ascii_lowercase();
        let host = if host == "*" {
            Host::Any
        } else if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
            Host::Address(address)
        } else if let Some(domain) = host.strip_prefix("*.") {
            Host::Beneath(name(domain).ok_or_else(|| wrong("the domain is no name"))?)
        } else {
            Host::Name(name(&host).ok_or_else(|| wrong("the host is neither a name nor an address"))?)
        };
        Ok(Self { host, port })
    }

    fn takes(&self, target: &Target) -> Option<Addresses> {
        let port = match self.port {
            Port::Web => matches!(target.port, 80 | 443),
            Port::One(port) => port == target.port,
            Port::Any => true,
        };
        let address: Option<IpAddr> = target.host.parse().ok();
        let addresses = match (&self.host, address) {
            (Host::Address(own), Some(address)) if *own == address => Addresses::All,
            (Host::Name(own), None) if *own == target.host => {
                if own == "localhost" {
                    Addresses::All
                } else {
                    Addresses::Elsewhere
                }
            }
            // Whole labels: `*.example.org` is not `badexample.org`.
            (Host::Beneath(domain), None) => {
                target.host.strip_suffix(domain.as_str())?.strip_suffix('.').filter(|label| !label.is_empty())?;
                Addresses::Public
            }
            (Host::Any, None) => Addresses::Public,
            _ => return None,
        };
        port.then_some(addresses)
    }
}

/// Whether a target is permitted, and at which addresses.
#[must_use]
pub fn permit(rules: &[Rule], target: &Target) -> Option<Addresses> {
    let mut permitted: Vec<Addresses> = rules.iter().filter_map(|rule| rule.takes(target)).collect();
    // The rule that names most precisely counts.
    permitted.sort_by_key(|addresses| match addresses {
        Addresses::All => 0,
        Addresses::Elsewhere => 1,
        Addresses::Public => 2,
    });
    permitted.first().copied()
}

/// Whether a name may be known, at whatever port, and which addresses of it.
#[must_use]
pub fn permit_name(rules: &[Rule], host: &str) -> Option<Addresses> {
    let any_port = |rule: &Rule| Rule { port: Port::Any, ..rule.clone() };
    let rules: Vec<Rule> = rules.iter().map(any_port).collect();
    permit(&rules, &Target { host: host.trim_end_matches('.').to_owned(), port: 1 })
}

impl Target {
    /// Reads `HOST:PORT`, as CONNECT has it (RFC 9110, 9.3.6).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (host, Some(port)) = split(text) else { return None };
        let port = port.parse().ok().filter(|&port| port > 0)?;
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self { host: address.to_canonical().to_string(), port });
        }
        Some(Self { host: name(&host)?, port })
    }
}

impl Addresses {
    /// Whether this address will do.
    #[must_use]
    pub fn take(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let own = address.is_loopback() || address.is_unspecified() || address.is_multicast() || link_local(address);
        match self {
            Self::All => true,
            Self::Elsewhere => !own,
            Self::Public => !own && !private(address),
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast() || address.octets()[0] == 0,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            // RFC 1918, RFC 6598 (shared), RFC 2544 (benchmarks), RFC 5737 (documentation), reserved.
            address.is_private()
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (18..20).contains(&b))
                || address.is_documentation()
                || a >= 240
        }
        IpAddr::V6(address) => {
            // Unique local; NAT64 and 6to4 lead to any IPv4 address.
            let head = address.segments();
            address.is_unique_local() || head[0] == 0x2002 || (head[0] == 0x64 && head[1] == 0xff9b)
        }
    }
}

/// Host and port; an IPv6 address stands in brackets where it has a port.
fn split(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

/// A host name (RFC 1123), in lower case.
fn name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(rules: &[&str], target: &str) -> Option<Addresses> {
        let rules: Vec<Rule> = rules.iter().map(|rule| Rule::parse(rule).unwrap()).collect();
        permit(&rules, &Target::parse(target)?)
    }

    #[test]
    fn whole_labels_and_ports_count() {
        use Addresses::{All, Elsewhere, Public};
        for (rule, target, expected) in [
            ("example.org", "example.org:443", Some(Elsewhere)),
            ("example.org", "EXAMPLE.org.:80", Some(Elsewhere)),
            ("example.org", "example.org:22", None),
            ("example.org:22", "example.org:22", Some(Elsewhere)),
            ("example.org:*", "example.org:9", Some(Elsewhere)),
            ("*.example.org", "a.b.example.org:443", Some(Public)),
            ("*.example.org", "example.org:443", None),
            ("*.example.org", "badexample.org:443", None),
            ("*:443", "anything.net:443", Some(Public)),
            ("*:443", "10.0.0.1:443", None),
            ("127.0.0.1:5000", "127.0.0.1:5000", Some(All)),
            ("127.0.0.1:5000", "[::ffff:127.0.0.1]:5000", Some(All)),
            ("127.0.0.1:5000", "localhost:5000", None),
            ("[::1]:80", "[::1]:80", Some(All)),
            ("::1", "[::1]:443", Some(All)),
            ("localhost:5000", "localhost:5000", Some(All)),
            ("example.org", "example.org.evil.net:443", None),
        ] {
            assert_eq!(allowed(&[rule], target), expected, "{rule} for {target}");
        }
        assert_eq!(allowed(&["*:443", "a.org"], "a.org:443"), Some(Elsewhere));
        for bad in ["", ":80", "a b", "a:0", "a:x", "*.", "http://a", "a/b", "-a", "*.*.a"] {
            assert!(Rule::parse(bad).is_err(), "{bad}");
        }
        for bad in ["a", "a:0", "a:99999", "a b:1", ":1", "user@a:1", "a\r\n:1"] {
            assert!(Target::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_leads_to_no_place_that_its_rule_does_not_mean() {
        use Addresses::{All, Elsewhere, Public};
        for (address, elsewhere, public) in [
            ("93.184.216.34", true, true),
            ("10.1.2.3", true, false),
            ("100.64.0.1", true, false),
            ("127.0.0.1", false, false),
            ("169.254.169.254", false, false),
            ("0.0.0.0", false, false),
            ("::1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("fe80::1", false, false),
            ("fd00::1", true, false),
            ("64:ff9b::a00:1", true, false),
            ("2606:2800:220:1::1", true, true),
        ] {
            let parsed: IpAddr = address.parse().unwrap();
            assert!(All.take(parsed));
            assert_eq!((Elsewhere.take(parsed), Public.take(parsed)), (elsewhere, public), "{address}");
        }
    }
}
