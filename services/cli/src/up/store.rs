//! Descriptors that services have us keep while they are down, as systemd does (sd_notify(3), `FDSTORE=1`): the next
//! instance of the same service gets them, and whoever waits for their other ends to close waits on.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::notify::Said;

/// Descriptors of one service that are kept; as many as its unit file allows under systemd.
pub(super) const CAPACITY: usize = 4500;

/// What one service has stored, in the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Store(Vec<(String, OwnedFd)>);

impl Store {
    /// Does what a notice says. Descriptors that do not fit are closed.
    pub(super) fn take(&mut self, said: &Said, descriptors: Vec<OwnedFd>) {
        let name = said.name.clone().unwrap_or_else(|| "stored".to_owned());
        if said.remove {
            self.0.retain(|(stored, _)| *stored != name);
        } else if said.store {
            let room = CAPACITY.saturating_sub(self.0.len());
            self.0.extend(descriptors.into_iter().take(room).map(|descriptor| (name.clone(), descriptor)));
        }
    }

    /// The names, joined by colons.
    pub(super) fn names(&self) -> String {
        self.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(":")
    }

    /// The numbers that the descriptors have here and, where they are left open, in a child.
    pub(super) fn numbers(&self) -> Vec<RawFd> {
        self.0.iter().map(|(_, descriptor)| descriptor.as_raw_fd()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> OwnedFd {
        std::io::pipe().unwrap().0.into()
    }

    #[test]
    fn what_is_stored_stays_until_it_is_removed() {
        let mut store = Store::default();
        let said =
            |name: &str, remove: bool| Said { store: !remove, remove, name: Some(name.to_owned()), ..Said::default() };
        for name in ["a", "b", "a"] {
            store.take(&said(name, false), vec![pipe()]);
        }
        assert_eq!((store.names().as_str(), store.numbers().len()), ("a:b:a", 3));
        // words without FDSTORE=1 store nothing
        store.take(&Said::default(), vec![pipe()]);
        store.take(&said("a", true), vec![]);
        assert_eq!(store.names(), "b");
        store.take(&Said { store: true, ..Said::default() }, vec![pipe()]);
        assert_eq!(store.names(), "b:stored");
    }

    #[test]
    fn there_is_a_bound() {
        let mut store = Store::default();
        let said = Said { store: true, name: Some("x".to_owned()), ..Said::default() };
        for _ in 0..CAPACITY + 10 {
            store.0.truncate(CAPACITY - 5);
            store.take(&said, (0..10).map(|_| pipe()).collect());
            assert!(store.0.len() <= CAPACITY);
            if store.0.len() == CAPACITY {
                return;
            }
            let shared = pipe();
            store.0.resize_with(CAPACITY - 5, || ("x".to_owned(), shared.try_clone().unwrap()));
        }
        panic!("never full");
    }
}
