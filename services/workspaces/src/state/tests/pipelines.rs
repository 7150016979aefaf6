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
fn a_pipeline_that_runs_is_found_by_a_name_of_its_own() {
    let mut world = World::standing();
    for _ in 0..3 {
        world.take(Step::RunPipeline { workspace: 0, nodes: 1 });
    }
    let ids: Vec<Ulid> = world.state.pipelines.keys().copied().collect();
    for (id, label) in ids.iter().zip(["one", "two", "two"]) {
        world.state.pipelines.get_mut(id).unwrap().what.label = label.to_owned();
    }
    let found = |world: &World, name: &str| world.state.find_running_pipeline(name).map(|p| p.what.id);
    assert_eq!(found(&world, "one"), Ok(ids[0]));
    assert_eq!(found(&world, &ids[2].to_string()), Ok(ids[2]));
    let refused = found(&world, "two").unwrap_err().to_string();
    assert!(refused.contains(&ids[1].to_string()) && refused.contains(&ids[2].to_string()), "{refused}");
    world.state.pipelines.get_mut(&ids[1]).unwrap().exit_status = Some(0);
    assert_eq!(found(&world, "two"), Ok(ids[2]), "one that has ended is in nobody's way");
    assert_eq!(found(&world, &ids[1].to_string()), Err(Error::NoSuchPipeline(ids[1].to_string())));
    // one that is called like the id of another does not take its place
    world.state.pipelines.get_mut(&ids[2]).unwrap().what.label = ids[0].to_string();
    assert_eq!(found(&world, &ids[0].to_string()), Ok(ids[0]));
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
