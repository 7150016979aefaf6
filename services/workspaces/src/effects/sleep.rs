//! Puts workspaces to sleep and wakes them.
//!
//! With control groups the kernel freezes what runs (`cgroup.freeze`), unseen by it, and takes back what memory it can
//! (`memory.reclaim`). Without, each process is stopped (SIGSTOP), which its parent may notice. The keeper, which only
//! waits, stays awake.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use shipote_cgroup::Cgroup;
use shipote_sandbox::Keeper;
use tokio::sync::Mutex;
use ulid::Ulid;

use super::live::Live;
use crate::state::{Input, Usec, Workspace};

/// SIGCONT and SIGSTOP on Linux, but for Alpha, MIPS, PA-RISC and SPARC.
const CONT: i32 = 18;
const STOP: i32 = 19;
/// Above this share of one processor a workspace is busy, percent.
const BUSY: f32 = 1.0;
/// Largest table of connections that is read; one that is larger belongs to a busy workspace.
const TABLE: u64 = 4 << 20;

/// Whether a workspace is to sleep, and the one who sees to it.
#[derive(Debug, Default)]
pub(super) struct Bed {
    asleep: AtomicBool,
    one: Mutex<()>,
}

impl Live {
    /// Sees to it that a workspace sleeps or is awake. Whoever comes last decides, also for those that still wait.
    pub(super) fn settle(&self, workspace: Ulid, asleep: bool) {
        let Some((keeper, bed)) = self.bed(workspace) else { return };
        bed.asleep.store(asleep, SeqCst);
        let (leaves, inputs) = (self.cgroups.leaves(workspace), self.inputs.clone());
        let group = self.cgroups.of(workspace);
        tokio::spawn(async move {
            let began = Instant::now();
            let _one = bed.one.lock().await;
            let asleep = bed.asleep.load(SeqCst);
            let done = match group {
                Some(group) => freeze(group, leaves, asleep).await,
                None => stop(&keeper, asleep).await.map(|()| 0),
            };
            let _ = inputs.send(if asleep {
                Input::Slept { workspace, given_back: done }
            } else {
                let usec = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                Input::Woken { workspace, usec, failed: done.err() }
            });
        });
    }

    /// Looks whether something goes on that only the kernel knows of.
    pub(super) fn look_at(&self, workspace: &Workspace, since: Usec) {
        let Some((keeper, _)) = self.bed(workspace.id) else { return };
        let mut ports = workspace.spec.publish.clone();
        ports.push(shipote_sandbox::DOOR_PROXY);
        let (id, inputs, meter) = (workspace.id, self.inputs.clone(), self.meter.clone());
        tokio::spawn(async move {
            let share = tokio::task::spawn_blocking(move || meter.share(id, since)).await;
            let busy = share.ok().flatten().is_some_and(|percent| percent > BUSY)
                || match keeper.connections().await {
                    Ok(tables) => tokio::task::spawn_blocking(move || tables.into_iter().any(|t| is_open(t, &ports)))
                        .await
                        .unwrap_or(true),
                    Err(error) => {
                        tracing::warn!("look for connections of workspace {id}: {error}");
                        true
                    }
                };
            let _ = inputs.send(Input::Looked { workspace: id, busy, since });
        });
    }
}

async fn stop(keeper: &Arc<Keeper>, asleep: bool) -> Result<(), String> {
    keeper.signal_all(if asleep { STOP } else { CONT }).await.map_err(|e| e.to_string())
}

/// Freezes or thaws; the bytes that were given back.
async fn freeze(group: Cgroup, leaves: Vec<Cgroup>, asleep: bool) -> Result<u64, String> {
    let work = move || {
        for leaf in leaves {
            match leaf.freeze(asleep) {
                // one that ended meanwhile
                Err(_) if !leaf.path().exists() => {}
                other => other?,
            }
        }
        Ok::<u64, shipote_cgroup::Error>(if asleep { group.reclaim() } else { 0 })
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
}

/// Whether a table of the kernel (proc(5), `/proc/net/tcp`) has an established connection to one of these ports.
fn is_open(table: OwnedFd, ports: &[u16]) -> bool {
    let mut text = String::new();
    match File::from(table).take(TABLE).read_to_string(&mut text) {
        Ok(length) if (length as u64) < TABLE => has_open(&text, ports),
        _ => true,
    }
}

fn has_open(table: &str, ports: &[u16]) -> bool {
    let established = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let port = fields.nth(1)?.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok())?;
        (fields.nth(1)? == "01").then_some(port)
    };
    table.lines().skip(1).filter_map(established).any(|port| ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn established_connections_to_published_ports_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000\n   \
            1: 0100007F:1F91 0100007F:A1B2 01 00000000:00000000 00:00000000 00000000  1000\n";
        assert!(!has_open(table, &[8080]), "one that listens is not open");
        assert!(has_open(table, &[8080, 8081]));
        assert!(!has_open(table, &[]) && !has_open("", &[8081]) && !has_open("\n1: x y\n", &[8081]));
    }
}
