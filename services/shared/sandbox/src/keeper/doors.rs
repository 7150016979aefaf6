//! The doors of a workspace whose way out somebody else serves.
//!
//! The keeper only opens them, in the workspace's own network, and hands them out: it never accepts. Whoever serves
//! them needs no way into that network, and nobody outside of it reaches them. Connections wait in their queue while
//! nobody serves.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use crate::error::{Failure, Step};
use crate::{DOOR_NAMES, DOOR_PROXY};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;

pub(super) struct Doors {
    /// Listens for connections to a proxy.
    pub(super) proxy: OwnedFd,
    /// Gets queries for names.
    pub(super) names: OwnedFd,
}

impl Doors {
    pub(super) fn open() -> Result<Self, Failure> {
        let proxy = bound(SocketType::STREAM, DOOR_PROXY)?;
        listen(&proxy, BACKLOG).map_err(|error| Failure::new(Step::Network, "the door to the proxy", error))?;
        Ok(Self { proxy, names: bound(SocketType::DGRAM, DOOR_NAMES)? })
    }
}

fn bound(kind: SocketType, port: u16) -> Result<OwnedFd, Failure> {
    let named = |error| Failure::new(Step::Network, format!("the door at port {port}"), error);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, kind, flags, None).map_err(named)?;
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map_err(named)?;
    Ok(socket)
}
