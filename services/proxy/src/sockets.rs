//! Listeners that the service manager opened (sd_listen_fds(3)).

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType};
use shipote_proxy::Inherited;

/// The sockets among the descriptors that were handed over; others are closed, with a word in the log.
pub(crate) fn inherited(descriptors: Vec<(String, OwnedFd)>) -> Inherited {
    let mut sockets = Inherited::default();
    for (name, owned) in descriptors {
        let listens = rustix::net::sockopt::socket_acceptconn(owned.as_fd()).unwrap_or(false);
        let kind = rustix::net::sockopt::socket_type(owned.as_fd());
        let family = rustix::net::sockopt::socket_domain(owned.as_fd());
        let internet = matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6));
        match kind {
            Ok(SocketType::STREAM) if internet && listens => sockets.tcp.push(TcpListener::from(owned)),
            Ok(SocketType::DGRAM) if internet => sockets.udp.push(UdpSocket::from(owned)),
            _ => tracing::warn!("descriptor {name:?} of the service manager is no TCP listener or UDP socket; closed"),
        }
    }
    sockets
}
