//! Waits for every child: those that a request started and those that the kernel hands to PID 1.
//!
//! There is one place that waits, so that no wait takes another's child. A child is first looked at without being
//! reaped: until then its process group's number cannot be given to anyone else, and the rest of the group is killed
//! under that number safely.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{Signal as Stream, SignalKind};
use tokio::sync::oneshot;

use crate::exec::Cgroup;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 128 + n for death by signal n.
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
}

impl Exit {
    /// Of one whose end nobody saw.
    pub(crate) const UNKNOWN: Self = Self { code: 255, signal: None };
}

/// A command: its process group and, in a machine, its cgroup.
struct Entry {
    exited: oneshot::Sender<Exit>,
    cgroup: Option<Cgroup>,
    /// Whether the rest of the group ends with its leader.
    whole_group: bool,
    /// What must stay for as long as the command lives.
    _keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// All children that a request started and that have not been reaped.
#[derive(Default)]
pub(crate) struct Reaper {
    children: Mutex<HashMap<i32, Entry>>,
}

/// Orphans of commands come to this process, as they do to PID 1.
pub(crate) fn become_subreaper() {
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        eprintln!("shipote-agent: become subreaper: {error}; orphans of commands are left to the system");
    }
}

/// The signal that tells of ended children; to be had before the first child is started.
pub(crate) fn signal() -> std::io::Result<Stream> {
    tokio::signal::unix::signal(SignalKind::child())
}

impl Reaper {
    fn children(&self) -> MutexGuard<'_, HashMap<i32, Entry>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes charge of a child that leads a process group. Must be called on the runtime's thread before anything is
    /// awaited after the child was started, so that it cannot be reaped unknown. How it ended comes
    /// through the receiver.
    pub(crate) fn adopt(
        &self,
        pid: i32,
        cgroup: Option<Cgroup>,
        whole_group: bool,
        keep: Option<Arc<dyn Any + Send + Sync>>,
    ) -> oneshot::Receiver<Exit> {
        let (exited, receiver) = oneshot::channel();
        self.children().insert(pid, Entry { exited, cgroup, whole_group, _keep: keep });
        receiver
    }

    /// Kills a command with everything it started; nothing happens if it has been reaped.
    pub(crate) fn kill(&self, pid: i32) {
        if let Some(entry) = self.children().get(&pid) {
            kill_group(pid);
            if let Some(cgroup) = &entry.cgroup {
                cgroup.kill();
            }
        }
    }

    /// Sends a signal to a command's process group; nothing happens if it has been reaped.
    pub(crate) fn signal(&self, pid: i32, signal: i32) {
        if self.children().contains_key(&pid) {
            // One that has ended needs no signal. Real-time signals have no name in nix.
            // SAFETY: kill has no requirement on memory; until it is reaped the group's number is the command's.
            unsafe { libc::kill(-pid, signal) };
        }
    }

    /// Reaps for as long as the process lives.
    pub(crate) async fn run(self: Arc<Self>, mut ended: Stream) {
        while ended.recv().await.is_some() {
            self.reap();
        }
    }

    fn reap(&self) {
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = waitid(Id::All, look) {
            let mut entry = self.children().remove(&pid.as_raw());
            if let Some(Entry { cgroup, whole_group: true, .. }) = &mut entry {
                kill_group(pid.as_raw());
                if let Some(cgroup) = cgroup.take() {
                    cgroup.end();
                }
            }
            let exit = match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => Exit { code, signal: None },
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    Exit { code: 128 + signal as i32, signal: Some(signal as i32) }
                }
                // waitid has just shown it to be dead.
                _ => Exit::UNKNOWN,
            };
            if let Some(entry) = entry {
                // Nobody listens for background commands.
                let _ = entry.exited.send(exit);
            }
        }
    }
}

/// The group may have ended already; the cgroup holds those that left it.
fn kill_group(leader: i32) {
    let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
}
