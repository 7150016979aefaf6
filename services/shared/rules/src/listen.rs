//! Where a rule listens: `127.0.0.1:80`, `[::1]:80`, `:443` (both families), `tcp:443`, `udp:53`, `udp:127.0.0.1:53`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::Serialize;

use crate::error::Problem;

/// What carries a listener's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// Requests over QUIC, which is carried by datagrams: HTTP/3. Rules write it as `udp:`.
    Quic,
}

impl Transport {
    /// The name that rules and logs call it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Quic => "quic",
        }
    }
}

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ListenSpec {
    /// Streams or datagrams.
    pub transport: Transport,
    /// The address; a port alone gives one spec for each family.
    pub address: SocketAddr,
}

impl ListenSpec {
    /// The same place as its socket sees it.
    #[must_use]
    pub fn socket(self) -> Self {
        let transport = if self.transport == Transport::Tcp { Transport::Tcp } else { Transport::Udp };
        Self { transport, ..self }
    }

    pub(crate) fn parse(text: &str, path: &str) -> Result<Vec<Self>, Problem> {
        let trimmed = text.trim();
        let (transport, rest, prefixed) = match (trimmed.strip_prefix("tcp:"), trimmed.strip_prefix("udp:")) {
            (Some(rest), _) => (Transport::Tcp, rest, true),
            (_, Some(rest)) => (Transport::Udp, rest, true),
            _ => (Transport::Tcp, trimmed, false),
        };
        let wrong = || {
            Problem::new(
                path,
                format!(
                    "{text:?} is no listen address; write \"127.0.0.1:8080\", \"[::1]:8080\", \":8080\" or \"udp:53\""
                ),
            )
        };
        let bare = rest
            .strip_prefix("*:")
            .or_else(|| rest.strip_prefix(':'))
            .or_else(|| Some(rest).filter(|r| prefixed && !r.is_empty() && r.bytes().all(|b| b.is_ascii_digit())));
        let addresses = match bare {
            Some(port) => {
                let port: u16 = port.parse().map_err(|_| wrong())?;
                vec![
                    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
                    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
                ]
            }
            None => vec![rest.parse().map_err(|_| wrong())?],
        };
        if addresses[0].port() == 0 {
            return Err(Problem::new(path, format!("{text:?}: port 0 would be another one at each start; name one")));
        }
        Ok(addresses.into_iter().map(|address| Self { transport, address }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, transport, addresses) in [
            ("127.0.0.1:80", Transport::Tcp, &["127.0.0.1:80"][..]),
            ("[::1]:80", Transport::Tcp, &["[::1]:80"]),
            (":443", Transport::Tcp, &["0.0.0.0:443", "[::]:443"]),
            ("*:443", Transport::Tcp, &["0.0.0.0:443", "[::]:443"]),
            ("tcp:443", Transport::Tcp, &["0.0.0.0:443", "[::]:443"]),
            ("udp:53", Transport::Udp, &["0.0.0.0:53", "[::]:53"]),
            ("udp::53", Transport::Udp, &["0.0.0.0:53", "[::]:53"]),
            ("udp:127.0.0.1:53", Transport::Udp, &["127.0.0.1:53"]),
        ] {
            let specs = ListenSpec::parse(text, "listen").unwrap();
            let found: Vec<String> = specs.iter().map(|s| s.address.to_string()).collect();
            assert_eq!(found, addresses, "{text}");
            assert!(specs.iter().all(|s| s.transport == transport), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "443", ":0", "127.0.0.1:0", "localhost:80", "udpx:53", "TCP:443", ":99999", "1.2.3.4"] {
            assert!(ListenSpec::parse(text, "listen").is_err(), "{text}");
        }
    }
}
