//! Descriptors that outlive the service: the service manager's descriptor store (sd_notify(3), `FDSTORE=1`).
//!
//! systemd and `shipote up` both keep what is stored for as long as the unit is not stopped, and give it to the next
//! instance: systemd as `LISTEN_FDS` and `LISTEN_FDNAMES` from number 3 on (sd_listen_fds(3)), `shipote up` with the
//! numbers in [`NUMBERS_ENV`], because it does not know the child's process id, which `LISTEN_PID` would have to
//! name, before the child exists. A real stop closes everything that is stored.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use sd_notify::NotifyState;
use shipote_bus::paths::{STORE_NAMES_ENV as NAMES_ENV, STORE_NUMBERS_ENV as NUMBERS_ENV};

/// Bytes that all names together may take: the next instance gets them in one variable of its environment, which the
/// kernel bounds to 128 KiB (execve(2), `MAX_ARG_STRLEN`), and without which it could not even start.
const NAMES_MAX: usize = 120 * 1024;

/// The descriptors that the service manager holds for this service. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FdStore(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many descriptors the manager takes; 0: it has no store.
    capacity: usize,
    /// Bytes of each name with its separator.
    names: BTreeMap<String, usize>,
    inherited: Vec<(String, OwnedFd)>,
}

impl FdStore {
    /// Takes what an earlier instance stored. Call it once, before anything else looks at descriptors.
    pub(crate) fn inherit() -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        // set by systemd (since 254) and by `shipote up` where descriptors are taken
        let capacity = match std::env::var_os("NOTIFY_SOCKET") {
            Some(_) => variable("FDSTORE").parse().unwrap_or(0),
            None => 0,
        };
        let names = variable(NAMES_ENV);
        let numbers: Vec<RawFd> = match std::env::var(NUMBERS_ENV) {
            Ok(list) => list.split(':').filter_map(|number| number.parse().ok()).collect(),
            Err(_) => sd_notify::listen_fds().map(Iterator::collect).unwrap_or_default(),
        };
        let inherited: Vec<(String, OwnedFd)> = names
            .split(':')
            .zip(numbers)
            .filter_map(|(name, number)| Some((name.to_owned(), adopt(number)?)))
            .collect();
        let names = inherited.iter().map(|(name, _)| (name.clone(), name.len() + 1)).collect();
        FdStore(Arc::new(Mutex::new(Inner { capacity, names, inherited })))
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the manager keeps descriptors at all.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.inner().capacity > 0
    }

    /// What an earlier instance stored, once. It stays stored until it is [forgotten](FdStore::forget).
    #[must_use]
    pub fn take_inherited(&self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.inner().inherited)
    }

    /// What a socket unit of the service listens on under this name, if there is one: handed to each instance, never stored.
    #[must_use]
    pub fn take_listener(&self, name: &str) -> Option<OwnedFd> {
        let mut inner = self.inner();
        let place = inner.inherited.iter().position(|(known, _)| known == name)?;
        inner.names.remove(name);
        Some(inner.inherited.swap_remove(place).1)
    }

    /// Has the manager keep a duplicate under `name` (at most 255 printable characters, no colon), for the next
    /// instance. False: it has no store, or the store is full.
    #[must_use]
    pub fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> bool {
        let mut inner = self.inner();
        let bytes: usize = inner.names.values().sum();
        if inner.names.len() >= inner.capacity || bytes + name.len() + 1 > NAMES_MAX {
            return false;
        }
        // without FDPOLL=0 the manager would drop a pipe or a socket as soon as its other end is closed, and what is
        // still in it would be lost
        let states = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        match sd_notify::notify_with_fds(&states, &[descriptor.as_fd()]) {
            Ok(()) => {
                inner.names.insert(name.to_owned(), name.len() + 1);
                true
            }
            Err(error) => {
                tracing::warn!("store descriptor {name}: {error}");
                false
            }
        }
    }

    /// Has the manager close what it keeps under `name`.
    pub fn forget(&self, name: &str) {
        if self.inner().names.remove(name).is_none() {
            return;
        }
        if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
            tracing::warn!("remove descriptor {name} from the store: {error}");
        }
    }
}

/// The descriptor of this number, closed on exec from now on; none where nothing is open.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: borrowed for one question, which tells whether it is open at all.
    let open = rustix::io::fcntl_setfd(unsafe { BorrowedFd::borrow_raw(number) }, rustix::io::FdFlags::CLOEXEC);
    open.ok()?;
    // SAFETY: the manager opened it for us and says so in our environment; this runs once, before anything else owns
    // a descriptor that it did not open itself.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
