//! The sockets that the proxy listens on, as the service manager hands them over: those of socket units, and those that
//! an earlier instance left in the store (sd_listen_fds(3), sd_notify(3)).

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};
use shipote_proxy::{Handed, Inherited, Keeper, is_kept_name};
use shipote_service::FdStore;

struct Store(FdStore);

impl Keeper for Store {
    fn keep(&self, name: &str, socket: BorrowedFd<'_>) -> bool {
        self.0.keep(name, socket)
    }

    fn forget(&self, name: &str) {
        self.0.forget(name);
    }
}

/// The sockets among the descriptors that were handed over; others are closed, with a word in the log.
pub(crate) fn inherited(descriptors: Vec<(String, OwnedFd)>, store: FdStore) -> Inherited {
    let mut sockets = Vec::with_capacity(descriptors.len());
    for (name, socket) in descriptors {
        let kept = is_kept_name(&name).then(|| name.clone());
        if is_ours(&socket) {
            sockets.push(Handed { socket, kept });
            continue;
        }
        tracing::warn!("descriptor {name:?} of the service manager is no TCP listener or UDP socket; closed");
        if kept.is_some() {
            store.forget(&name);
        }
    }
    let keeper: Option<Box<dyn Keeper>> = if store.is_available() { Some(Box::new(Store(store))) } else { None };
    Inherited { sockets, keeper }
}

fn is_ours(socket: &OwnedFd) -> bool {
    let listens = rustix::net::sockopt::socket_acceptconn(socket.as_fd()).unwrap_or(false);
    let kind = rustix::net::sockopt::socket_type(socket.as_fd());
    let family = rustix::net::sockopt::socket_domain(socket.as_fd());
    let internet = matches!(family, Ok(AddressFamily::INET | AddressFamily::INET6));
    internet && (kind == Ok(SocketType::DGRAM) || (kind == Ok(SocketType::STREAM) && listens))
}
