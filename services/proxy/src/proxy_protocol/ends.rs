//! What a header of the PROXY protocol says of both ends of a connection.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};

/// The client, and the address it connected to; `None` where the peer speaks for itself.
pub(crate) type Ends = Option<(SocketAddr, SocketAddr)>;

/// The header's length and what it says; nothing if it is none.
pub(crate) fn ends(result: &HeaderResult<'_>) -> Option<(usize, Ends)> {
    match result {
        HeaderResult::V1(Ok(header)) => {
            let ends = match header.addresses {
                v1::Addresses::Tcp4(a) => Some((
                    SocketAddr::new(a.source_address.into(), a.source_port),
                    SocketAddr::new(a.destination_address.into(), a.destination_port),
                )),
                v1::Addresses::Tcp6(a) => Some((
                    SocketAddr::new(a.source_address.into(), a.source_port),
                    SocketAddr::new(a.destination_address.into(), a.destination_port),
                )),
                v1::Addresses::Unknown => None,
            };
            Some((header.header.len(), ends))
        }
        HeaderResult::V2(Ok(header)) => {
            let ends = match (header.command, header.addresses) {
                (v2::Command::Local, _) => None,
                (_, v2::Addresses::IPv4(a)) => Some((
                    SocketAddr::new(a.source_address.into(), a.source_port),
                    SocketAddr::new(a.destination_address.into(), a.destination_port),
                )),
                (_, v2::Addresses::IPv6(a)) => Some((
                    SocketAddr::new(a.source_address.into(), a.source_port),
                    SocketAddr::new(a.destination_address.into(), a.destination_port),
                )),
                _ => None,
            };
            Some((header.len(), ends))
        }
        _ => None,
    }
}
