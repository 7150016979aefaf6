//! Pipelines that are restarted as a whole.

use super::super::*;
use super::sequences::Step;
use super::world::{RESTART, World, survivors};

#[test]
fn a_pipeline_is_restarted_as_a_whole_up_to_its_limit() {
    let mut world = World { restarted: true, ..World::standing() };
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
            world.exit(*node, status);
        }
        world.take(Step::Time);
    }
    assert_eq!(world.state.pipelines[&id].exit_status, Some(1));
    assert_eq!(world.completed.len(), 3);
}

#[test]
fn a_pipeline_whose_launch_was_cut_off_by_a_kill_is_launched_once_more_as_a_whole() {
    let mut world = World { restarted: true, ..World::standing() };
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
        world.exit(*node, status);
    }
    world.handle(Input::RelaunchPipeline { pipeline: id });
    // its first node runs, its second was not come to, nor what carries its flows
    world.come_back(survivors(workspace, &nodes[..1]));
    assert_eq!(world.state.commands[&nodes[1]].phase, CommandPhase::Waiting);
    assert_eq!(world.state.pipelines[&id].restarts.due, None);
    world.exit(nodes[0], 137);
    assert!(world.state.pipelines[&id].restarts.due.is_some() && world.completed.is_empty());
    world.handle(Input::RelaunchPipeline { pipeline: id });
    world.answer(true);
    world.answer(true);
    for node in &nodes {
        world.exit(*node, 0);
    }
    assert_eq!(world.state.pipelines[&id].exit_status, Some(0));
}
