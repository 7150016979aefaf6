//! A state with what answers it: callers, keepers and clocks of a test's, and the invariants after every step.

use std::collections::{HashMap, HashSet};

use shipote_bus::spec::{NodeCommand, RestartPolicy, WorkspaceSpec};

use super::super::*;
use super::sequences::Step;
use crate::error::SpawnKind;

pub(super) const RESTART: RestartPolicy =
    RestartPolicy { initial_ms: 1, factor: 2, max_ms: 4, limit: 3, healthy_ms: 60_000 };

/// What of a state outlives the service.
fn lasting(state: &State) -> (Vec<Record>, Vec<(String, Ulid)>) {
    let plain = |record: &Record| serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap();
    let records = state.all_records().iter().map(plain).collect();
    let mut names: Vec<_> = state.names.iter().map(|(name, id)| (name.clone(), *id)).collect();
    names.sort();
    (records, names)
}

#[derive(Default)]
pub(super) struct World {
    pub(super) state: State,
    pub(super) now: Usec,
    pub(super) requests: u64,
    pub(super) ids: u128,
    pub(super) answered: HashSet<RequestId>,
    pub(super) completed: HashMap<Ulid, i32>,
    pub(super) ended: HashMap<Ulid, (i32, &'static str)>,
    pub(super) pending: VecDeque<Effect>,
    pub(super) dead_keepers: HashSet<Ulid>,
    /// What the records of all steps say, in the form in which they are kept.
    pub(super) kept: BTreeMap<Key, String>,
    pub(super) timers: BTreeSet<(Usec, Timer)>,
    /// Every other command is restarted.
    pub(super) restarted: bool,
}

pub(super) fn new_command(id: Ulid, label: &str) -> NewCommand {
    NewCommand {
        id,
        label: label.to_owned(),
        command: NodeCommand { exec: "true".into(), argv: vec![], envp: vec![] },
        foreign: None,
        further: Default::default(),
        soma: Default::default(),
        cwd: None,
        terminal: None,
        timeout: None,
        restart: None,
        attachable: false,
        foreground: false,
    }
}

/// A keeper that lives, and of its commands these.
pub(super) fn survivors(workspace: Ulid, running: &[Ulid]) -> Survivors {
    let mut survivors = Survivors::default();
    survivors.workspaces.insert(workspace, vec![]);
    survivors.running.extend(running.iter().map(|id| (*id, 9)));
    survivors
}

impl World {
    /// One with a workspace that stands.
    pub(super) fn standing() -> Self {
        let mut world = World::default();
        world.take(Step::Create { name: 0, numbered: false });
        world.answer(true);
        world
    }

    /// A command as the next step wants it: every other one is restarted when it fails.
    pub(super) fn next_command(&mut self, label: &str) -> NewCommand {
        let id = self.id();
        NewCommand { restart: self.next_restart(), ..new_command(id, label) }
    }

    pub(super) fn next_restart(&mut self) -> Option<RestartPolicy> {
        self.restarted = !self.restarted;
        self.restarted.then_some(RESTART)
    }

    pub(super) fn id(&mut self) -> Ulid {
        self.ids += 1;
        Ulid::from_bytes(self.ids.to_be_bytes())
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(super) fn nth<T>(all: impl Iterator<Item = T>, n: usize) -> Option<T> {
        let all: Vec<T> = all.collect();
        let len = all.len();
        all.into_iter().nth(n % len.max(1))
    }

    pub(super) fn handle(&mut self, input: Input) {
        self.now += 1;
        for effect in self.state.handle(input, self.now) {
            match effect {
                Effect::Reply { request, .. } => {
                    assert!(self.answered.insert(request), "{request:?} was answered twice");
                }
                Effect::Complete { id, status, .. } => {
                    assert!(self.completed.insert(id, status).is_none(), "{id} was completed twice");
                }
                Effect::StartKeeper { .. } | Effect::StartCommand { .. } | Effect::EndKeeper { .. } => {
                    self.pending.push_back(effect);
                }
                Effect::After { delay, input } => {
                    self.timers.insert((self.now + u64::try_from(delay.as_micros()).unwrap(), input));
                }
                _ => {}
            }
        }
        for record in self.state.take_records() {
            self.kept.insert(record.key(), serde_json::to_string(&record).unwrap());
        }
        self.check();
    }

    /// A command ends.
    pub(super) fn exit(&mut self, command: Ulid, status: i32) {
        self.handle(Input::Exited { command, status, signalled: status > 128, limits: LimitNote::default() });
    }

    pub(super) fn check(&mut self) {
        let state = &self.state;
        for command in state.commands.values() {
            let id = command.what.id;
            if command.phase == CommandPhase::Ended {
                let how = (command.exit_status.expect("an ended command has a status"), command.reason);
                let first = *self.ended.entry(id).or_insert(how);
                assert_eq!(first, how, "an ended command changed");
                assert!(self.completed.contains_key(&id));
            } else {
                assert!(state.workspaces.contains_key(&command.workspace), "{id} lives without a workspace");
                assert!(command.exit_status.is_none());
            }
        }
        let living = state.commands.values().filter(|c| c.phase != CommandPhase::Ended).count();
        assert_eq!(state.living(), living);
        for workspace in state.workspaces.values() {
            let idle = state.living_in(workspace.id).next().is_none();
            let lingers = workspace.ephemeral && workspace.phase == WorkspacePhase::Running && idle;
            assert!(!lingers, "an ephemeral workspace outlives its last command");
        }
        let names: HashSet<_> = state.workspaces.values().map(|w| &w.name).collect();
        assert_eq!(names.len(), state.workspaces.len(), "a name is given twice");
        for pipeline in state.pipelines.values() {
            let living = pipeline.nodes.iter().any(|n| state.commands.get(n).is_some_and(|c| c.exit_status.is_none()));
            assert_eq!(pipeline.exit_status.is_none(), living, "a pipeline ends with its last node");
        }
    }

    /// The records of all steps make the same state, but for the callers, who are not kept.
    pub(super) fn check_records(&self) {
        let mut copy = State::restore(self.kept.values().map(|text| serde_json::from_str(text).unwrap()));
        assert_eq!(format!("{:?}", lasting(&copy)), format!("{:?}", lasting(&self.state)));
        assert_eq!((copy.living(), copy.history.len()), (self.state.living(), self.state.history.len()));
        assert!(copy.take_records().is_empty());
    }

    pub(super) fn target(&mut self, workspace: usize, ephemeral: bool) -> Target {
        match Self::nth(self.state.workspaces.values().filter(|w| !w.ephemeral).map(|w| w.name.clone()), workspace) {
            Some(name) if !ephemeral => Target::Existing(name),
            _ => {
                let id = self.id();
                Target::Ephemeral { id, spec: Box::new(WorkspaceSpec { label: id.to_string(), ..Default::default() }) }
            }
        }
    }

    pub(super) fn answer(&mut self, well: bool) {
        let Some(effect) = self.pending.pop_front() else { return };
        let input = match effect {
            Effect::StartKeeper { workspace } if well => Input::KeeperReady { workspace, mechanisms: vec![] },
            Effect::StartKeeper { workspace } => {
                Input::KeeperFailed { workspace, error: Error::Failed("no keeper".into()) }
            }
            Effect::StartCommand { command } if well => Input::Started { command, pid: 7 },
            Effect::StartCommand { command } => {
                let (kind, program, reason) = (SpawnKind::NotFound, "x".to_owned(), "not there".to_owned());
                Input::StartFailed { command, error: Error::Spawn { kind, program, reason } }
            }
            Effect::EndKeeper { workspace, .. } => Input::KeeperEnded { workspace, reaped: 1 },
            _ => return,
        };
        self.handle(input);
    }

    /// The service is killed and started again. Of eight things each, those of a set bit live on.
    pub(super) fn kill(&mut self, survive: u8) {
        let mut survivors = Survivors::default();
        let lives = |n: usize| survive & (1 << (n % 8)) != 0;
        for (n, workspace) in self.state.workspaces.values().enumerate() {
            if lives(n) && workspace.phase != WorkspacePhase::Starting && !self.dead_keepers.contains(&workspace.id) {
                survivors.workspaces.insert(workspace.id, vec![]);
            }
        }
        let running = |c: &&Command| matches!(c.phase, CommandPhase::Running | CommandPhase::Starting);
        for (n, command) in self.state.commands.values().filter(running).enumerate() {
            if survivors.workspaces.contains_key(&command.workspace) {
                match (lives(n), lives(n + 3)) {
                    (true, _) => drop(survivors.running.insert(command.what.id, 9)),
                    (false, true) => drop(survivors.ended.insert(command.what.id)),
                    (false, false) => {}
                }
            }
        }
        survivors.relays =
            self.state.pipelines.keys().enumerate().filter(|(n, _)| lives(*n)).map(|(_, id)| *id).collect();
        self.come_back(survivors);
    }

    /// The service is started again, and finds these.
    pub(super) fn come_back(&mut self, survivors: Survivors) {
        let ended = survivors.ended.clone();
        // its callers and its timers die with it, and what was under way is answered to nobody
        self.answered.extend((1..=self.requests).map(RequestId));
        self.pending.clear();
        self.timers.clear();
        self.state = State::restore(self.kept.values().map(|text| serde_json::from_str(text).unwrap()));
        self.handle(Input::Resume { survivors: Box::new(survivors) });
        for command in ended {
            self.exit(command, 3);
        }
        // every timer that was on its way is on its way again
        for command in self.state.commands.values().filter(|c| c.phase == CommandPhase::Waiting) {
            let own = self.timers.iter().any(|(_, timer)| *timer == Timer::Relaunch(command.what.id));
            let with = command.pipeline.is_some();
            assert!(own || with, "{} waits for nothing", command.what.id);
        }
    }

    pub(super) fn command(&self, n: usize) -> Option<Ulid> {
        Self::nth(self.state.commands.keys().copied(), n)
    }

    pub(super) fn workspace(&self, n: usize) -> Option<Ulid> {
        Self::nth(self.state.workspaces.keys().copied(), n)
    }
}
