//! Limits of a workspace that are reached: the kernel tells, nobody asks again and again.

use std::time::Duration;

use shipote_bus::spec::{QuotaAction, QuotaEnforcement, Soma};
use shipote_cgroup::{Cgroup, Events, Notice};
use tokio::sync::mpsc;
use ulid::Ulid;

use crate::state::Input;

/// A fork bomb is refused thousands of times a second; once in this time is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// The workspace whose limits are watched.
#[derive(Debug, Clone)]
pub(super) struct Watched {
    pub(super) workspace: Ulid,
    pub(super) name: String,
    pub(super) soma: Soma,
    pub(super) quota: QuotaEnforcement,
}

/// Whether anybody wants to know.
pub(super) fn is_wanted(quota: QuotaEnforcement) -> bool {
    quota != QuotaEnforcement::default()
}

/// Logs breaches, or has the commands ended, until the group is gone.
pub(super) async fn watch(group: Cgroup, watched: Watched, inputs: mpsc::UnboundedSender<Input>) {
    let open = |name| group.watch(name).ok().and_then(|file| Notice::new(file).ok());
    let (memory, pids) = (open("memory.events.local"), open("pids.events"));
    if memory.is_none() && pids.is_none() {
        return;
    }
    let mut before = group.events();
    loop {
        tokio::select! {
            () = changed(memory.as_ref()) => {}
            () = changed(pids.as_ref()) => {}
        }
        let now = group.events();
        for (action, text) in breaches(before, now, &watched) {
            match action {
                QuotaAction::None => {}
                QuotaAction::Log => tracing::warn!("workspace {:?}: {text}", watched.name),
                QuotaAction::Kill => {
                    let message = format!("it was ended by its workspace's quota: {text}");
                    let _ = inputs.send(Input::QuotaReached { workspace: watched.workspace, message });
                }
            }
        }
        before = now;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits for the next change; for ever where there is nothing to watch, or nothing any more.
async fn changed(file: Option<&Notice>) {
    match file {
        Some(file) if file.changed().await.is_ok() => {}
        _ => std::future::pending().await,
    }
}

/// What has been reached since, and what is to be done about it. A command that met a limit of its own alone is no
/// breach of its workspace's.
fn breaches(before: Events, now: Events, watched: &Watched) -> Vec<(QuotaAction, String)> {
    let mut all = Vec::new();
    if now.oom_here > before.oom_here {
        let limit = watched.soma.memory().map_or_else(String::new, |l| format!(" of {l} bytes"));
        all.push((watched.quota.mem, format!("memory reached the limit{limit}")));
    }
    if now.pids_max_here > before.pids_max_here {
        let limit = watched.soma.processes().map_or_else(String::new, |l| format!(" of {l}"));
        all.push((watched.quota.nproc, format!("the number of processes reached the limit{limit}")));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_grown_is_a_breach() {
        let watched = Watched {
            workspace: Ulid::default(),
            name: "w".to_owned(),
            soma: toml::from_str("cgroup={memory_max=2000000,pids_max=3}").unwrap(),
            quota: QuotaEnforcement { mem: QuotaAction::Kill, nproc: QuotaAction::Log },
        };
        let before = Events { oom_here: 1, pids_max_here: 5, ..Events::default() };
        assert_eq!(breaches(before, before, &watched), []);
        // reclaimed memory is no breach
        assert_eq!(breaches(before, Events { memory_max: 9, ..before }, &watched), []);
        // a command met its own limit
        let below = Events { oom: 3, oom_kill: 3, pids_max: 8, ..before };
        assert_eq!(breaches(before, below, &watched), []);
        let both = Events { oom_here: 2, pids_max_here: 6, ..before };
        let want = [
            (QuotaAction::Kill, "memory reached the limit of 2000000 bytes".to_owned()),
            (QuotaAction::Log, "the number of processes reached the limit of 3".to_owned()),
        ];
        assert_eq!(breaches(before, both, &watched), want);
    }
}
