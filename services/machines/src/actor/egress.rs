//! Who goes out, and what they may reach, which may change while they run.

use std::sync::Arc;

use shipote_bus::spec::{HostsRefused, change_hosts};

use super::{Actor, Change, Launcher};
use crate::Error;
use crate::way::Way;

/// A machine that goes out.
#[derive(Debug, Clone)]
pub struct GoesOut {
    /// Name.
    pub name: String,
    /// What it may reach.
    pub allow: Vec<String>,
    /// What is not on the list is asked about.
    pub ask: bool,
    /// The sockets.
    pub way: Arc<Way>,
}

impl<L: Launcher> Actor<L> {
    /// Changes the list of a machine, for this life and the next ones; what it is now.
    pub(super) fn change_egress(
        &mut self,
        name: &str,
        allow: Vec<String>,
        deny: &[String],
    ) -> Result<Vec<String>, Error> {
        let machine = self.get(name)?;
        // A guest is given its way out when it starts.
        if machine.state.has_monitor() && machine.way.is_none() && !machine.spec.goes_out() {
            let state =
                format!("{} without a way out; stop it first, it gets one when it starts", machine.state.as_str());
            return Err(Error::WrongState { operation: "change what may be reached by", name: name.to_owned(), state });
        }
        let mut spec = machine.spec.clone();
        spec.egress = change_hosts(&spec.egress, allow, deny).map_err(|refused| {
            let (HostsRefused::Wrong(problem) | HostsRefused::TooMany(problem)) = refused;
            Error::InvalidSpec { name: name.to_owned(), problem: format!("change what it may reach: {problem}") }
        })?;
        self.store.save(name, &spec)?;
        let machine = self.get(name)?;
        machine.spec = spec;
        let (list, id) = (machine.spec.egress.clone(), machine.way.as_ref().map(|way| way.id().to_owned()));
        if let Some(id) = id {
            let _ = self.changes.send(Change::Egress(id));
        }
        Ok(list)
    }

    /// Those that go out, by name.
    pub(super) fn ways(&self) -> Vec<GoesOut> {
        let goes_out = |(name, machine): (&String, &super::Machine)| {
            let (allow, ask) = (machine.spec.egress.clone(), machine.spec.egress_ask);
            Some(GoesOut { name: name.clone(), allow, ask, way: Arc::clone(machine.way.as_ref()?) })
        };
        self.machines.iter().filter_map(goes_out).collect()
    }

    /// A machine goes out this way, or no more.
    pub(super) fn goes_out(&mut self, name: &str, way: Option<Arc<Way>>) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let changed = [std::mem::replace(&mut machine.way, way.clone()), way];
        for way in changed.into_iter().flatten() {
            let _ = self.changes.send(Change::Egress(way.id().to_owned()));
        }
    }
}
