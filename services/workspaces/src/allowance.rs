//! The memory of a workspace that nobody with the right to manage has set a limit for.

use shipote_bus::spec::WorkspaceSpec;

use crate::config::Section;
use crate::effects::Cgroups;
use crate::state::manages;

/// The part of the host's memory that one such workspace may use, where the configuration does not say.
const PART: u64 = 4;

/// What is allowed. Cheap to clone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Allowance {
    /// Bytes; None: whatever the host has.
    memory: Option<u64>,
}

impl Allowance {
    /// As configured. Nothing where there is no control group to hold it for a workspace as a whole: what would be
    /// held for each process instead, its address space, is not what it uses, and many a program reserves more.
    pub(crate) fn new(section: &Section, cgroups: &Cgroups) -> Self {
        let info = rustix::system::sysinfo();
        let host = info.totalram.saturating_mul(info.mem_unit.into());
        let held = cgroups.controllers().has(shipote_cgroup::Controller::Memory);
        Self { memory: held.then(|| memory(section.run_memory_max, host)).flatten() }
    }

    /// Sets the limit of a workspace that has none and whose user may only run.
    pub(crate) fn apply(self, spec: &mut WorkspaceSpec, uid: u32) {
        if !manages(uid) && spec.soma.memory().is_none() {
            spec.soma.cgroup.memory_max = self.memory;
        }
    }
}

fn memory(configured: Option<u64>, host: u64) -> Option<u64> {
    match configured {
        Some(0) => None,
        Some(bytes) => Some(bytes),
        None => Some(host / PART),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stays_and_what_is_not_set_is_bounded_for_those_who_only_run() {
        assert_eq!((memory(None, 8 << 30), memory(Some(0), 8 << 30)), (Some(2 << 30), None));
        let allowance = Allowance { memory: memory(Some(1 << 20), 8 << 30) };
        let limit = |text: &str, uid| {
            let mut spec: WorkspaceSpec = toml::from_str(text).unwrap();
            allowance.apply(&mut spec, uid);
            spec.soma.memory()
        };
        let other = rustix::process::geteuid().as_raw() + 4321;
        assert_eq!(limit("", other), Some(1 << 20));
        assert_eq!(limit("soma.cgroup.memory_max = 4096", other), Some(4096));
        assert_eq!(limit("soma.rlimits.mem_bytes = 8192", other), Some(8192));
        assert_eq!(limit("", 0), None);
        assert_eq!(limit("", rustix::process::geteuid().as_raw()), None);
    }
}
