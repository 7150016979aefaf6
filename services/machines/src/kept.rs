//! Ways out that outlast the service: the service manager keeps their sockets (`FDSTORE=1`, sd_notify(3)).
//!
//! A guest dials a socket by its path, and the proxy serves the one that it was handed. A service that made new ones in
//! their place would have the proxy end every connection through the old ones; one that is given the same sockets again
//! has changed nothing for anybody, however the one before it ended.
//!
//! Invariant: what is kept belongs to a machine that runs, and is the way by which it goes out.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use shipote_service::FdStore;

use crate::way::Way;

/// What the names in the store begin with, before the machine's; the socket for connections, and the one for names.
const NAMES: [&str; 2] = ["machine-out-", "machine-names-"];

/// The ways out that are kept. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct KeptWays {
    store: FdStore,
    /// What an earlier instance left and nobody has taken yet.
    inherited: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
}

impl KeptWays {
    /// Takes those that an earlier instance had kept out of all that it had.
    #[must_use]
    pub fn new(store: &FdStore, inherited: &mut BTreeMap<String, OwnedFd>) -> Self {
        let ours = |name: &String, _: &mut OwnedFd| NAMES.iter().any(|beginning| name.starts_with(beginning));
        let ours = inherited.extract_if(.., ours).collect();
        Self { store: store.clone(), inherited: Arc::new(Mutex::new(ours)) }
    }

    /// Has a machine's way kept, in the place of an earlier one.
    pub(crate) fn keep(&self, machine: &str, way: &Way) {
        if !self.store.is_available() {
            return;
        }
        self.forget(machine);
        let kept = names(machine).iter().zip(way.sockets()).all(|(name, socket)| self.store.keep(name, socket));
        if !kept {
            self.forget(machine);
            tracing::warn!(
                "machine {machine}: its connections out end with this service: the service manager keeps no more sockets"
            );
        }
    }

    /// The way of a machine that runs, as an earlier instance had it; it is kept on.
    pub(crate) fn take(&self, machine: &str) -> Option<Way> {
        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        let [proxy, queries] = names(machine).map(|name| inherited.remove(&name));
        drop(inherited);
        let taken = Way::inherited(proxy?, queries?);
        taken.inspect_err(|error| tracing::error!("machine {machine}: take its way out over: {error}")).ok()
    }

    /// The machine has ended.
    pub(crate) fn forget(&self, machine: &str) {
        for name in names(machine) {
            self.store.forget(&name);
        }
    }

    /// What nobody has taken belonged to machines that have ended meanwhile.
    pub(crate) fn forget_the_rest(&self) {
        let rest = std::mem::take(&mut *self.inherited.lock().unwrap_or_else(PoisonError::into_inner));
        for name in rest.keys() {
            self.store.forget(name);
        }
    }
}

fn names(machine: &str) -> [String; 2] {
    NAMES.map(|beginning| format!("{beginning}{machine}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_way_is_the_one_that_it_was() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(crate::vmm::qemu::VSOCK_FOLDER)).unwrap();
        let way = Way::open(dir.path()).unwrap();
        let other: OwnedFd = UnixListener::bind(dir.path().join("other")).unwrap().into();
        let number = other.as_raw_fd();
        let mut inherited = BTreeMap::from([("lifeline".to_owned(), other)]);
        for (name, socket) in names("web").into_iter().zip(way.sockets()) {
            inherited.insert(name, socket.try_clone_to_owned().unwrap());
        }
        let kept = KeptWays::new(&FdStore::default(), &mut inherited);
        assert_eq!(inherited.into_values().map(|other| other.as_raw_fd()).collect::<Vec<_>>(), [number]);
        assert!(kept.take("other").is_none());
        assert_eq!(kept.take("web").unwrap().id(), way.id());
        assert!(kept.take("web").is_none(), "once");
    }
}
