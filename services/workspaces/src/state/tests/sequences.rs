//! Property test: any sequence of calls and answers keeps the invariants of the module.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use shipote_bus::spec::{ValidatedEdge, WorkspaceSpec};

use super::super::*;
use super::world::{World, new_command};

/// What a test does next; indices pick among what is there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
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

impl World {
    pub(super) fn take(&mut self, step: Step) {
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
                        self.exit(command, status);
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
