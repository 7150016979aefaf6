//! What workspaces use: read on request, sampled while one lives, compared with their limits.
//!
//! ```text
//! track -> [sampler: every two seconds while a workspace is tracked, else asleep] -> history -> untrack
//! ```
//!
//! Invariants: nothing wakes up where nothing lives; a figure that cannot be had is absent, never zero.

mod history;
mod proc;
mod quota;
mod sample;
mod sampler;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shipote_bus::spec::{QuotaEnforcement, Soma};
use shipote_cgroup::Cgroup;
use tokio::sync::{Notify, mpsc};
use ulid::Ulid;

use self::history::{Folder, History};
use crate::actor::{Handle, now};
use crate::effects::{KeptSize, Share};
use crate::error::Error;
use crate::state::{CommandPhase, Input, State, Usec};

pub(crate) use self::sample::{Counted, Reading, Sample};
pub(crate) use self::sampler::run as run_sampler;

/// A workspace that is sampled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject {
    pub(crate) name: String,
    /// It was made for one command.
    pub(crate) ephemeral: bool,
    /// Its first process.
    pub(crate) keeper: i32,
    pub(crate) group: Option<Cgroup>,
    /// What bounds all workspaces of its user.
    pub(crate) share: Option<Share>,
    /// The bound of what outlives it.
    pub(crate) kept: Option<Arc<KeptSize>>,
    pub(crate) soma: Soma,
    pub(crate) quota: QuotaEnforcement,
}

#[derive(Debug)]
struct Tracked {
    subject: Subject,
    history: Arc<Mutex<History>>,
    /// Breaches that have been told, so that each is told once.
    told: HashSet<quota::Resource>,
}

/// All figures; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Meter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: Folder,
    tracked: Mutex<BTreeMap<Ulid, Tracked>>,
    /// Something is tracked again.
    begun: Notify,
}

/// Everything known of one workspace at this moment.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) id: Ulid,
    pub(crate) subject: Subject,
    pub(crate) reading: Reading,
    pub(crate) sample: Sample,
}

impl Meter {
    /// Opens the histories below `state`.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let inner = Inner { folder: Folder::open(state)?, tracked: Mutex::default(), begun: Notify::new() };
        Ok(Meter(Arc::new(inner)))
    }

    /// Removes the histories of workspaces that do not go on. Blocks.
    pub(crate) fn clear_except(&self, living: &HashSet<Ulid>) {
        self.0.folder.clear_except(|name| Ulid::from_string(name).is_ok_and(|id| living.contains(&id)));
    }

    /// Begins to sample a workspace; one that an earlier instance sampled goes on with its history.
    pub(crate) fn track(&self, id: Ulid, subject: Subject) {
        let path = self.0.folder.file(id);
        let history = Arc::new(Mutex::new(History::load(&path)));
        self.lock().insert(id, Tracked { subject, history, told: HashSet::new() });
        self.0.begun.notify_one();
    }

    /// The workspace is gone, and its history with it.
    pub(crate) fn untrack(&self, id: Ulid) {
        if self.lock().remove(&id).is_some() {
            let _ = std::fs::remove_file(self.0.folder.file(id));
        }
    }

    /// The samples of a workspace, oldest first; `tail` 0: all of them.
    pub(crate) fn history(&self, id: Ulid, tail: usize) -> Vec<Sample> {
        let Some(history) = self.lock().get(&id).map(|t| Arc::clone(&t.history)) else { return Vec::new() };
        let history = history.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Sample> = history.samples().copied().collect();
        let skip = if tail == 0 { 0 } else { all.len().saturating_sub(tail) };
        all.into_iter().skip(skip).collect()
    }

    /// Looks at one workspace.
    pub(crate) async fn standing(&self, actor: &Handle, id: Ulid) -> Result<Standing, Error> {
        self.standings(actor, move |other| *other == id)
            .await?
            .pop()
            .ok_or_else(|| Error::NoSuchWorkspace(id.to_string()))
    }

    /// Looks at these workspaces.
    pub(crate) async fn standings(
        &self,
        actor: &Handle,
        wanted: impl Fn(&Ulid) -> bool + Send + 'static,
    ) -> Result<Vec<Standing>, Error> {
        let counted = actor.ask(counts).await?;
        let it = self.clone();
        // small files by the dozen: not in the way of others
        tokio::task::spawn_blocking(move || it.look(&counted, wanted))
            .await
            .map_err(|e| Error::Failed(format!("read figures: {e}")))
    }

    /// The mean share of one processor that a workspace has used since a time and until now, percent; none: nobody
    /// knows. Blocks.
    pub(crate) fn share(&self, id: Ulid, since: Usec) -> Option<f32> {
        let now =
            self.look(&BTreeMap::new(), |other| *other == id).pop().and_then(|standing| standing.sample.cpu_percent);
        let before = self.history(id, 0).into_iter().filter(|s| s.at >= since).filter_map(|s| s.cpu_percent);
        let all: Vec<f32> = before.chain(now).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f32>() / all.len() as f32)
    }

    /// Blocks.
    fn look(&self, counted: &BTreeMap<Ulid, Counted>, wanted: impl Fn(&Ulid) -> bool) -> Vec<Standing> {
        let all: Vec<(Ulid, Subject, Arc<Mutex<History>>)> = {
            let tracked = self.lock();
            let wanted = tracked.iter().filter(|(id, _)| wanted(id));
            wanted.map(|(id, t)| (*id, t.subject.clone(), Arc::clone(&t.history))).collect()
        };
        let readings: Vec<(shipote_cgroup::Figures, shipote_cgroup::Events)> = all
            .iter()
            .map(|(_, subject, _)| subject.group.as_ref().map(|g| (g.figures(), g.events())).unwrap_or_default())
            .collect();
        let blind = all.iter().zip(&readings).filter(|(_, (figures, _))| figures.memory.is_none());
        let usages = proc::usage(&blind.map(|((_, subject, _), _)| subject.keeper).collect::<Vec<_>>());
        let at = now();
        let standing = |((id, subject, history), (figures, events)): ((Ulid, Subject, Arc<Mutex<History>>), _)| {
            let reading = Reading { figures, events, usage: usages.get(&subject.keeper).copied() };
            let counted = counted.get(&id).copied().unwrap_or_default();
            let history = history.lock().unwrap_or_else(PoisonError::into_inner);
            let sample = Sample::new(at, counted, &reading, history.samples());
            drop(history);
            Standing { id, subject, reading, sample }
        };
        all.into_iter().zip(readings).map(standing).collect()
    }

    /// Takes the samples of this moment, and says which quota is to end commands. Blocks.
    fn sample(&self, counted: &BTreeMap<Ulid, Counted>, inputs: &mpsc::UnboundedSender<Input>) {
        for standing in self.look(counted, |_| true) {
            let id = standing.id;
            let history = self.lock().get(&id).map(|t| Arc::clone(&t.history));
            let Some(history) = history else { continue };
            history.lock().unwrap_or_else(PoisonError::into_inner).push(standing.sample, &self.0.folder.file(id));
            let over = quota::over(&standing.subject, &standing.sample);
            let fresh: Vec<_> = {
                let mut tracked = self.lock();
                let Some(tracked) = tracked.get_mut(&id) else {
                    // it ended meanwhile, and the file was made anew
                    let _ = std::fs::remove_file(self.0.folder.file(id));
                    continue;
                };
                let fresh = over.iter().filter(|b| !tracked.told.contains(&b.resource)).cloned().collect();
                tracked.told = over.iter().map(|b| b.resource).collect();
                fresh
            };
            for breach in fresh {
                quota::enforce(id, &standing.subject, &breach, inputs);
            }
            quota::hold_kept(id, &standing, inputs);
        }
    }

    fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ulid, Tracked>> {
        self.0.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Processors that the service may use.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// Figures that the state has.
fn counts(state: &State, _: &dyn crate::actor::FlowSource) -> BTreeMap<Ulid, Counted> {
    let mut all: BTreeMap<Ulid, Counted> =
        state.workspaces.values().map(|w| (w.id, Counted { created: w.created, ..Counted::default() })).collect();
    for command in state.commands.values() {
        if let Some(counted) = all.get_mut(&command.workspace) {
            counted.commands_total += 1;
            counted.commands_alive += u32::from(command.phase != CommandPhase::Ended);
        }
    }
    all
}
