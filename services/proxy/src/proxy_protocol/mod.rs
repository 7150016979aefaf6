//! The PROXY protocol, versions 1 and 2: for whom a connection is made, told before its first byte.

mod ends;

use std::net::SocketAddr;
use std::time::Duration;

use ppp::{HeaderResult, PartialResult as _, v1, v2};
use shipote_rules::ProxyProtocol;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use self::ends::ends;
use crate::io::more;
use crate::walk::{Peer, canonical};

/// Most bytes of a header: version 2 may carry much that nobody here reads.
const MAX: usize = 4096;

/// Why a connection that must begin with a header does not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the connection does not begin with the PROXY protocol")]
    Wrong,
    #[error("the header of the PROXY protocol took too long")]
    TimedOut,
    #[error("read the header of the PROXY protocol: {0}")]
    Io(#[from] std::io::Error),
}

/// The header for an upstream.
pub(crate) fn header(version: ProxyProtocol, peer: &Peer) -> Vec<u8> {
    let ends = |s: SocketAddr| SocketAddr::new(canonical(s.ip()), s.port());
    let (mut from, mut to) = (ends(peer.remote), ends(peer.local));
    // Both ends must be of one family.
    if from.is_ipv4() != to.is_ipv4() {
        let mapped = |s: SocketAddr| match s.ip() {
            std::net::IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), s.port()),
            std::net::IpAddr::V6(_) => s,
        };
        (from, to) = (mapped(from), mapped(to));
    }
    match version {
        ProxyProtocol::V1 => v1::Addresses::from((from, to)).to_string().into_bytes(),
        ProxyProtocol::V2 => {
            let whole = v2::Builder::with_addresses(
                v2::Version::Two | v2::Command::Proxy,
                v2::Protocol::Stream,
                v2::Addresses::from((from, to)),
            )
            .build();
            whole.unwrap_or_default()
        }
    }
}

/// Takes the header off a connection; the client and the address it connected to, or `None` where the peer speaks for
/// itself.
pub(crate) async fn take(
    stream: &mut TcpStream,
    limit: Duration,
) -> Result<Option<(SocketAddr, SocketAddr)>, HeaderError> {
    tokio::time::timeout(limit, read(stream)).await.map_err(|_| HeaderError::TimedOut)?
}

async fn read(stream: &mut TcpStream) -> Result<Option<(SocketAddr, SocketAddr)>, HeaderError> {
    let mut bytes = vec![0; MAX];
    let mut have = 0;
    loop {
        let n = more(stream, &mut bytes, have).await?;
        if n <= have {
            return Err(HeaderError::Wrong);
        }
        have = n;
        let result = HeaderResult::parse(&bytes[..n]);
        if result.is_incomplete() && n < MAX {
            continue;
        }
        let Some((length, ends)) = ends(&result) else { return Err(HeaderError::Wrong) };
        stream.read_exact(&mut bytes[..length]).await?;
        return Ok(ends);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_rubbish_is_not() {
        for (from, to) in [("10.0.0.1:5", "10.0.0.2:80"), ("[2001:db8::1]:5", "[2001:db8::2]:80")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let peer = Peer::for_tests(from, to);
            for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
                let mut bytes = header(version, &peer);
                let length = bytes.len();
                bytes.extend_from_slice(b"GET / HTTP/1.1");
                assert_eq!(ends(&HeaderResult::parse(&bytes)), Some((length, Some((from, to)))), "{version:?} {from}");
                for n in 1..length {
                    assert!(ends(&HeaderResult::parse(&bytes[..n])).is_none(), "{version:?} {n}");
                }
            }
        }
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PROXY TCP4 1.2.3.4\r\n", b"PROXY TCP4 999.1.1.1 1.1.1.1 1 2\r\n"]
        {
            assert!(ends(&HeaderResult::parse(bytes)).is_none());
        }
        assert_eq!(ends(&HeaderResult::parse(b"PROXY UNKNOWN\r\n")), Some((15, None)));
    }
}
