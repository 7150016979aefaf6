//! Property test: any sequence of calls and answers keeps the invariants of the module.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use shipote_bus::spec::{NodeCommand, RestartPolicy, ValidatedEdge, WorkspaceSpec};

use super::*;
use crate::error::SpawnKind;

/// What a test does next; indices pick among what is there.
#[derive(Debug, Clone, Copy)]
enum Step {
    Create {
        name: u8,
        numbered: bool,
    },
    Run {
        workspace: usize,
        ephemeral: bool,
    },
    RunPipeline {
        workspace: usize,
        nodes: usize,
    },
    /// The oldest effect that awaits an answer gets one: well or badly.
    Answer {
        well: bool,
    },
    Exit {
        command: usize,
        status: i32,
    },
    KeeperDies {
        workspace: usize,
    },
    Stop {
        workspace: usize,
    },
    StopPipeline {
        pipeline: usize,
    },
    Deadline {
        command: usize,
    },
    Ttl {
        workspace: usize,
    },
    Quota {
        workspace: usize,
    },
    Signal {
        command: usize,
        signal: i32,
    },
    /// The timer that is due next comes.
    Time,
    /// The service is killed; of what it started, these live on.
    Killed {
        survive: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, any::<bool>()).prop_map(|(name, numbered)| Step::Create { name, numbered }),
        (0..8usize, any::<bool>()).prop_map(|(workspace, ephemeral)| Step::Run { workspace, ephemeral }),
        (0..8usize, 1..4usize).prop_map(|(workspace, nodes)| Step::RunPipeline { workspace, nodes }),
        prop::bool::weighted(0.8).prop_map(|well| Step::Answer { well }),
        prop::bool::weighted(0.8).prop_map(|well| Step::Answer { well }),
        (0..8usize, prop_oneof![Just(0), Just(1), Just(141)])
            .prop_map(|(command, status)| Step::Exit { command, status }),
        (0..8usize).prop_map(|workspace| Step::KeeperDies { workspace }),
        (0..8usize).prop_map(|workspace| Step::Stop { workspace }),
        (0..4usize).prop_map(|pipeline| Step::StopPipeline { pipeline }),
        (0..8usize).prop_map(|command| Step::Deadline { command }),
        (0..8usize).prop_map(|workspace| Step::Ttl { workspace }),
        (0..8usize).prop_map(|workspace| Step::Quota { workspace }),
        (0..8usize, -1..70i32).prop_map(|(command, signal)| Step::Signal { command, signal }),
        Just(Step::Time),
        Just(Step::Time),
        any::<u8>().prop_map(|survive| Step::Killed { survive }),
    ]
}

/// What of a state outlives the service.
fn lasting(state: &State) -> (Vec<Record>, Vec<(String, Ulid)>) {
    let plain = |record: &Record| serde_json::from_str(&serde_json::to_string(record).unwrap()).unwrap();
    let records = state.all_records().iter().map(plain).collect();
    let mut names: Vec<_> = state.names.iter().map(|(name, id)| (name.clone(), *id)).collect();
    names.sort();
    (records, names)
}

#[derive(Default)]
struct World {
    state: State,
    now: Usec,
    requests: u64,
    ids: u128,
    answered: HashSet<RequestId>,
    completed: HashMap<Ulid, i32>,
    ended: HashMap<Ulid, (i32, &'static str)>,
    pending: VecDeque<Effect>,
    dead_keepers: HashSet<Ulid>,
    /// What the records of all steps say, in the form in which they are kept.
    kept: BTreeMap<Key, String>,
    timers: BTreeSet<(Usec, Timer)>,
    /// Every other command is restarted.
    restarted: bool,
}

fn new_command(id: Ulid, label: &str) -> NewCommand {
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

const RESTART: RestartPolicy = RestartPolicy { initial_ms: 1, factor: 2, max_ms: 4, limit: 3, healthy_ms: 60_000 };

impl World {
    /// A command as the next step wants it: every other one is restarted when it fails.
    fn next_command(&mut self, label: &str) -> NewCommand {
        let id = self.id();
        NewCommand { restart: self.next_restart(), ..new_command(id, label) }
    }

    fn next_restart(&mut self) -> Option<RestartPolicy> {
        self.restarted = !self.restarted;
        self.restarted.then_some(RESTART)
    }

    fn id(&mut self) -> Ulid {
        self.ids += 1;
        Ulid::from_bytes(self.ids.to_be_bytes())
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    fn nth<T>(all: impl Iterator<Item = T>, n: usize) -> Option<T> {
        let all: Vec<T> = all.collect();
        let len = all.len();
        all.into_iter().nth(n % len.max(1))
    }

    fn handle(&mut self, input: Input) {
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

    fn check(&mut self) {
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
    fn check_records(&self) {
        let mut copy = State::restore(self.kept.values().map(|text| serde_json::from_str(text).unwrap()));
        assert_eq!(format!("{:?}", lasting(&copy)), format!("{:?}", lasting(&self.state)));
        assert_eq!((copy.living(), copy.history.len()), (self.state.living(), self.state.history.len()));
        assert!(copy.take_records().is_empty());
    }

    fn target(&mut self, workspace: usize, ephemeral: bool) -> Target {
        match Self::nth(self.state.workspaces.values().filter(|w| !w.ephemeral).map(|w| w.name.clone()), workspace) {
            Some(name) if !ephemeral => Target::Existing(name),
            _ => {
                let id = self.id();
                Target::Ephemeral { id, spec: Box::new(WorkspaceSpec { label: id.to_string(), ..Default::default() }) }
            }
        }
    }

    fn answer(&mut self, well: bool) {
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
    fn kill(&mut self, survive: u8) {
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
    fn come_back(&mut self, survivors: Survivors) {
        let ended = survivors.ended.clone();
        // its callers and its timers die with it, and what was under way is answered to nobody
        self.answered.extend((1..=self.requests).map(RequestId));
        self.pending.clear();
        self.timers.clear();
        self.state = State::restore(self.kept.values().map(|text| serde_json::from_str(text).unwrap()));
        self.handle(Input::Resume { survivors: Box::new(survivors) });
        for command in ended {
            self.handle(Input::Exited { command, status: 3, signalled: false, limits: LimitNote::default() });
        }
        // every timer that was on its way is on its way again
        for command in self.state.commands.values().filter(|c| c.phase == CommandPhase::Waiting) {
            let own = self.timers.iter().any(|(_, timer)| *timer == Timer::Relaunch(command.what.id));
            let with = command.pipeline.is_some();
            assert!(own || with, "{} waits for nothing", command.what.id);
        }
    }

    fn command(&self, n: usize) -> Option<Ulid> {
        Self::nth(self.state.commands.keys().copied(), n)
    }

    fn workspace(&self, n: usize) -> Option<Ulid> {
        Self::nth(self.state.workspaces.keys().copied(), n)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Create { name, numbered } => {
                let (request, id) = (self.request(), self.id());
                let spec = Box::new(WorkspaceSpec { label: format!("w{name}"), ttl: Some(5), ..Default::default() });
                self.handle(Input::Create { request, id, spec, strict: false, uid: 1, numbered });
            }
            Step::Run { workspace, ephemeral } => {
                let request = self.request();
                let target = self.target(workspace, ephemeral);
                let commands = vec![self.next_command("true")];
                self.handle(Input::Run { request, target, strict: false, uid: 1, commands, pipeline: None });
            }
            Step::RunPipeline { workspace, nodes } => {
                let (request, id) = (self.request(), self.id());
                let target = self.target(workspace, false);
                let commands = (0..nodes)
                    .map(|_| {
                        let id = self.id();
                        new_command(id, "n")
                    })
                    .collect();
                let edges = (1..nodes)
                    .map(|to| ValidatedEdge {
                        from: to - 1,
                        from_output: "stdout".into(),
                        to,
                        to_input: "stdin".into(),
                    })
                    .collect();
                let restart = self.next_restart();
                let what =
                    NewPipeline { id, label: "p".into(), edges, discern: Default::default(), tap: true, restart };
                self.handle(Input::Run { request, target, strict: false, uid: 1, commands, pipeline: Some(what) });
            }
            Step::Answer { well } => self.answer(well),
            Step::Exit { command, status } => {
                if let Some(command) = self.command(command) {
                    // only what was started can exit
                    let begun = self.state.commands[&command].phase == CommandPhase::Running;
                    if begun {
                        self.handle(Input::Exited {
                            command,
                            status,
                            signalled: status > 128,
                            limits: LimitNote::default(),
                        });
                    }
                }
            }
            Step::KeeperDies { workspace } => {
                if let Some(workspace) = self.workspace(workspace)
                    && self.state.workspaces[&workspace].phase != WorkspacePhase::Starting
                    && self.dead_keepers.insert(workspace)
                {
                    self.handle(Input::KeeperGone { workspace });
                }
            }
            Step::Stop { workspace } => {
                if let Some(id) = self.workspace(workspace) {
                    let request = self.request();
                    self.handle(Input::StopWorkspace { request, workspace: id.to_string(), grace: Duration::ZERO });
                }
            }
            Step::StopPipeline { pipeline } => {
                if let Some(id) = Self::nth(self.state.pipelines.keys().copied(), pipeline) {
                    let request = self.request();
                    self.handle(Input::StopPipeline { request, pipeline: id.to_string(), grace: Duration::ZERO });
                }
            }
            Step::Deadline { command } => {
                if let Some(command) = self.command(command) {
                    self.handle(Input::Deadline { command });
                    self.handle(Input::Escalate { command });
                }
            }
            Step::Ttl { workspace } => {
                if let Some(workspace) = self.workspace(workspace) {
                    self.handle(Input::TtlExpired { workspace });
                }
            }
            Step::Quota { workspace } => {
                if let Some(workspace) = self.workspace(workspace) {
                    self.handle(Input::QuotaReached { workspace, message: "m".to_owned() });
                }
            }
            Step::Time => {
                let Some((due, timer)) = self.timers.pop_first() else { return };
                self.now = self.now.max(due);
                self.handle(match timer {
                    Timer::Deadline(command) => Input::Deadline { command },
                    Timer::Escalate(command) => Input::Escalate { command },
                    Timer::Idle(workspace) => Input::IdleDue { workspace },
                    Timer::Ttl(workspace) => Input::TtlExpired { workspace },
                    Timer::Relaunch(command) => Input::Relaunch { command },
                    Timer::RelaunchPipeline(pipeline) => Input::RelaunchPipeline { pipeline },
                });
            }
            Step::Killed { survive } => self.kill(survive),
            Step::Signal { command, signal } => {
                if let Some(id) = self.command(command) {
                    let request = self.request();
                    self.handle(Input::Signal { request, command: id.to_string(), signal });
                }
            }
        }
    }

    /// Everything that was begun comes to its end: keepers are stopped, effects answered.
    fn wind_up(&mut self) {
        while !self.pending.is_empty() {
            self.answer(true);
        }
        while let Some(id) = self.workspace(0) {
            self.take(Step::Stop { workspace: 0 });
            while !self.pending.is_empty() {
                self.answer(true);
            }
            assert!(!self.state.workspaces.contains_key(&id), "a stopped workspace stays");
        }
        let all: HashSet<_> = (1..=self.requests).map(RequestId).collect();
        assert_eq!(self.answered, all, "every request is answered");
        let open: Vec<_> = self.state.commands.values().filter(|c| c.phase != CommandPhase::Ended).collect();
        assert!(open.is_empty(), "{open:?}");
        for id in self.state.commands.keys().chain(self.state.pipelines.keys()) {
            assert!(self.completed.contains_key(id), "{id} was never completed");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_invariants(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
        for step in steps {
            world.take(step);
            world.check_records();
        }
        world.wind_up();
    }
}

#[test]
fn the_history_is_bounded() {
    let mut world = World::default();
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    for _ in 0..HISTORY_MAX + 10 {
        world.take(Step::Run { workspace: 0, ephemeral: false });
        world.answer(true);
        let id = *world.state.commands.keys().next_back().unwrap();
        world.handle(Input::Exited { command: id, status: 0, signalled: false, limits: LimitNote::default() });
    }
    assert_eq!(world.state.commands.len(), HISTORY_MAX);
}

#[test]
fn a_limit_that_ends_a_command_is_its_reason() {
    let mut world = World { restarted: true, ..World::default() };
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    let workspace = world.workspace(0).unwrap();
    let run = |world: &mut World, quota: bool| {
        world.take(Step::Run { workspace: 0, ephemeral: false });
        world.answer(true);
        let command = *world.state.commands.keys().next_back().unwrap();
        if quota {
            world.handle(Input::QuotaReached { workspace, message: "too many".to_owned() });
        }
        let limits = LimitNote { reason: "out-of-memory", message: "none is left".to_owned() };
        world.handle(Input::Exited { command, status: 137, signalled: true, limits });
        let ended = &world.state.commands[&command];
        (ended.reason, ended.message.clone())
    };
    assert_eq!(run(&mut world, false), ("out-of-memory", "none is left".to_owned()));
    assert_eq!(run(&mut world, true), ("quota", "too many".to_owned()));
    assert!(world.state.workspaces.contains_key(&workspace), "the workspace stays");
}

#[test]
fn an_id_may_be_shortened() {
    let mut world = World::default();
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let id = world.state.commands.keys().next().unwrap().to_string();
    for wanted in [id.as_str(), &id[20..], &id.to_lowercase()] {
        assert_eq!(world.state.find_command(wanted).unwrap().what.id.to_string(), id);
    }
    assert!(world.state.find_command(&id[22..]).is_err());
    assert!(world.state.find_command("ZZZZZZ").is_err());
}

#[test]
fn a_taken_name_is_refused_or_numbered_as_the_caller_wants() {
    let mut world = World::default();
    for numbered in [false, true, true, false] {
        world.take(Step::Create { name: 0, numbered });
        world.answer(true);
    }
    let names = |world: &World| world.state.workspaces.values().map(|w| w.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&world), ["w0", "w0~2", "w0~3"]);
    assert!(world.state.workspaces.values().all(|w| w.spec.label == "w0"));
    // a number that has become free is given again
    world.take(Step::Stop { workspace: 1 });
    world.answer(true);
    world.take(Step::Create { name: 0, numbered: true });
    assert_eq!(names(&world), ["w0", "w0~3", "w0~2"]);
}

#[test]
fn a_name_cannot_stand_before_an_id() {
    let mut world = World::default();
    world.take(Step::Create { name: 0, numbered: false });
    let id = world.workspace(0).unwrap();
    let (request, other) = (world.request(), world.id());
    let spec = Box::new(WorkspaceSpec { label: id.to_string(), ..Default::default() });
    world.handle(Input::Create { request, id: other, spec, strict: false, uid: 2, numbered: true });
    assert_eq!(world.state.find_workspace(&id.to_string()).unwrap().id, id);
}

#[test]
fn a_failed_command_is_restarted_under_its_id_until_it_works() {
    let mut world = World { restarted: false, ..World::default() };
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    world.timers.clear();
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let id = world.command(0).unwrap();
    for launch in 0..3 {
        world.answer(true);
        assert_eq!(world.state.commands[&id].phase, CommandPhase::Running);
        assert_eq!(world.state.commands[&id].restarts.count, launch);
        if launch == 1 {
            // killed and back: the count stays
            world.kill(0xff);
        }
        let status = if launch < 2 { 1 } else { 0 };
        world.handle(Input::Exited { command: id, status, signalled: false, limits: LimitNote::default() });
        if launch < 2 {
            assert_eq!(world.state.commands[&id].phase, CommandPhase::Waiting);
            assert!(world.completed.is_empty());
            if launch == 0 {
                // killed while it waits: the pause goes on
                world.kill(0xff);
            }
            world.take(Step::Time);
        }
    }
    assert_eq!(world.completed.get(&id), Some(&0));
}

#[test]
fn a_pipeline_is_restarted_as_a_whole_up_to_its_limit() {
    let mut world = World { restarted: true, ..World::default() };
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    world.timers.clear();
    // two nodes, the first of which would be restarted alone
    world.take(Step::RunPipeline { workspace: 0, nodes: 2 });
    let id = *world.state.pipelines.keys().next().unwrap();
    for command in world.state.commands.values_mut() {
        command.what.restart = None;
    }
    world.state.pipelines.get_mut(&id).unwrap().what.restart = Some(RESTART);
    let nodes = world.state.pipelines[&id].nodes.clone();
    for launch in 0..=3 {
        world.answer(true);
        world.answer(true);
        assert_eq!(world.state.pipelines[&id].restarts.count, launch);
        for (node, status) in nodes.iter().zip([1, 0]) {
            assert!(world.completed.is_empty());
            world.handle(Input::Exited { command: *node, status, signalled: false, limits: LimitNote::default() });
        }
        world.take(Step::Time);
    }
    assert_eq!(world.state.pipelines[&id].exit_status, Some(1));
    assert_eq!(world.completed.len(), 3);
}

/// A keeper that lives, and of its commands these.
fn survivors(workspace: Ulid, running: &[Ulid]) -> Survivors {
    let mut survivors = Survivors::default();
    survivors.workspaces.insert(workspace, vec![]);
    survivors.running.extend(running.iter().map(|id| (*id, 9)));
    survivors
}

#[test]
fn a_launch_that_a_killed_service_did_not_come_to_is_made_by_the_next() {
    let mut world = World { restarted: false, ..World::default() };
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let (workspace, id) = (world.workspace(0).unwrap(), world.command(0).unwrap());
    world.answer(true);
    world.handle(Input::Exited { command: id, status: 1, signalled: false, limits: LimitNote::default() });
    world.handle(Input::Relaunch { command: id });
    assert_eq!(world.state.commands[&id].phase, CommandPhase::Starting);
    world.come_back(survivors(workspace, &[]));
    assert!(world.completed.is_empty(), "{:?}", world.state.commands[&id].message);
    assert!(world.pending.iter().any(|effect| matches!(effect, Effect::StartCommand { command } if *command == id)));
    world.answer(true);
    assert_eq!(world.state.commands[&id].phase, CommandPhase::Running);
    // it runs already: it is not launched twice
    world.handle(Input::Exited { command: id, status: 1, signalled: false, limits: LimitNote::default() });
    world.handle(Input::Relaunch { command: id });
    world.come_back(survivors(workspace, &[id]));
    assert_eq!((world.state.commands[&id].phase, world.pending.len()), (CommandPhase::Running, 0));
    // and what was to be launched for the first time, its caller was told of
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let first = *world.state.commands.keys().find(|other| **other != id).unwrap();
    world.come_back(survivors(workspace, &[id]));
    assert_eq!(world.state.commands[&first].reason, "spawn-failed");
}

#[test]
fn a_pipeline_whose_launch_was_cut_off_by_a_kill_is_launched_once_more_as_a_whole() {
    let mut world = World { restarted: true, ..World::default() };
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    world.take(Step::RunPipeline { workspace: 0, nodes: 2 });
    let (workspace, id) = (world.workspace(0).unwrap(), *world.state.pipelines.keys().next().unwrap());
    for command in world.state.commands.values_mut() {
        command.what.restart = None;
    }
    world.state.pipelines.get_mut(&id).unwrap().what.restart = Some(RESTART);
    let nodes = world.state.pipelines[&id].nodes.clone();
    world.answer(true);
    world.answer(true);
    for (node, status) in nodes.iter().zip([1, 0]) {
        world.handle(Input::Exited { command: *node, status, signalled: false, limits: LimitNote::default() });
    }
    world.handle(Input::RelaunchPipeline { pipeline: id });
    // its first node runs, its second was not come to, nor what carries its flows
    world.come_back(survivors(workspace, &nodes[..1]));
    assert_eq!(world.state.commands[&nodes[1]].phase, CommandPhase::Waiting);
    assert_eq!(world.state.pipelines[&id].restarts.due, None);
    world.handle(Input::Exited { command: nodes[0], status: 137, signalled: true, limits: LimitNote::default() });
    assert!(world.state.pipelines[&id].restarts.due.is_some() && world.completed.is_empty());
    world.handle(Input::RelaunchPipeline { pipeline: id });
    world.answer(true);
    world.answer(true);
    for node in &nodes {
        world.handle(Input::Exited { command: *node, status: 0, signalled: false, limits: LimitNote::default() });
    }
    assert_eq!(world.state.pipelines[&id].exit_status, Some(0));
}

#[test]
fn a_second_shorter_grace_shortens_the_first() {
    let mut world = World::default();
    world.take(Step::Create { name: 0, numbered: false });
    world.answer(true);
    let workspace = world.workspace(0).unwrap().to_string();
    let mut graces = Vec::new();
    for seconds in [60, 3600, 1] {
        let request = world.request();
        let grace = Duration::from_secs(seconds);
        let input = Input::StopWorkspace { request, workspace: workspace.clone(), grace };
        for effect in world.state.handle(input, world.now) {
            if let Effect::EndKeeper { grace, .. } = effect {
                graces.push(grace.as_secs());
            }
        }
    }
    assert_eq!(graces, [60, 1]);
}

#[test]
fn the_list_of_a_workspace_that_goes_out_is_changed_and_recorded() {
    use shipote_bus::spec::Networking;

    let change = |allow: &[&str], deny: &[&str]| {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect();
        EgressChange { allow: texts(allow), deny: texts(deny) }
    };
    let mut state = State::default();
    let id = Ulid::generate();
    let mut spec = WorkspaceSpec { label: "web".to_owned(), egress: vec!["a".to_owned()], ..WorkspaceSpec::default() };
    spec.permissions.networking = Networking::Outbound;
    let spec = Box::new(spec);
    let request = RequestId(1);
    state.handle(Input::Create { request, id, spec, strict: false, uid: 0, numbered: false }, 0);
    state.handle(Input::KeeperReady { workspace: id, mechanisms: Vec::new() }, 0);
    let ask = |state: &mut State, change: EgressChange| {
        let input = Input::ChangeEgress { request: RequestId(2), workspace: "web".to_owned(), change };
        let effects = state.handle(input, 0);
        let told = effects.iter().any(|e| matches!(e, Effect::WorkspaceChanged { .. }));
        let reply = effects.into_iter().find_map(|effect| match effect {
            Effect::Reply { result, .. } => Some(result),
            _ => None,
        });
        (reply.unwrap(), told)
    };
    let _ = state.take_records();
    let (list, told) = ask(&mut state, change(&["b:8443", "b:8443"], &["a"]));
    assert_eq!((list, told), (Ok(Outcome::Egress(vec!["b:8443".to_owned()])), true));
    let records = state.take_records();
    let restored = State::restore(records);
    assert_eq!(restored.workspaces[&id].spec.egress, ["b:8443"]);
    for (change, wanted) in
        [(change(&["http://x"], &[]), "is no host"), (change(&[], &["a"]), "is not on its list, which allows b:8443")]
    {
        let (refused, told) = ask(&mut state, change);
        assert!(refused.unwrap_err().to_string().contains(wanted) && !told);
    }
    let many: Vec<String> = (0..300).map(|n| format!("h{n}")).collect();
    let (refused, _) = ask(&mut state, EgressChange { allow: many, deny: Vec::new() });
    assert!(refused.unwrap_err().to_string().contains("256 are allowed"));
}

#[test]
fn what_a_workspace_publishes_is_changed_while_it_lives_and_recorded() {
    use shipote_bus::spec::Networking;

    let mut state = State::default();
    let make = |state: &mut State, label: &str, networking: Networking| {
        let id = Ulid::generate();
        let mut spec = WorkspaceSpec { label: label.to_owned(), ..WorkspaceSpec::default() };
        spec.permissions.networking = networking;
        let (spec, request) = (Box::new(spec), RequestId(1));
        state.handle(Input::Create { request, id, spec, strict: false, uid: 0, numbered: false }, 0);
        state.handle(Input::KeeperReady { workspace: id, mechanisms: Vec::new() }, 0);
        id
    };
    let id = make(&mut state, "web", Networking::Outbound);
    make(&mut state, "shut", Networking::None);
    let ask = |state: &mut State, name: &str, add: &[u16], remove: &[u16]| {
        let change = PublishChange { add: add.to_vec(), remove: remove.to_vec() };
        let input = Input::ChangePublished { request: RequestId(2), workspace: name.to_owned(), change };
        let replies = state.handle(input, 0).into_iter();
        replies.filter_map(|e| if let Effect::Reply { result, .. } = e { Some(result) } else { None }).next().unwrap()
    };
    assert_eq!(ask(&mut state, "web", &[80, 8080, 80], &[]), Ok(Outcome::Published(vec![80, 8080])));
    let _ = state.take_records();
    assert_eq!(ask(&mut state, "web", &[81], &[80]), Ok(Outcome::Published(vec![8080, 81])));
    let restored = State::restore(state.take_records());
    assert_eq!(restored.workspaces[&id].spec.publish, [8080, 81]);
    let many: Vec<u16> = (1..100).collect();
    for (name, add, remove, wanted) in [
        ("web", &[0][..], &[][..], "no port"),
        ("web", &[3128], &[], "the way out"),
        ("web", &[], &[80], "does not publish port 80"),
        ("web", &many, &[], "are allowed"),
        ("shut", &[80], &[], "networking"),
        ("none", &[80], &[], "none"),
    ] {
        let refused = ask(&mut state, name, add, remove).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{name}: {refused}");
    }
    assert_eq!(state.workspaces[&id].spec.publish, [8080, 81], "what was refused changed nothing");
}
