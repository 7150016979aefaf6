//! What the spawner's helpers are for: processes that begin with the rights which the service gave up, and give up
//! themselves what their job does not need before they look at anything that others made.

use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use shipote_confinement::{Domain, Handled, PathAccess, seccomp};
use shipote_sandbox::Channel;

use crate::effects::gauge;
use crate::relay;

/// The first message to a helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Carry flows; see [`relay`].
    Relay,
    /// Measure what lies below this folder; see [`gauge`].
    Gauge {
        /// The folder.
        folder: PathBuf,
    },
}

/// A helper's whole life.
pub(crate) fn help(channel: Channel) {
    // otherwise the service is gone, or of another release
    if let Ok(Some(message)) = channel.receive::<Job>() {
        match message.body {
            Job::Relay => relay::carry(channel),
            Job::Gauge { folder } => gauge::serve(&channel, &folder),
        }
    }
}

/// Keeps of the helper's rights these capabilities, as far as it has them, and this access to one path.
pub(crate) fn confine(kept: CapabilitySet, path: &Path, access: PathAccess) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("confine a helper: {error}");
    let kept = kept & rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_no_new_privs(true).map_err(|error| failed(&error))?;
    let domain = Domain::new(Handled { signals: true, ..Handled::default() })
        .and_then(|domain| domain.allow_path(path, access))
        .and_then(Domain::restrict);
    // a kernel without landlock is reported by the service's own confinement
    domain.map_err(|error| failed(&error))?;
    rustix::thread::set_capabilities(None, sets).map_err(|error| failed(&error))?;
    let parts = seccomp::command_filter_in_parts().map_err(|error| failed(&error))?;
    for filter in [parts.0, parts.1] {
        if let Err(error) = filter.install() {
            tracing::debug!("confine a helper: {error}");
        }
    }
    Ok(())
}
