//! Plugins that don't behave: what the host sees, what other plugins see, and what comes after.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Does, caller, encode, leaf, leaf_interface, one, plugin, root_interface, runtime, value};
use shipote_link::Cardinality::{AtLeastOne, ExactlyOne};
use shipote_link::{Answers, DispatchError, Failure, Head, Interface, Limits, LoadError, Plugin, Runtime, Tree};
use wasmtime::component::{Linker, Val};

fn load(runtime: &Runtime, plugins: Vec<Plugin<()>>) -> Head<()> {
    let linker = Linker::new(runtime.engine());
    let cardinality = if plugins.len() > 1 { AtLeastOne } else { ExactlyOne };
    let (tree, errors) = Tree::new("leaf", [Ok(leaf_interface(cardinality))], plugins.into_iter().map(Ok));
    assert_eq!(errors, []);
    let (head, errors) = tree.load(runtime, &linker).unwrap();
    assert_eq!(errors, []);
    head
}

fn failure(answer: Result<u32, DispatchError>) -> Failure {
    match answer {
        Err(DispatchError::Failed { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_that_never_ends_is_stopped_and_started_anew() {
    let runtime = runtime();
    let limits = Limits { deadline: Duration::from_millis(20), ..Limits::default() };
    let head = load(&runtime, vec![plugin("a", "leaf", leaf(Does::Spins)).limits(limits)]);
    for _ in 0..3 {
        assert_eq!(failure(one(head.dispatch("value", &[Val::U32(1)]).unwrap())), Failure::Deadline);
    }
}

#[test]
fn one_that_hoards_is_held_to_its_memory() {
    let runtime = runtime();
    let head = load(&runtime, vec![plugin("a", "leaf", leaf(Does::Hoards))]);
    for _ in 0..3 {
        assert_eq!(failure(one(head.dispatch("value", &[Val::U32(1)]).unwrap())), Failure::MemoryLimit);
    }
}

#[test]
fn one_that_wants_too_much_to_start_does_not_load() {
    let runtime = runtime();
    let limits = Limits { memory: 1 << 10, ..Limits::default() };
    let plugins = [Ok(plugin("a", "leaf", leaf(Does::Adds(1))).limits(limits))];
    let (tree, _) = Tree::new("leaf", [Ok(leaf_interface(ExactlyOne))], plugins);
    let (_, errors) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap_err();
    assert!(matches!(&errors[..], [LoadError::Start { reason: Failure::MemoryLimit, .. }]), "{errors:?}");
}

#[test]
fn a_trap_costs_the_plugin_its_state_and_no_one_else_theirs() {
    let runtime = runtime();
    let plugins = ["a", "b"].map(|id| plugin(id, "leaf", leaf(Does::TrapsOnEven)));
    let (tree, _) = Tree::new("leaf", [Ok(leaf_interface(AtLeastOne))], plugins.map(Ok));
    let (head, _) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
    let calls = |n: u32| match head.dispatch("value", &[Val::U32(n)]).unwrap() {
        Answers::AtLeastOne(answers) => answers.into_iter().map(|(_, answer)| value(answer).ok()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(calls(1), [Some(1), Some(1)]);
    assert_eq!(calls(3), [Some(2), Some(2)]);
    assert_eq!(calls(2), [None, None]);
    assert_eq!(calls(1), [Some(1), Some(1)], "both were started anew");

    let plugins = vec![plugin("a", "leaf", leaf(Does::Traps)), plugin("b", "leaf", leaf(Does::TrapsOnEven))];
    let head = load(&runtime, plugins);
    for count in 1..4 {
        let Answers::AtLeastOne(answers) = head.dispatch("value", &[Val::U32(1)]).unwrap() else { panic!() };
        assert!(answers[0].1.is_err());
        assert_eq!(value(answers[1].1.clone()), Ok(count), "b keeps its state while a traps beside it");
    }
}

#[test]
fn a_caller_sees_why_its_provider_failed() {
    let runtime = runtime();
    let slow = Limits { deadline: Duration::from_millis(20), ..Limits::default() };
    // Cases of call-error, in order.
    for (does, limits, case) in [
        (Does::Traps, slow, 0),
        (Does::Spins, slow, 1),
        (Does::Hoards, Limits { deadline: Duration::from_millis(500), memory: 1 << 20, ..slow }, 2),
    ] {
        for typed in [false, true] {
            let plugins = [
                Ok(plugin("app", "root", caller(ExactlyOne)).socket("leaf")),
                Ok(plugin("a", "leaf", leaf(does)).limits(limits)),
            ];
            let (tree, _) = Tree::new("root", [Ok(root_interface()), Ok(leaf_interface(ExactlyOne))], plugins);
            let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
            let (head, _) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
            for _ in 0..2 {
                assert_eq!(
                    one(head.dispatch("run", &[Val::U32(1)]).unwrap()),
                    Ok(1000 + case),
                    "{does:?} typed: {typed}"
                );
            }
        }
    }
}

#[test]
fn a_provider_keeps_its_state_when_its_only_caller_fails() {
    let runtime = runtime();
    let module = "(module (import \"my:test/leaf\" \"value\" (func $value (param i32 i32)))
        (memory (export \"memory\") 1)
        (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
        (func (export \"my:app/root#run\") (param i32) (result i32)
          (call $value (local.get 0) (i32.const 16))
          (if (i32.gt_u (local.get 0) (i32.const 100)) (then unreachable))
          (i32.load offset=4 (i32.const 16))))";
    let wrapped = "package my:test; interface leaf { use shipote:link/errors@0.1.0.{call-error};
        value: func(n: u32) -> result<u32, call-error>; }";
    let packages = [common::ERRORS, wrapped, common::ROOT];
    let app = encode(module, &packages, "import my:test/leaf; export my:app/root;");
    for typed in [false, true] {
        // Twice: with one caller the provider's instance lies with it, with two it is shared.
        for callers in 1..=2 {
            let apps = (0..callers).map(|at| plugin(&format!("app{at}"), "root", app.clone()).socket("leaf"));
            let plugins = apps.chain([plugin("a", "leaf", leaf(Does::TrapsOnEven))]).map(Ok);
            let root = Interface::from_wit("root", "my:app/root", AtLeastOne, &[common::ROOT]).unwrap();
            let (tree, _) = Tree::new("root", [Ok(root), Ok(leaf_interface(ExactlyOne))], plugins);
            let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
            let (head, errors) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
            assert_eq!(errors, []);
            let run = |n: u32| match head.dispatch("run", &[Val::U32(n)]).unwrap() {
                Answers::AtLeastOne(answers) => value(answers.into_iter().next_back().unwrap().1).ok(),
                other => panic!("{other:?}"),
            };
            let seen = [1, 3, 101, 101, 5].map(run);
            let wanted = [1, 2, 0, 0, 5].map(|n| (n > 0).then_some(n * callers));
            assert_eq!(seen, wanted, "{callers} callers, typed: {typed}");
            // Its own trap costs it what it kept.
            run(2);
            assert_eq!(run(7), Some(callers), "{callers} callers, typed: {typed}");
        }
    }
}

#[test]
fn a_provider_gets_no_more_time_than_its_caller_has() {
    let runtime = runtime();
    let long = Limits { deadline: Duration::from_secs(3600), ..Limits::default() };
    let short = Limits { deadline: Duration::from_millis(30), ..Limits::default() };
    let plugins = [
        Ok(plugin("app", "root", caller(ExactlyOne)).socket("leaf").limits(short)),
        Ok(plugin("a", "leaf", leaf(Does::Spins)).limits(long)),
    ];
    let (tree, _) = Tree::new("root", [Ok(root_interface()), Ok(leaf_interface(ExactlyOne))], plugins);
    let (head, _) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
    // An hour would show. Whether the caller still has the time to say so itself is up to the clock.
    match one(head.dispatch("run", &[Val::U32(1)]).unwrap()) {
        Ok(1001) | Err(DispatchError::Failed { failure: Failure::Deadline, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_calls_are_refused_before_anything_runs() {
    let runtime = runtime();
    let head = load(&runtime, vec![plugin("a", "leaf", leaf(Does::TrapsOnEven))]);
    for arguments in [vec![], vec![Val::S32(1)], vec![Val::U32(1), Val::U32(1)], vec![Val::String("1".into())]] {
        let error = head.dispatch("value", &arguments).unwrap_err();
        assert!(matches!(error, DispatchError::WrongArguments { .. }), "{error:?}");
    }
    assert!(matches!(head.dispatch("values", &[]), Err(DispatchError::UnknownFunction { .. })));
    assert!(matches!(head.dispatch_in("other", "value", &[]), Err(DispatchError::UnknownInterface { .. })));
    assert!(matches!(head.typed::<(u32,), (u64,)>("value"), Err(DispatchError::WrongArguments { .. })));
    assert!(matches!(head.typed::<(), (u32,)>("value"), Err(DispatchError::WrongArguments { .. })));
    assert_eq!(one(head.dispatch("value", &[Val::U32(1)]).unwrap()), Ok(1), "no instance was lost over it");
}

#[test]
fn typed_calls_survive_a_restart() {
    let runtime = runtime();
    let head = load(&runtime, vec![plugin("a", "leaf", leaf(Does::TrapsOnEven))]);
    let value = head.typed::<(u32,), (u32,)>("value").unwrap();
    for (n, wanted) in [(1, Some(1)), (1, Some(2)), (2, None), (1, Some(1))] {
        match (value.call((n,)), wanted) {
            (Answers::ExactlyOne(Ok((answer,))), Some(wanted)) => assert_eq!(answer, wanted),
            (Answers::ExactlyOne(Err(DispatchError::Failed { .. })), None) => {}
            (answer, wanted) => panic!("{answer:?} instead of {wanted:?}"),
        }
    }
}

#[test]
fn calls_from_many_threads_are_served_one_at_a_time() {
    let runtime = runtime();
    let patient = Limits { deadline: Duration::from_secs(60), ..Limits::default() };
    let head = Arc::new(load(&runtime, vec![plugin("a", "leaf", leaf(Does::TrapsOnEven)).limits(patient)]));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let head = Arc::clone(&head);
            std::thread::spawn(move || {
                (0..250).map(|_| one(head.dispatch("value", &[Val::U32(1)]).unwrap()).unwrap()).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut seen: Vec<u32> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn who_waits_past_the_deadline_is_told_that_the_plugin_is_busy() {
    let runtime = runtime();
    let linker = {
        // A host function that a test can hold a plugin in.
        let mut linker: Linker<shipote_link::State<Gate>> = Linker::new(runtime.engine());
        linker
            .instance("my:gates/gate")
            .unwrap()
            .func_wrap("wait", |store: wasmtime::StoreContextMut<'_, shipote_link::State<Gate>>, (): ()| {
                let gate = &store.data().data;
                gate.entered.wait();
                gate.leave.wait();
                Ok(())
            })
            .unwrap();
        linker
    };
    let module = "(module (import \"my:gates/gate\" \"wait\" (func $wait)) (memory (export \"memory\") 1)
        (func (export \"my:test/leaf#value\") (param i32) (result i32) (call $wait) (local.get 0)))";
    let bytes = common::encode(module, &[common::LEAF, GATE], "import my:gates/gate; export my:test/leaf;");
    let gate = Gate::default();
    let in_store = gate.clone();
    let component = wasmtime::component::Component::new(runtime.engine(), bytes).unwrap();
    let limits = Limits { deadline: Duration::from_millis(20), ..Limits::default() };
    let held = Plugin::new("a", "leaf", component, move || in_store.clone()).limits(limits);
    let (tree, _) = Tree::new("leaf", [Ok(leaf_interface(ExactlyOne))], [Ok(held)]);
    let head = Arc::new(tree.load(&runtime, &linker).unwrap().0);
    let first = {
        let head = Arc::clone(&head);
        std::thread::spawn(move || one(head.dispatch("value", &[Val::U32(5)]).unwrap()))
    };
    gate.entered.wait();
    let second = one(head.dispatch("value", &[Val::U32(6)]).unwrap());
    assert!(matches!(second, Err(DispatchError::Busy { .. })), "{second:?}");
    gate.leave.wait();
    // It was held past its own deadline too, which shows once it runs wasm again, if it has a loop or call left to run.
    drop(first.join().unwrap());
}

const GATE: &str = "package my:gates; interface gate { wait: func(); }";

#[derive(Clone)]
struct Gate {
    entered: Arc<std::sync::Barrier>,
    leave: Arc<std::sync::Barrier>,
}

impl Default for Gate {
    fn default() -> Self {
        let barrier = || Arc::new(std::sync::Barrier::new(2));
        Self { entered: barrier(), leave: barrier() }
    }
}
