//! Taking snapshots of machines, running or not, and making machines of them.
//!
//! ```text
//!   running: the guest writes what it has to write ─▶ its processors stand still ─▶ copy ─▶ they go on
//!   paused:                                           (they stand still)         ─▶ copy
//!   stopped:                                                                        copy
//! ```
//!
//! A service that ends in between leaves neither a snapshot nor a machine that stands still: keepers let go of what a
//! service holds once its connection ends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse};

use crate::Error;
use crate::actor::Handle;
use crate::guest::Guest;
use crate::snapshots::{Consistency, Snapshot, Snapshots};
use crate::spec::Spec;
use crate::state::State;

/// How long a guest may take to write what it has to write.
const SYNC_TIME: Duration = Duration::from_secs(60);
/// What the copies of disks are called that no machine has yet; no machine is called so.
const UNFINISHED: &str = ".new.";

/// Takes a snapshot of a machine.
///
/// # Errors
/// There is no such machine, it has no disk, it is about to start or end, its guest does not write what it has to, or the
/// file system refuses. Nothing is left then.
pub async fn snapshot(actor: &Handle, snapshots: &Snapshots, machine: &str, name: &str) -> Result<Snapshot, Error> {
    snapshots.check(name)?;
    let taking = actor.take(machine).await?;
    let consistency = match (taking.state, &taking.guest) {
        (State::Running, Some(guest)) => {
            sync(guest).await?;
            Consistency::Synced
        }
        _ if taking.powered_off => Consistency::Stopped,
        _ => Consistency::Cut,
    };
    actor.hold(machine).await?;
    let (snapshots, machine, name) = (snapshots.clone(), machine.to_owned(), name.to_owned());
    blocking(move || {
        // What it has held ends with it, whatever becomes of whoever asked.
        let taking = taking;
        snapshots.take(&name, &machine, &taking.spec, consistency, &taking.disk)
    })
    .await
}

/// Has the guest's disk get what is still in its memory.
async fn sync(guest: &Guest) -> Result<(), Error> {
    let request = AgentRequest::VmExec {
        command: ["sync", "-f", "/storage"].map(str::to_owned).to_vec(),
        env: vec![],
        workdir: None,
        timeout_ms: None,
        interactive: false,
        tty: false,
        background: false,
    };
    match guest.ask_within(&request, SYNC_TIME).await? {
        AgentResponse::Completed { exit_code: 0, .. } => Ok(()),
        other => {
            let said = match other {
                AgentResponse::Completed { exit_code, .. } => format!("sync ended with {exit_code}"),
                _ => "its agent ran no sync".to_owned(),
            };
            Err(Error::io("write the disk of machine", &guest.name)(std::io::Error::other(said)))
        }
    }
}

/// Makes a machine of a snapshot: its spec, with what `text` says otherwise, and a copy of its disk.
///
/// # Errors
/// There is no such snapshot, the spec is wrong or of another disk, or the machine cannot be made.
pub async fn create(
    actor: &Handle,
    snapshots: &Snapshots,
    state: &Path,
    name: &str,
    text: &str,
    from: &str,
) -> Result<(), Error> {
    let kept = snapshots.get(from)?;
    let spec = changed(name, &kept.spec, text)?;
    // One that came with the snapshot may be gone, as it may be of any machine that lasts: that is told at the start.
    if spec.ssh_agent != kept.spec.ssh_agent {
        crate::ssh_agent::check(name, &spec).await?;
    }
    if actor.list().await?.iter().any(|machine| machine.name == name) {
        return Err(Error::NameTaken(name.to_owned()));
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let copy = Unfinished(state.join(format!("{UNFINISHED}{}", NEXT.fetch_add(1, Ordering::Relaxed))));
    let (snapshots, from) = (snapshots.clone(), from.to_owned());
    let copy = blocking(move || {
        // One of this number may be left of an earlier life of the service.
        let _ = std::fs::remove_file(&copy.0);
        snapshots.restore(&from, &copy.0).map(|()| copy)
    })
    .await?;
    actor.create_with(name, spec, Some(copy.0.clone())).await
}

/// A copy that is removed unless a machine has taken it.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A spec with some keys given otherwise. When a machine ends, what it is called and what
/// memory it makes do with for now are its own, not the next one's.
fn changed(name: &str, spec: &Spec, text: &str) -> Result<Spec, Error> {
    let invalid = |problem: String| Error::InvalidSpec { name: name.to_owned(), problem };
    let mut table = toml::Table::try_from(spec).map_err(|error| invalid(error.to_string()))?;
    let changes: toml::Table = toml::from_str(text).map_err(|error| invalid(format!("the spec: {error}")))?;
    for own in ["expires_unix", "labels", "memory_target_mib"] {
        table.remove(own);
    }
    table.extend(changes);
    let text = toml::to_string(&table).map_err(|error| invalid(error.to_string()))?;
    let changed = Spec::parse(name, &text)?;
    if changed.disk_mib != spec.disk_mib {
        return Err(invalid(format!("disk_mib = {}: the snapshot's disk has {}", changed.disk_mib, spec.disk_mib)));
    }
    Ok(changed)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}

/// Removes copies that an earlier life of the service had not finished. Blocks.
pub fn tidy(state: &Path) {
    for entry in std::fs::read_dir(state).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_the_snapshots_but_for_what_is_said() {
        let spec = Spec { memory_mib: 128, disk_mib: 64, publish: vec!["80".into()], ..Spec::default() };
        assert_eq!(changed("a", &spec, "").unwrap(), spec);
        let more = changed("a", &spec, "memory_mib = 256\npublish = []").unwrap();
        assert_eq!(more, Spec { memory_mib: 256, publish: vec![], ..spec.clone() });
        let mortal = Spec { expires_unix: Some(1), labels: [("a".into(), "b".into())].into(), ..spec.clone() };
        assert_eq!(changed("a", &mortal, "").unwrap(), spec);
        for bad in ["disk_mib = 128", "memory = 1", "["] {
            assert!(matches!(changed("a", &spec, bad), Err(Error::InvalidSpec { .. })), "{bad}");
        }
    }
}
