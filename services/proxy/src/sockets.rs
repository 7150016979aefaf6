//! Listeners that the service manager opened (sd_listen_fds(3)).

use std::net::TcpListener;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};

use anyhow::Context as _;
use rustix::net::AddressFamily;

/// The TCP listeners among the descriptors that were handed over; others are closed, with a word in the log.
///
/// Call it once, before any thread runs.
pub(crate) fn inherited() -> anyhow::Result<Vec<TcpListener>> {
    let descriptors = sd_notify::listen_fds().context("take the sockets of the service manager")?;
    let mut listeners = Vec::new();
    for descriptor in descriptors {
        // SAFETY: the service manager handed this number over for this process alone (LISTEN_PID says so), nothing
        // has used it yet, and it is taken once.
        #[allow(unsafe_code, reason = "a descriptor arrives as a number")]
        let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let listens = rustix::net::sockopt::socket_acceptconn(owned.as_fd()).unwrap_or(false);
        let family = rustix::net::sockopt::socket_domain(owned.as_fd());
        if listens && matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6)) {
            listeners.push(TcpListener::from(owned));
        } else {
            tracing::warn!("descriptor {descriptor} of the service manager is no TCP listener; closed");
        }
    }
    Ok(listeners)
}
