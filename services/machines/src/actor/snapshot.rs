//! A snapshot that is being taken of a machine: until it has been, the machine neither starts nor goes.

use std::path::PathBuf;

use tokio::sync::mpsc;

use super::{Actor, Launcher, Message, Reply};
use crate::guest::Guest;
use crate::launch::Order;
use crate::spec::Spec;
use crate::state::State;
use crate::{Error, disk};

/// A machine of which a snapshot is being taken.
#[derive(Debug)]
pub struct Taking {
    /// Its spec.
    pub spec: Spec,
    /// Its disk.
    pub disk: PathBuf,
    /// How it is now: running, paused, or not at all.
    pub state: State,
    /// It had powered off, as far as this service knows.
    pub powered_off: bool,
    /// How to reach it where it runs.
    pub guest: Option<Guest>,
    name: String,
    sender: mpsc::WeakUnboundedSender<Message>,
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.upgrade() {
            let _ = sender.send(Message::Taken(std::mem::take(&mut self.name)));
        }
    }
}

impl<L: Launcher> Actor<L> {
    /// Refuses what may not be done while a snapshot is taken.
    pub(super) fn not_taking(&mut self, operation: &'static str, name: &str) -> Result<(), Error> {
        let taking = self.get(name)?.taking;
        let state = || "being copied for a snapshot; wait until that is done".to_owned();
        if taking { Err(Error::WrongState { operation, name: name.to_owned(), state: state() }) } else { Ok(()) }
    }

    pub(super) fn take(&mut self, name: String) -> Result<Taking, Error> {
        const OPERATION: &str = "take a snapshot of";
        self.not_taking(OPERATION, &name)?;
        let (sender, disk) = (self.sender.clone(), self.store.folder(&name).join(disk::FILE));
        let machine = self.get(&name)?;
        let state = machine.state;
        if !matches!(state, State::Stopped | State::Failed | State::Running | State::Paused) {
            let state = format!("{}; wait until it has", state.as_str());
            return Err(Error::WrongState { operation: OPERATION, name, state });
        }
        if machine.spec.disk_mib == 0 || !disk.exists() {
            let problem =
                "it has no disk, or was never started: there is nothing that a snapshot would keep".to_owned();
            return Err(Error::InvalidSpec { name, problem });
        }
        machine.taking = true;
        let (spec, guest, powered_off) = (machine.spec.clone(), machine.guest.clone(), machine.powered_off);
        Ok(Taking { spec, disk, state, powered_off, guest, name, sender })
    }

    pub(super) fn hold(&mut self, name: &str, reply: Reply<()>) {
        match self.get(name) {
            Ok(machine) if machine.state.has_monitor() => {
                machine.holding = Some(reply);
                machine.order(Order::Hold(true));
            }
            other => drop(reply.send(other.map(drop))),
        }
    }

    /// It has been taken, or not: what had to wait for it is done now.
    pub(super) fn taken(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        (machine.taking, machine.holding) = (false, None);
        machine.order(Order::Hold(false));
        if machine.expired && !machine.state.has_monitor() {
            return self.remove_expired(name);
        }
        self.wake_after_taking(name);
    }
}
