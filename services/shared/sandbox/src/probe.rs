//! What this host lets a sandbox have, found out by making one.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use shipote_confinement::Mechanism;

use crate::error::SandboxError;
use crate::wire::{self, Order, Reply};
use crate::{Spawner, SpawnerConfig};

/// Makes a throw-away workspace, waits until it stands or not, and reports each mechanism. It forks, so
/// it is best called before other threads exist; blocks for some milliseconds.
///
/// # Errors
/// When not even a process can be made. What the host refuses is in the report.
pub fn probe(config: SpawnerConfig) -> Result<Vec<Mechanism>, SandboxError> {
    let spawner = Spawner::start(config)?;
    let (ours, theirs) = crate::spawner::pair().map_err(SandboxError::Spawner)?;
    wire::send(spawner.control(), &Order::Workspace(Box::default()), &[theirs.as_fd()])
        .map_err(SandboxError::SpawnerGone)?;
    drop(theirs);
    let mut report = answer(&ours)?;
    if let Some(cgroup) = report.iter_mut().find(|mechanism| mechanism.name == "cgroup") {
        *cgroup = cgroup_delegation();
    }
    Ok(report)
}

fn answer(ours: &OwnedFd) -> Result<Vec<Mechanism>, SandboxError> {
    loop {
        match wire::receive::<Reply>(ours.as_fd()).map_err(SandboxError::SpawnerGone)? {
            Some((Reply::Ready { mechanisms } | Reply::NotEnforced { mechanisms }, _)) => return Ok(mechanisms),
            Some((Reply::Refused { failure }, _)) => {
                return Ok(vec![Mechanism::missing("workspace", SandboxError::from(failure).to_string())]);
            }
            Some(_) => {}
            None => return Ok(vec![Mechanism::missing("workspace", "its first process died at once")]),
        }
    }
}

/// Whether cgroups can be made beneath this process's own, which is what a workspace's limits need.
fn cgroup_delegation() -> Mechanism {
    let own = || -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?.to_owned();
        let cgroups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        Some(Path::new(&mount).join(path))
    };
    let Some(own) = own() else { return Mechanism::missing("cgroup", "no cgroup v2 is mounted") };
    let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    let lacking: Vec<&str> = ["cpu", "io", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !controllers.split_whitespace().any(|controller| controller == *wanted))
        .collect();
    let trial = own.join(format!("shipote-probe-{}", std::process::id()));
    match fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)) {
        Err(error) => Mechanism::missing("cgroup", format!("none can be made in {}: {error}", own.display())),
        Ok(()) if lacking.is_empty() => Mechanism::enforced("cgroup", "delegated"),
        Ok(()) => Mechanism::degraded("cgroup", format!("no controller for {}", lacking.join(", "))),
    }
}
