//! Workspaces: their names, their end, and what of them is changed while they live.

use std::time::Duration;

use shipote_bus::spec::{Networking, WorkspaceSpec};

use super::super::*;
use super::sequences::Step;
use super::world::World;

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
fn a_second_shorter_grace_shortens_the_first() {
    let mut world = World::standing();
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
