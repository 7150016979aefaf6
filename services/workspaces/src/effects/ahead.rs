//! Workspaces made ahead.
//!
//! A command that is run in a workspace of its own waits for the workspace to be made. Who runs one so often runs the
//! next one in the same way; so, when one has come up, others are made like it, with ids that nobody has been told,
//! and wait for whoever asks for just that:
//!
//! ```text
//!   run ──▶ none fits: raised while its caller waits ──▶ comes up ──▶ ends ──▶ others like it are begun
//!   run ──▶ the one made ahead fits: it gets that one's id ─────────▶ ends ──▶ another like it is begun
//!                                          nobody came for it in time, or the host has changed: it is ended
//! ```
//!
//! They are begun when a workspace has ended, or soon: a caller's command is not to share the processors with the
//! making of what its successor may want.
//!
//! It is no workspace of the service's until somebody has it: in no list, in no store, and it ends with the service.
//! What belongs to somebody (granted paths, what is kept, a door out) is not made ahead; see [`is_plain`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shipote_bus::spec::{Soma, WorkspaceSpec};
use shipote_confinement::Mechanism;
use shipote_sandbox::{ExitStream, HostFiles, HostMark, Keeper, Network, SandboxSpec, Spawner};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use ulid::Ulid;

use super::Cgroups;
use super::keepers::make_group;
use crate::error::Error;

/// As many wait at once: one for whoever asks next, while the other is made for who asks after that. A command may take
/// less time than a workspace.
const WAITING: usize = 2;
/// How long the next ones are put off at most, for a command that is begun to be on its way.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// A workspace to be raised.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) id: Ulid,
    /// Whose it is: its control group is among that user's.
    pub(super) uid: u32,
    pub(super) name: String,
    pub(super) spec: SandboxSpec,
    pub(super) soma: Soma,
}

/// One that stands.
pub(super) struct Raised {
    pub(super) keeper: Keeper,
    pub(super) exits: ExitStream,
    /// How far its resources are limited.
    pub(super) cgroup: Mechanism,
}

/// What raises workspaces.
#[derive(Clone)]
pub(super) struct Raiser {
    pub(super) spawner: Arc<Spawner>,
    pub(super) cgroups: Cgroups,
}

/// The workspaces that are made ahead: all alike.
#[derive(Clone)]
pub(crate) struct Ahead {
    raiser: Raiser,
    slot: Arc<Mutex<Slot>>,
    /// A workspace has ended.
    ended: Arc<Notify>,
}

#[derive(Default)]
struct Slot {
    /// The one that has waited longest first.
    spares: VecDeque<Spare>,
    /// The service ends.
    closed: bool,
}

struct Spare {
    /// What it is like, its label left out.
    like: WorkspaceSpec,
    asked: Asked,
    host: Arc<HostMark>,
    raised: JoinHandle<Result<Raised, Error>>,
}

impl Slot {
    /// The one of this id.
    fn take(&mut self, id: Ulid) -> Option<Spare> {
        let place = self.spares.iter().position(|spare| spare.asked.id == id)?;
        self.spares.remove(place)
    }
}

/// One that was made ahead and that nobody else gets.
pub(super) struct Claimed(Spare);

impl Raiser {
    /// Makes a workspace's group and its first process.
    pub(super) async fn raise(&self, mut asked: Asked) -> Result<Raised, Error> {
        let Asked { id, uid, name, spec, soma } = &mut asked;
        let (group, cgroup) = make_group(&self.cgroups, (*id, *uid), name, soma, spec.strict).await?;
        spec.cgroup = group;
        let (keeper, exits) = self.spawner.workspace(spec).await.map_err(|error| refused(name, error))?;
        Ok(Raised { keeper, exits, cgroup })
    }

    /// Ends one that nobody has had.
    async fn undo(&self, id: Ulid, raised: Result<Raised, Error>) {
        if let Ok(raised) = raised {
            // it may have ended by itself
            let _ = raised.keeper.end(Duration::ZERO).await;
        }
        self.cgroups.removed(id).await;
    }
}

fn refused(name: &str, error: shipote_sandbox::SandboxError) -> Error {
    match error {
        shipote_sandbox::SandboxError::Strict(reason) => Error::NotEnforced { name: name.to_owned(), reason },
        error => Error::Keeper { name: name.to_owned(), reason: error.to_string() },
    }
}

/// Whether a workspace of this spec is as good made ahead: nothing in it is anybody's, and nothing of it can be refused.
fn is_plain(spec: &SandboxSpec) -> bool {
    spec.paths.is_empty()
        && spec.hidden.is_empty()
        && spec.host_files == HostFiles::None
        && !(spec.host_processes || spec.explain || spec.strict)
        && matches!(spec.network, Network::None | Network::Loopback)
}

/// What an ephemeral workspace is called.
fn label(id: Ulid) -> String {
    format!("run-{}", id.to_string().to_ascii_lowercase())
}

impl Ahead {
    pub(super) fn new(raiser: Raiser) -> Self {
        Self { raiser, slot: Arc::default(), ended: Arc::default() }
    }

    pub(super) fn raiser(&self) -> Raiser {
        self.raiser.clone()
    }

    /// Gives a workspace that is to be made the id and the label of the one made ahead, where that is like it.
    pub(super) fn lend(&self, id: &mut Ulid, spec: &mut WorkspaceSpec, uid: u32) {
        let slot = self.lock();
        let Some(spare) = slot.spares.front() else { return };
        let own = std::mem::take(&mut spec.label);
        let fits = *spec == spare.like && own == label(*id) && spare.asked.uid == uid;
        spec.label = own;
        if fits {
            *id = spare.asked.id;
            spec.label.clone_from(&spare.asked.name);
        }
    }

    /// Takes the workspace of this id, if that is one made ahead. To be called before anything else is waited for:
    /// until then another might be lent it, or it might be ended.
    pub(super) fn claim(&self, id: Ulid) -> Option<Claimed> {
        self.lock().take(id).map(Claimed)
    }

    /// The claimed workspace, if it is what is asked for on a host like this; ended otherwise. `None`: it has to be
    /// raised.
    pub(super) async fn get(&self, Claimed(spare): Claimed, asked: &Asked, host: &HostMark) -> Option<Raised> {
        let like = |a: &Asked, b: &Asked| a.spec == b.spec && a.soma == b.soma && a.uid == b.uid;
        let fits = like(&spare.asked, asked) && *spare.host == *host;
        match spare.raised.await.unwrap_or_else(|error| Err(Error::Failed(error.to_string()))) {
            Ok(raised) if fits && raised.keeper.is_alive() => Some(raised),
            other => {
                self.raiser.undo(asked.id, other).await;
                None
            }
        }
    }

    /// A workspace has ended, and what it kept busy has time for others.
    pub(super) fn ended(&self) {
        self.ended.notify_waiters();
    }

    /// Begins as many like `asked`, which has just come up, as there are to be, once there is time for it. The host was
    /// like this before.
    pub(super) fn prepare(&self, asked: Asked, mut like: WorkspaceSpec, host: HostMark) {
        if !is_plain(&asked.spec) || asked.name != label(asked.id) {
            return;
        }
        like.label.clear();
        let (ahead, ended) = (self.clone(), Arc::clone(&self.ended).notified_owned());
        tokio::spawn(async move {
            let _ = tokio::time::timeout(PAUSE, ended).await;
            let (before, begun) = ahead.fill(&asked, &like, &Arc::new(host));
            for spare in before {
                ahead.end(spare).await;
            }
            if begun.is_empty() {
                return;
            }
            tokio::time::sleep(PATIENCE).await;
            for id in begun {
                let late = ahead.lock().take(id);
                if let Some(late) = late {
                    ahead.end(late).await;
                }
            }
        });
    }

    /// Begins those that are missing. Returns those that are of no use any more, and the ids of those begun.
    fn fill(&self, asked: &Asked, like: &WorkspaceSpec, host: &Arc<HostMark>) -> (VecDeque<Spare>, Vec<Ulid>) {
        let mut slot = self.lock();
        if slot.closed {
            return Default::default();
        }
        let fits = |spare: &Spare| spare.like == *like && spare.asked.uid == asked.uid && spare.host == *host;
        let (kept, before) = std::mem::take(&mut slot.spares).into_iter().partition(fits);
        slot.spares = kept;
        let mut begun = Vec::new();
        while slot.spares.len() < WAITING {
            let spare = self.begin(asked, like, host);
            begun.push(spare.asked.id);
            slot.spares.push_back(spare);
        }
        (before, begun)
    }

    fn begin(&self, asked: &Asked, like: &WorkspaceSpec, host: &Arc<HostMark>) -> Spare {
        let id = Ulid::generate();
        let (spec, soma) = (asked.spec.clone(), asked.soma.clone());
        let mut next = Asked { id, uid: asked.uid, name: label(id), spec, soma };
        next.spec.hostname = next.name.clone();
        let (raiser, raising) = (self.raiser.clone(), next.clone());
        let raised = tokio::spawn(async move { raiser.raise(raising).await });
        Spare { like: like.clone(), asked: next, host: Arc::clone(host), raised }
    }

    /// Ends those that there are, and makes none any more.
    pub(crate) async fn close(&self) {
        let spares = {
            let mut slot = self.lock();
            slot.closed = true;
            std::mem::take(&mut slot.spares)
        };
        for spare in spares {
            self.end(spare).await;
        }
    }

    async fn end(&self, spare: Spare) {
        let raised = spare.raised.await.unwrap_or_else(|error| Err(Error::Failed(error.to_string())));
        self.raiser.undo(spare.asked.id, raised).await;
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
