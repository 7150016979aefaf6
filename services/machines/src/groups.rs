//! Control groups of machines, where the host gives any.
//!
//! ```text
//! <folder of this instance>/<machine>/keeper      its keeper
//!                                    /machine     monitor, vsock device, what serves volumes: what limits hold for
//! ```
//!
//! Invariant: whatever a machine's processes started is in its group, and a machine that has ended has none.

use std::path::PathBuf;
use std::sync::Arc;

use shipote_cgroup::{Cgroup, Limits, Tree};
use shipote_confinement::Mechanism;

use crate::Error;
use crate::spec::Spec;

const KEEPER: &str = "keeper";
const MACHINE: &str = "machine";
/// What a monitor takes beside the guest's memory, MiB: its own heap and what it emulates with.
const MONITOR_MIB: u64 = 128;
/// What each volume's server takes at most, MiB.
const VOLUME_MIB: u64 = 32;
/// What translated code may take where the processor is emulated, MiB; see [`crate::vmm::qemu`].
pub const TRANSLATED_MIB: u64 = 128;
/// Processes and threads of one machine: a monitor has one for each processor and some for input and output.
const PROCESSES: u64 = 512;

/// All groups of this instance.
#[derive(Debug, Clone)]
pub struct Groups(Arc<Result<Tree, Mechanism>>);

/// A machine's group.
#[derive(Debug, Clone)]
pub struct Group {
    cgroup: Cgroup,
    mechanism: Mechanism,
}

impl Groups {
    /// Makes this instance's folder. Call it first of all: the process may be moved, and its children with it.
    #[must_use]
    pub fn open(runtime: &std::path::Path) -> Self {
        let missing = |error: shipote_cgroup::Error| Mechanism::missing("cgroup", error.to_string());
        Self(Arc::new(Tree::open(&Tree::name(runtime)).map_err(missing)))
    }

    /// Without any, for those who want none; the reason.
    #[must_use]
    pub fn none(reason: &str) -> Self {
        Self(Arc::new(Err(Mechanism::missing("cgroup", reason))))
    }

    /// How far machines can be limited.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        match &*self.0 {
            Ok(tree) => tree.mechanism(),
            Err(mechanism) => mechanism.clone(),
        }
    }

    /// Makes a machine's group; what an earlier life left in one of its name is ended. `None`: the host gives none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn make(&self, name: &str, spec: &Spec) -> Result<Option<Group>, Error> {
        let Ok(tree) = &*self.0 else { return Ok(None) };
        let failed =
            |error: shipote_cgroup::Error| Error::io("limit", format!("machine {name}"))(std::io::Error::other(error));
        if let Some(old) = tree.existing(name) {
            old.end().map_err(failed)?;
        }
        let cgroup = tree.share(name).map_err(failed)?;
        let made = || {
            cgroup.child(KEEPER)?;
            cgroup.child(MACHINE)?.limit(&limits(spec), cgroup.controllers())
        };
        match made() {
            Ok(unmet) => {
                let lacking: Vec<&str> = unmet.iter().map(|unmet| unmet.limit).collect();
                let mechanism = mechanism(spec, &lacking);
                Ok(Some(Group { cgroup, mechanism }))
            }
            Err(error) => {
                // Nothing is in it yet; what cannot be removed is found by the next start.
                let _ = cgroup.remove();
                Err(failed(error))
            }
        }
    }

    /// The group of a machine that an earlier service started.
    #[must_use]
    pub fn existing(&self, name: &str, spec: &Spec) -> Option<Group> {
        let tree = self.0.as_ref().as_ref().ok()?;
        let cgroup = tree.existing(name)?;
        let unmet = limits(spec).unmet(tree.controllers());
        let lacking: Vec<&str> = unmet.iter().map(|unmet| unmet.limit).collect();
        Some(Group { mechanism: mechanism(spec, &lacking), cgroup })
    }

    /// Ends and removes the groups of machines that are none of these.
    pub fn clear_except(&self, living: &[String]) {
        let Ok(tree) = &*self.0 else { return };
        for name in tree.groups().into_iter().filter(|name| !living.contains(name)) {
            if let Some(Err(error)) = tree.existing(&name).map(|group| group.end()) {
                tracing::warn!("remove the control group of machine {name}: {error}");
            }
        }
    }
}

impl Group {
    /// What the keeper writes itself into.
    #[must_use]
    pub fn keeper(&self) -> PathBuf {
        self.cgroup.path().join(KEEPER).join("cgroup.procs")
    }

    /// What the machine's processes write themselves into.
    #[must_use]
    pub fn machine(&self) -> PathBuf {
        self.cgroup.path().join(MACHINE).join("cgroup.procs")
    }

    /// How far it limits the machine.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism.clone()
    }

    /// What the machine's processes use together; absent what the host does not count.
    #[must_use]
    pub fn figures(&self) -> shipote_cgroup::Figures {
        self.cgroup.figures()
    }

    /// Why the machine was ended by its limits, if it was.
    #[must_use]
    pub fn breach(&self) -> Option<String> {
        (self.cgroup.events().oom_kill > 0)
            .then(|| "its processes took more memory of the host than the machine may have".to_owned())
    }

    /// Kills what is in it and removes it. Blocks for milliseconds.
    pub fn end(&self) {
        if let Err(error) = self.cgroup.end() {
            tracing::warn!("remove a machine's control group: {error}");
        }
    }
}

/// What holds for a machine's processes together.
fn limits(spec: &Spec) -> Limits {
    let volumes = VOLUME_MIB * spec.volumes.len() as u64;
    let memory = u64::from(spec.memory_mib) + MONITOR_MIB + TRANSLATED_MIB + volumes;
    Limits {
        memory_max: Some(memory << 20),
        pids_max: Some(PROCESSES),
        cpu_max: Some(spec.cpu_percent()),
        // Half a machine is none.
        oom_group: true,
        ..Limits::default()
    }
}

fn mechanism(spec: &Spec, lacking: &[&str]) -> Mechanism {
    let limits = limits(spec);
    let memory = limits.memory_max.unwrap_or_default() >> 20;
    let all = format!("memory {memory} MiB, processor {} %, {PROCESSES} processes", spec.cpu_percent());
    if lacking.is_empty() {
        Mechanism::enforced("cgroup", all)
    } else {
        Mechanism::degraded("cgroup", format!("a group of its own, but this host does not hold {}", lacking.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_the_spec_and_what_a_monitor_takes() {
        let spec = Spec { memory_mib: 100, cpus: 2, volumes: vec!["/a:/b".into()], ..Spec::default() };
        let limits = limits(&spec);
        assert_eq!(limits.memory_max, Some((100 + 128 + 128 + 32) << 20));
        assert_eq!(limits.cpu_max, Some(200));
        assert_eq!(super::limits(&Spec { cpu_percent: Some(50), ..spec.clone() }).cpu_max, Some(50));
        assert!(mechanism(&spec, &[]).is_enforced());
        assert!(mechanism(&spec, &["memory_max"]).reason.contains("memory_max"));
    }
}
