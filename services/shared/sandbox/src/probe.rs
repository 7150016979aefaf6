//! What this host lets a sandbox have, found out by making one.

use std::os::fd::AsFd;

use shipote_confinement::Mechanism;

use crate::error::SandboxError;
use crate::spec::SandboxSpec;
use crate::wire::{self, Create, Reply};
use crate::{Spawner, SpawnerConfig};

/// Makes a throw-away workspace, waits until it stands or not, and reports each mechanism. It forks, so
/// it is best called before other threads exist; blocks for some milliseconds.
///
/// # Errors
/// When not even a process can be made. What the host refuses is in the report.
pub fn probe(config: SpawnerConfig) -> Result<Vec<Mechanism>, SandboxError> {
    let spawner = Spawner::start(config)?;
    let (ours, theirs) = crate::spawner::pair().map_err(SandboxError::Spawner)?;
    wire::send(spawner.control(), &Create { spec: SandboxSpec::default() }, &[theirs.as_fd()])
        .map_err(SandboxError::SpawnerGone)?;
    drop(theirs);
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
