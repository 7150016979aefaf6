//! From the service's own types to the bus's.

use shipote_bus::machines::{MachineDetails, MachineInfo, MachinesError, SnapshotInfo};
use shipote_machines::actor::{Inspected, Shown};
use shipote_machines::health::Health;
use shipote_machines::snapshots::{Snapshot, Snapshots};
use shipote_machines::{Error, ssh_agent, stats};

pub(super) fn snapshot_info(snapshots: &Snapshots, name: String, snapshot: Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        bytes: snapshots.size(&name),
        name,
        machine: snapshot.machine,
        created: snapshot.created,
        consistency: snapshot.consistency.as_str().to_owned(),
        disk_mib: snapshot.spec.disk_mib,
    }
}

pub(super) fn details(name: &str, inspected: Inspected) -> MachineDetails {
    let stats = stats::of_machine(&inspected.pids, inspected.group.as_ref());
    let confinement = inspected.confinement.into_iter();
    MachineDetails {
        name: name.to_owned(),
        state: inspected.shown.word().to_owned(),
        pids: inspected.pids,
        memory_bytes: stats.memory_bytes,
        guest_memory_bytes: inspected.guest_memory,
        guest_memory_target_bytes: u64::from(inspected.shown.spec.memory_now_mib()) << 20,
        cpu_usec: stats.cpu_usec,
        unavailable: inspected.shown.spec.ssh_agent.as_deref().and_then(ssh_agent::problem).map(|told| vec![told]),
        confinement: confinement.map(|m| (m.name, m.state.to_string(), m.reason)).collect(),
    }
}

pub(super) fn info(shown: Shown) -> MachineInfo {
    MachineInfo {
        state: shown.word().to_owned(),
        labels: shown.spec.labels.clone(),
        expires_unix: shown.spec.expires_unix.unwrap_or(0),
        idle_s: shown.spec.idle.as_ref().map_or(0, |rule| rule.after_s),
        sleeps: shown.slept.times,
        wake_usec: shown.slept.wake_usec,
        memory_given_back: shown.slept.given_back,
        name: shown.name,
        reason: shown.reason,
        memory_mib: shown.spec.memory_mib,
        memory_target_mib: shown.spec.memory_now_mib(),
        cpus: shown.spec.cpus.into(),
        disk_mib: shown.spec.disk_mib,
        publish: shown.spec.publish,
        health: shown.health.as_ref().map_or("", Health::as_str).to_owned(),
        health_reason: shown.health.as_ref().map_or("", Health::reason).to_owned(),
    }
}

/// The one place where errors become the bus's.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn refusal(error: Error) -> MachinesError {
    let text = error.to_string();
    match error {
        Error::NoSuchMachine(_) => MachinesError::NoSuchMachine(text),
        Error::NameTaken(_) | Error::SnapshotTaken(_) => MachinesError::NameTaken(text),
        Error::NoSuchSnapshot(_) => MachinesError::NoSuchSnapshot(text),
        Error::InvalidSpec { .. } | Error::NotShared(_) => MachinesError::InvalidSpec(text),
        Error::WrongState { .. } => MachinesError::WrongState(text),
        Error::LimitReached { .. } => MachinesError::LimitReached(text),
        Error::Connect { .. } => MachinesError::ConnectFailed(text),
        Error::Asleep(_) => MachinesError::Asleep(text),
        Error::Wake { .. } => MachinesError::WakeFailed(text),
        Error::NoImage(_) | Error::Io { .. } | Error::Stopping => MachinesError::Failed(text),
    }
}
