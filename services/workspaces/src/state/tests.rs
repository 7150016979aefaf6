//! Property test: any sequence of calls and answers keeps the invariants of the module.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;
use shipote_bus::spec::{NodeCommand, ValidatedEdge, WorkspaceSpec};

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
    ]
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
}

fn new_command(id: Ulid, label: &str) -> NewCommand {
    NewCommand {
        id,
        label: label.to_owned(),
        command: NodeCommand { exec: "true".into(), argv: vec![], envp: vec![] },
        soma: Default::default(),
        cwd: None,
        terminal: None,
        timeout: None,
    }
}

impl World {
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
                _ => {}
            }
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
                let (request, id) = (self.request(), self.id());
                let target = self.target(workspace, ephemeral);
                let commands = vec![new_command(id, "true")];
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
                let what = NewPipeline { id, label: "p".into(), edges, discern: Default::default(), tap: true };
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
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_the_invariants(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::default();
        for step in steps {
            world.take(step);
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
    let mut world = World::default();
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
