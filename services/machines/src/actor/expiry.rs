//! Machines that have an end: once it has come they are stopped and removed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Actor, Change, Launcher, Message};
use crate::state::{Input, State};

/// How long one may take to power off before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// The clock may be set: it is looked at again after so long.
const LOOK: Duration = Duration::from_secs(3600);

impl<L: Launcher> Actor<L> {
    /// Waits for the end of a machine that has one.
    pub(super) fn expect_end(&self, name: &str) {
        let Some(expires) = self.machines.get(name).and_then(|machine| machine.spec.expires_unix) else { return };
        let left = expires.saturating_sub(now());
        self.tell_after(Duration::from_secs(left).min(LOOK), Message::Due(name.to_owned(), expires));
    }

    /// The time of one that has this end may be over.
    pub(super) fn due(&mut self, name: &str, expires: u64) {
        // Another machine may have its name by now.
        let Some(machine) = self.machines.get_mut(name).filter(|m| m.spec.expires_unix == Some(expires)) else {
            return;
        };
        if now() < expires {
            return self.expect_end(name);
        }
        machine.expired = true;
        self.end_sleep(name);
        let Some(machine) = self.machines.get(name) else { return };
        if !machine.state.has_monitor() {
            return self.remove_expired(name);
        }
        if machine.state != State::Stopping
            && let Err(error) = self.input("end", name, Input::Stop, GRACE)
        {
            tracing::error!("{error}");
        }
    }

    /// Removes one whose time is over, now that it has ended; one of which a snapshot is being taken, after that.
    pub(super) fn remove_expired(&mut self, name: &str) {
        if self.machines.get(name).is_some_and(|machine| machine.taking) {
            return;
        }
        let outcome = self.remove(name).map_err(|error| error.to_string());
        let _ = self.changes.send(Change::Expired { name: name.to_owned(), outcome });
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
