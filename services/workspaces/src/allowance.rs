//! The memory of a workspace that nobody with the right to manage has set a limit for, and of all that one user has.

use shipote_bus::spec::WorkspaceSpec;

use crate::config::Section;
use crate::effects::Cgroups;
use crate::state::manages;

/// The part of the host's memory that one such workspace may use, where the configuration does not say.
const PART: u64 = 4;
/// The part of it that all workspaces of one user may use together.
const USER_PART: u64 = 2;

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
        let held = cgroups.controllers().has(shipote_cgroup::Controller::Memory);
        Self { memory: held.then(|| part(section.run_memory_max, host(), PART)).flatten() }
    }

    /// Bytes of memory of all workspaces of one user, where a control group can hold it; None: whatever the host has.
    pub(crate) fn of_user(section: &Section) -> Option<u64> {
        part(section.user_memory_max, host(), USER_PART)
    }

    /// Sets the limit of a workspace that has none and whose user may only run.
    pub(crate) fn apply(self, spec: &mut WorkspaceSpec, uid: u32) {
        if !manages(uid) && spec.soma.memory().is_none() {
            spec.soma.cgroup.memory_max = self.memory;
        }
    }
}

/// Bytes of memory that the host has.
fn host() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(info.mem_unit.into())
}

fn part(configured: Option<u64>, host: u64, part: u64) -> Option<u64> {
    match configured {
        Some(0) => None,
        Some(bytes) => Some(bytes),
        None => Some(host / part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_stays_and_what_is_not_set_is_bounded_for_those_who_only_run() {
        assert_eq!((part(None, 8 << 30, PART), part(Some(0), 8 << 30, PART)), (Some(2 << 30), None));
        let allowance = Allowance { memory: part(Some(1 << 20), 8 << 30, PART) };
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
