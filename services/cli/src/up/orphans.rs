//! What services leave behind. The supervisor is the reaper of everything below it (`PR_SET_CHILD_SUBREAPER`,
//! prctl(2)), so an orphan of a dead service becomes its child: reaped while the appliance runs (the service that
//! comes back may still need it), killed when the appliance ends.

use std::{fs, io, time::Duration};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, set_child_subreaper, waitpid};
use tokio::io::unix::AsyncFd;

/// From now on, orphans come to this process.
pub(super) fn adopt() -> io::Result<()> {
    set_child_subreaper(Pid::from_raw(std::process::id().cast_signed()))?;
    Ok(())
}

/// Children of this process, living or dead.
fn children() -> Vec<(Pid, bool)> {
    let own = std::process::id().to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        // proc_pid_stat(5): `pid (name) state ppid …`, where the name may hold anything.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let dead = fields.next()? == "Z";
        (fields.next()? == own).then_some((Pid::from_raw(pid)?, dead))
    })
    .collect()
}

/// Reaps dead ones, except `known` processes, which somebody else waits for.
pub(super) fn reap(known: &[u32]) {
    for (pid, dead) in children() {
        if dead && !known.contains(&pid.as_raw_nonzero().get().cast_unsigned()) {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Waits until all of them have ended, or for so long; reaps them.
pub(super) async fn wait(limit: Duration) {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        reap(&[]);
        let Some(pidfd) = children().first().and_then(|(pid, _)| pidfd_open(*pid, PidfdFlags::empty()).ok()) else {
            return;
        };
        // SAFETY: the runtime watches a descriptor that it owns.
        let Ok(process) = (unsafe { AsyncFd::register(pidfd) }) else { return };
        if tokio::time::timeout_at(deadline, process.readable()).await.is_err() {
            return;
        }
    }
}

/// Kills and reaps all of them, and what then comes to us in turn. Gives back how many there were.
pub(super) fn kill() -> usize {
    let mut killed = 0;
    loop {
        let children = children();
        if children.is_empty() {
            return killed;
        }
        for (pid, dead) in children {
            if !dead && kill_process(pid, Signal::KILL).is_ok() {
                killed += 1;
            }
            // SIGKILL was sent, so this ends.
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}
