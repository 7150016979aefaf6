//! Plugins that are called by tasks: who gets the thread meanwhile, and what becomes of a call that is broken off.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::{Does, caller, encode, leaf, leaf_interface, one, plugin, root_interface, runtime, tasks, value};
use shipote_link::Cardinality::{Any, ExactlyOne};
use shipote_link::{Answers, AsyncHead, DispatchError, Failure, Limits, Plugin, Runtime, State, Tree};
use tokio::sync::{Barrier, Notify};
use wasmtime::component::{Component, Linker, Val};

const PATIENT: Limits = Limits { deadline: Duration::from_secs(60), memory: 4 << 20, table_elements: 100 };
const SHORT: Limits = Limits { deadline: Duration::from_millis(20), ..PATIENT };

/// A tree whose root interface is the leaf's.
async fn leaves(runtime: &Runtime, plugins: Vec<Plugin<()>>) -> AsyncHead<()> {
    let cardinality = if plugins.len() == 1 { ExactlyOne } else { Any };
    let (tree, errors) = Tree::new("leaf", [Ok(leaf_interface(cardinality))], plugins.into_iter().map(Ok));
    assert_eq!(errors, []);
    let (head, errors) = tree.load_async(runtime, &Linker::new(runtime.engine())).await.unwrap();
    assert_eq!(errors, []);
    head
}

/// `app`, which calls one leaf.
async fn chain(runtime: &Runtime, leaf: Plugin<()>, limits: Limits, typed: bool) -> AsyncHead<()> {
    let plugins = [Ok(plugin("app", "root", caller(ExactlyOne)).socket("leaf").limits(limits)), Ok(leaf)];
    let (tree, _) = Tree::new("root", [Ok(root_interface()), Ok(leaf_interface(ExactlyOne))], plugins);
    let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
    tree.load_async(runtime, &Linker::new(runtime.engine())).await.unwrap().0
}

async fn call<T: Send>(head: &AsyncHead<T>, function: &str, n: u32) -> Result<u32, DispatchError> {
    one(head.dispatch(function, &[Val::U32(n)]).await.unwrap())
}

fn failure(answer: Result<u32, DispatchError>) -> Failure {
    match answer {
        Err(DispatchError::Failed { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

/// Counts how often it had the thread until `done`.
async fn count_turns(done: Arc<AtomicBool>) -> u32 {
    let mut turns = 0;
    while !done.load(Ordering::SeqCst) {
        turns += 1;
        tokio::task::yield_now().await;
    }
    turns
}

#[test]
fn one_that_computes_lets_other_tasks_have_the_thread_be_it_called_by_the_host_or_by_a_plugin() {
    let runtime = runtime();
    let limits = Limits { deadline: Duration::from_millis(200), ..PATIENT };
    let spinner = || plugin("a", "leaf", leaf(Does::Spins)).limits(limits);
    tasks().block_on(async {
        let heads = [
            (leaves(&runtime, vec![spinner()]).await, "value", Err(Failure::Deadline)),
            (chain(&runtime, spinner(), PATIENT, false).await, "run", Ok(1001)),
            (chain(&runtime, spinner(), PATIENT, true).await, "run", Ok(1001)),
        ];
        for (head, function, wanted) in heads {
            for _ in 0..2 {
                let done = Arc::new(AtomicBool::new(false));
                let others = tokio::spawn(count_turns(Arc::clone(&done)));
                let answer = call(&head, function, 1).await;
                done.store(true, Ordering::SeqCst);
                assert_eq!(answer.map_err(|error| failure(Err(error))), wanted, "{function}");
                // Two would do if it held the thread to its end: one before it began, one after.
                let turns = others.await.unwrap();
                assert!(turns > 5, "{function}: the other task had {turns} turns");
            }
        }
    });
}

#[test]
fn a_call_that_nobody_waits_for_any_more_is_broken_off_and_its_plugin_started_anew() {
    let runtime = runtime();
    tasks().block_on(async {
        // Counts its calls for odd numbers, spins for even ones.
        let module = "(module (memory (export \"memory\") 1) (global $calls (mut i32) (i32.const 0))
           (func (export \"my:test/leaf#value\") (param i32) (result i32)
             (if (i32.eqz (i32.rem_u (local.get 0) (i32.const 2))) (then (loop $again (br $again))))
             (global.set $calls (i32.add (global.get $calls) (i32.const 1))) (global.get $calls)))";
        let bytes = encode(module, &[common::LEAF], "export my:test/leaf;");
        let head = leaves(&runtime, vec![plugin("a", "leaf", bytes).limits(PATIENT)]).await;
        assert_eq!((call(&head, "value", 1).await, call(&head, "value", 1).await), (Ok(1), Ok(2)));
        let given_up = tokio::time::timeout(Duration::from_millis(5), call(&head, "value", 2)).await;
        assert!(given_up.is_err(), "{given_up:?}");
        assert_eq!(call(&head, "value", 1).await, Ok(1), "a fresh instance");
        assert_eq!(call(&head, "value", 1).await, Ok(2), "which stays");
    });
}

#[test]
fn a_trap_a_deadline_and_hoarding_are_told_as_to_a_thread_that_waits() {
    let runtime = runtime();
    tasks().block_on(async {
        for (does, limits, wanted, case) in [
            (Does::Spins, SHORT, Some(Failure::Deadline), 1001),
            (Does::Hoards, Limits { memory: 1 << 20, ..PATIENT }, Some(Failure::MemoryLimit), 1002),
            (Does::Traps, PATIENT, None, 1000),
        ] {
            let bad = || plugin("a", "leaf", leaf(does)).limits(limits);
            let head = leaves(&runtime, vec![bad()]).await;
            for _ in 0..2 {
                let failure = failure(call(&head, "value", 1).await);
                match &wanted {
                    Some(wanted) => assert_eq!(failure, *wanted, "{does:?}"),
                    None => assert!(matches!(failure, Failure::Exception { trap: Some(_), .. }), "{failure:?}"),
                }
            }
            for typed in [false, true] {
                let head = chain(&runtime, bad(), PATIENT, typed).await;
                assert_eq!(call(&head, "run", 1).await, Ok(case), "{does:?}, typed: {typed}");
            }
        }
    });
}

#[test]
fn wrong_calls_are_refused_before_anything_runs() {
    let runtime = runtime();
    tasks().block_on(async {
        let head = leaves(&runtime, vec![plugin("a", "leaf", leaf(Does::TrapsOnEven)).limits(PATIENT)]).await;
        for arguments in [vec![], vec![Val::S32(1)], vec![Val::U32(1), Val::U32(1)]] {
            let error = head.dispatch("value", &arguments).await.unwrap_err();
            assert!(matches!(error, DispatchError::WrongArguments { .. }), "{error:?}");
        }
        assert!(matches!(head.dispatch("values", &[]).await, Err(DispatchError::UnknownFunction { .. })));
        assert!(matches!(head.dispatch_in("no", "value", &[]).await, Err(DispatchError::UnknownInterface { .. })));
        assert!(matches!(head.typed::<(u32,), (u64,)>("value").await, Err(DispatchError::WrongArguments { .. })));
        assert_eq!(call(&head, "value", 1).await, Ok(1), "no instance was lost over it");
        assert_eq!(call(&head, "value", 1).await, Ok(2), "nor is one by a call");
    });
}

#[test]
fn calls_of_one_plugin_take_turns_and_the_impatient_are_told_that_it_is_busy() {
    let runtime = runtime();
    tasks().block_on(async {
        let limits = Limits { deadline: Duration::from_millis(100), ..PATIENT };
        let head = leaves(&runtime, vec![plugin("a", "leaf", leaf(Does::Spins)).limits(limits)]).await;
        // The second waits as long as it may for the first, which takes as long as it may.
        let (first, second) = tokio::join!(call(&head, "value", 1), async {
            tokio::task::yield_now().await;
            call(&head, "value", 1).await
        });
        assert_eq!(failure(first), Failure::Deadline);
        let late = matches!(&second, Err(DispatchError::Busy { .. }))
            || matches!(&second, Err(DispatchError::Failed { failure: Failure::Deadline, .. }));
        assert!(late, "{second:?}");

        let head = leaves(&runtime, vec![plugin("a", "leaf", leaf(Does::TrapsOnEven)).limits(PATIENT)]).await;
        let head = Arc::new(head);
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let head = Arc::clone(&head);
            calls.spawn(async move { call(&head, "value", 1).await.unwrap() });
        }
        let mut seen = calls.join_all().await;
        seen.sort_unstable();
        assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    });
}

const GATE: &str = "package my:gates; interface gate { wait: func(); }";

/// A leaf that waits in a function of the host before it answers its argument.
fn waiter<T: Send + 'static>(id: &str, runtime: &Runtime, data: impl Fn() -> T + Send + Sync + 'static) -> Plugin<T> {
    let module = "(module (import \"my:gates/gate\" \"wait\" (func $wait)) (memory (export \"memory\") 1)
        (func (export \"my:test/leaf#value\") (param i32) (result i32) (call $wait) (local.get 0)))";
    let bytes = encode(module, &[common::LEAF, GATE], "import my:gates/gate; export my:test/leaf;");
    Plugin::new(id, "leaf", Component::new(runtime.engine(), bytes).unwrap(), data).limits(PATIENT)
}

#[test]
fn plugins_of_one_interface_work_at_the_same_time_be_they_called_by_the_host_or_by_a_plugin() {
    let runtime = runtime();
    // Whoever waits here goes on when both do.
    let mut linker: Linker<State<Arc<Barrier>>> = Linker::new(runtime.engine());
    let mut gate = linker.instance("my:gates/gate").unwrap();
    gate.func_wrap_async("wait", |store, (): ()| {
        let both = Arc::clone(&store.data().data);
        Box::new(async move {
            both.wait().await;
            Ok(())
        })
    })
    .unwrap();
    let both = Arc::new(Barrier::new(2));
    let waiters = || {
        ["a", "b"].map(|id| {
            let both = Arc::clone(&both);
            Ok(waiter(id, &runtime, move || Arc::clone(&both)))
        })
    };
    tasks().block_on(async {
        let (tree, _) = Tree::new("leaf", [Ok(leaf_interface(Any))], waiters());
        let (head, errors) = tree.load_async(&runtime, &linker).await.unwrap();
        assert_eq!(errors, []);
        let Answers::Any(answers) = head.dispatch("value", &[Val::U32(7)]).await.unwrap() else { panic!() };
        let answers: Vec<_> = answers.into_iter().map(|(id, answer)| (id.to_string(), value(answer))).collect();
        assert_eq!(answers, [("a".to_owned(), Ok(7)), ("b".to_owned(), Ok(7))]);

        for typed in [false, true] {
            let app = Component::new(runtime.engine(), caller(Any)).unwrap();
            let alone = Arc::new(Barrier::new(1));
            let app = Plugin::new("app", "root", app, move || Arc::clone(&alone)).socket("leaf").limits(PATIENT);
            let plugins = waiters().into_iter().chain([Ok(app)]);
            let (tree, _) = Tree::new("root", [Ok(root_interface()), Ok(leaf_interface(Any))], plugins);
            let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
            let (head, errors) = tree.load_async(&runtime, &linker).await.unwrap();
            assert_eq!(errors, []);
            assert_eq!(call(&head, "run", 7).await, Ok(20_014), "typed: {typed}");
        }
    });
}

#[test]
fn one_that_waits_for_the_host_past_its_deadline_is_stopped_and_the_hosts_work_with_it() {
    /// Counts who comes in; nobody is let out.
    #[derive(Clone, Default)]
    struct Trap {
        came: Arc<AtomicU32>,
        left: Arc<AtomicU32>,
        never: Arc<Notify>,
    }
    struct Leaving(Arc<AtomicU32>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let runtime = runtime();
    let mut linker: Linker<State<Trap>> = Linker::new(runtime.engine());
    let mut gate = linker.instance("my:gates/gate").unwrap();
    gate.func_wrap_async("wait", |store, (): ()| {
        let trap = store.data().data.clone();
        Box::new(async move {
            trap.came.fetch_add(1, Ordering::SeqCst);
            let _leaving = Leaving(trap.left);
            trap.never.notified().await;
            Ok(())
        })
    })
    .unwrap();
    let trap = Trap::default();
    let seen = trap.clone();
    let stuck = waiter("a", &runtime, move || trap.clone()).limits(SHORT);
    tasks().block_on(async {
        let (tree, _) = Tree::new("leaf", [Ok(leaf_interface(ExactlyOne))], [Ok(stuck)]);
        let (head, _) = tree.load_async(&runtime, &linker).await.unwrap();
        for round in 1..=2 {
            assert_eq!(failure(call(&head, "value", 1).await), Failure::Deadline);
            let (came, left) = (seen.came.load(Ordering::SeqCst), seen.left.load(Ordering::SeqCst));
            assert_eq!((came, left), (round, round));
        }
    });
}
