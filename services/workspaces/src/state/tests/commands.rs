//! Commands: their history, their ids, the reasons of their ends, and their restarts.

use super::super::*;
use super::sequences::Step;
use super::world::{World, survivors};

#[test]
fn the_history_is_bounded() {
    let mut world = World::standing();
    for _ in 0..HISTORY_MAX + 10 {
        world.take(Step::Run { workspace: 0, ephemeral: false });
        world.answer(true);
        let id = *world.state.commands.keys().next_back().unwrap();
        world.exit(id, 0);
    }
    assert_eq!(world.state.commands.len(), HISTORY_MAX);
}

#[test]
fn a_limit_that_ends_a_command_is_its_reason() {
    let mut world = World { restarted: true, ..World::standing() };
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
    let mut world = World::standing();
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let id = world.state.commands.keys().next().unwrap().to_string();
    for wanted in [id.as_str(), &id[20..], &id.to_lowercase()] {
        assert_eq!(world.state.find_command(wanted).unwrap().what.id.to_string(), id);
    }
    assert!(world.state.find_command(&id[22..]).is_err());
    assert!(world.state.find_command("ZZZZZZ").is_err());
}

#[test]
fn a_failed_command_is_restarted_under_its_id_until_it_works() {
    let mut world = World::standing();
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
        world.exit(id, status);
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
fn a_launch_that_a_killed_service_did_not_come_to_is_made_by_the_next() {
    let mut world = World::standing();
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let (workspace, id) = (world.workspace(0).unwrap(), world.command(0).unwrap());
    world.answer(true);
    world.exit(id, 1);
    world.handle(Input::Relaunch { command: id });
    assert_eq!(world.state.commands[&id].phase, CommandPhase::Starting);
    world.come_back(survivors(workspace, &[]));
    assert!(world.completed.is_empty(), "{:?}", world.state.commands[&id].message);
    assert!(world.pending.iter().any(|effect| matches!(effect, Effect::StartCommand { command } if *command == id)));
    world.answer(true);
    assert_eq!(world.state.commands[&id].phase, CommandPhase::Running);
    // it runs already: it is not launched twice
    world.exit(id, 1);
    world.handle(Input::Relaunch { command: id });
    world.come_back(survivors(workspace, &[id]));
    assert_eq!((world.state.commands[&id].phase, world.pending.len()), (CommandPhase::Running, 0));
    // and what was to be launched for the first time, its caller was told of
    world.take(Step::Run { workspace: 0, ephemeral: false });
    let first = *world.state.commands.keys().find(|other| **other != id).unwrap();
    world.come_back(survivors(workspace, &[id]));
    assert_eq!(world.state.commands[&first].reason, "spawn-failed");
}
