//! Listeners that the service manager opened (sd_listen_fds(3)).

use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketType};
use shipote_proxy::Inherited;

/// The sockets among the descriptors that were handed over; others are closed, with a word in the log.
///
/// Call it once, before any thread runs.
pub(crate) fn inherited() -> anyhow::Result<Inherited> {
    let descriptors = sd_notify::listen_fds().context("take the sockets of the service manager")?;
    let mut sockets = Inherited::default();
    for descriptor in descriptors {
        // SAFETY: the service manager handed this number over for this process alone (LISTEN_PID says so), nothing
        // has used it yet, and it is taken once.
        #[allow(unsafe_code, reason = "a descriptor arrives as a number")]
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let listens = rustix::net::sockopt::socket_acceptconn(owned.as_fd()).unwrap_or(false);
        let kind = rustix::net::sockopt::socket_type(owned.as_fd());
        let family = rustix::net::sockopt::socket_domain(owned.as_fd());
        let internet = matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6));
        match kind {
            Ok(SocketType::STREAM) if internet && listens => sockets.tcp.push(TcpListener::from(owned)),
            Ok(SocketType::DGRAM) if internet => sockets.udp.push(UdpSocket::from(owned)),
            _ => tracing::warn!(
                "descriptor {descriptor} of the service manager is no TCP listener or UDP socket; closed"
            ),
        }
    }
    Ok(sockets)
}
