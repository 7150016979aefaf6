//! Functions that WIT calls `async`: plugins that go on while others work for them, and what becomes of them when those
//! fail. `cargo test --workspace --features shipote-link/async-functions --test async_functions`.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Does, caller, caller_of, encode, leaf, leaf_interface, leaf_of, one, plugin, root_interface, tasks};
use shipote_link::Cardinality::{self, Any, AtMostOne, ExactlyOne};
use shipote_link::{AsyncHead, DispatchError, Failure, Interface, Limits, LoadError, Plugin, Runtime, State, Tree};
use tokio::sync::Barrier;
use wasmtime::Config;
use wasmtime::component::{Component, Linker, Val};

const PATIENT: Limits = Limits { deadline: Duration::from_secs(60), memory: 4 << 20, table_elements: 100 };
const SHORT: Limits = Limits { deadline: Duration::from_millis(50), ..PATIENT };

fn runtime() -> Runtime {
    Runtime::with_async_functions(Config::new()).unwrap()
}

fn late(id: &str, path: &str, cardinality: Cardinality) -> Interface {
    let name = if id == "root" { "run" } else { "value" };
    let (package, interface) = path.split_once('/').unwrap();
    let text = format!("package {package}; interface {interface} {{ {name}: async func(n: u32) -> u32; }}");
    Interface::from_wit(id, path, cardinality, &[&text]).unwrap()
}

async fn call<T: Send>(head: &AsyncHead<T>, n: u32) -> Result<u32, DispatchError> {
    one(head.dispatch(head.interface().functions()[0].name(), &[Val::U32(n)]).await.unwrap())
}

/// `app`, which calls leaves, all of whose functions WIT calls `async`.
async fn chain(runtime: &Runtime, cardinality: Cardinality, leaves: Vec<Plugin<()>>, typed: bool) -> AsyncHead<()> {
    let app = plugin("app", "root", caller_of(cardinality, "async func")).socket("leaf").limits(PATIENT);
    let interfaces = [late("root", "my:app/root", ExactlyOne), late("leaf", "my:test/leaf", cardinality)].map(Ok);
    let (tree, errors) = Tree::new("root", interfaces, leaves.into_iter().chain([app]).map(Ok));
    assert_eq!(errors, []);
    let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
    let (head, errors) = tree.load_async(runtime, &Linker::new(runtime.engine())).await.unwrap();
    assert_eq!(errors, []);
    head
}

fn adds(id: &str, k: u32) -> Plugin<()> {
    plugin(id, "leaf", leaf_of(Does::Adds(k), "async func")).limits(PATIENT)
}

#[test]
fn each_cardinality_answers_as_without_async() {
    let runtime = runtime();
    tasks().block_on(async {
        for typed in [false, true] {
            for (cardinality, leaves, wanted) in [
                (ExactlyOne, vec![adds("a", 1)], 8),
                (AtMostOne, vec![], 900),
                (AtMostOne, vec![adds("a", 1)], 8),
                (Any, vec![adds("a", 1), adds("b", 2)], 20_017),
            ] {
                let head = chain(&runtime, cardinality, leaves, typed).await;
                for _ in 0..2 {
                    assert_eq!(call(&head, 7).await, Ok(wanted), "{cardinality}, typed: {typed}");
                }
                let run = head.typed::<(u32,), (u32,)>("run").await.unwrap();
                assert!(matches!(run.call((7,)).await, shipote_link::Answers::ExactlyOne(Ok((n,))) if n == wanted));
            }
        }
    });
}

#[test]
fn what_fails_is_an_error_to_its_caller_and_started_anew() {
    let runtime = runtime();
    tasks().block_on(async {
        for typed in [false, true] {
            for (does, limits, case) in [
                (Does::Traps, PATIENT, 1000),
                (Does::Spins, SHORT, 1001),
                (Does::Hoards, Limits { memory: 1 << 20, ..PATIENT }, 1002),
            ] {
                let bad = plugin("a", "leaf", leaf_of(does, "async func")).limits(limits);
                let head = chain(&runtime, ExactlyOne, vec![bad], typed).await;
                for _ in 0..2 {
                    assert_eq!(call(&head, 1).await, Ok(case), "{does:?}, typed: {typed}");
                }
            }
            let moody = plugin("a", "leaf", leaf_of(Does::TrapsOnEven, "async func")).limits(PATIENT);
            let head = chain(&runtime, ExactlyOne, vec![moody], typed).await;
            let mut seen = Vec::new();
            for n in [1, 1, 2, 1] {
                seen.push(call(&head, n).await.unwrap());
            }
            assert_eq!(seen, [1, 2, 1000, 1], "typed: {typed}");
        }
    });
}

#[test]
fn functions_that_are_not_async_work_there_too() {
    let runtime = runtime();
    tasks().block_on(async {
        for typed in [false, true] {
            let plugins = [
                plugin("app", "root", caller(ExactlyOne)).socket("leaf").limits(PATIENT),
                plugin("a", "leaf", leaf(Does::Adds(1))).limits(PATIENT),
            ];
            let interfaces = [root_interface(), leaf_interface(ExactlyOne)].map(Ok);
            let (tree, _) = Tree::new("root", interfaces, plugins.map(Ok));
            let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
            let (head, _) = tree.load_async(&runtime, &Linker::new(runtime.engine())).await.unwrap();
            assert_eq!((call(&head, 7).await, call(&head, 8).await), (Ok(8), Ok(9)), "typed: {typed}");
        }
    });
}

const GATE: &str = "package my:gates; interface gate { wait: func(); }";

/// A plugin of the interface `my:test/SIDE` that waits in a function of the host before it answers its argument.
fn waiter<T: Send + 'static>(side: &str, runtime: &Runtime, data: impl Fn() -> T + Send + Sync + 'static) -> Plugin<T> {
    let module = format!(
        "(module (import \"my:gates/gate\" \"wait\" (func $wait))
           (import \"[export]my:{side}/leaf\" \"[task-return]value\" (func $answer (param i32)))
           (memory (export \"memory\") 1)
           (func (export \"[async-lift]my:{side}/leaf#value\") (param i32) (result i32)
             (call $wait) (call $answer (local.get 0)) (i32.const 0))
           (func (export \"[callback][async-lift]my:{side}/leaf#value\") (param i32 i32 i32) (result i32) unreachable))"
    );
    let leaf = format!("package my:{side}; interface leaf {{ value: async func(n: u32) -> u32; }}");
    let bytes = encode(&module, &[&leaf, GATE], &format!("import my:gates/gate; export my:{side}/leaf;"));
    Plugin::new(side, side, Component::new(runtime.engine(), bytes).unwrap(), data).limits(PATIENT)
}

/// A root plugin that calls both sides, waits for both, and answers their sum. An error counts 1000 and its case.
fn both() -> Vec<u8> {
    let module = "(module
        (import \"my:left/leaf\" \"[async-lower]value\" (func $left (param i32 i32) (result i32)))
        (import \"my:right/leaf\" \"[async-lower]value\" (func $right (param i32 i32) (result i32)))
        (import \"$root\" \"[waitable-set-new]\" (func $set (result i32)))
        (import \"$root\" \"[waitable-join]\" (func $join (param i32 i32)))
        (import \"$root\" \"[subtask-drop]\" (func $drop (param i32)))
        (import \"[export]my:app/root\" \"[task-return]run\" (func $answer (param i32)))
        (memory (export \"memory\") 2) (global $heap (mut i32) (i32.const 4096))
        (global $all (mut i32) (i32.const 0)) (global $open (mut i32) (i32.const 0))
        (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (local $at i32)
          (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
          (global.set $heap (i32.add (local.get $at) (local.get 3))) (local.get $at))
        (func $one (param i32) (result i32)
          (if (result i32) (i32.load8_u (local.get 0))
            (then (i32.add (i32.const 1000) (i32.load8_u offset=4 (local.get 0))))
            (else (i32.load offset=4 (local.get 0)))))
        ;; A call's state is in the low four bits, 2: it has returned; else the others are its handle.
        (func $watch (param i32)
          (if (i32.ne (i32.and (local.get 0) (i32.const 15)) (i32.const 2)) (then
            (call $join (i32.shr_u (local.get 0) (i32.const 4)) (global.get $all))
            (global.set $open (i32.add (global.get $open) (i32.const 1))))))
        ;; 0: at the end; 2: waits for what is in the set.
        (func $next (result i32)
          (if (result i32) (global.get $open)
            (then (i32.or (i32.const 2) (i32.shl (global.get $all) (i32.const 4))))
            (else (call $answer (i32.add (call $one (i32.const 16)) (call $one (i32.const 48)))) (i32.const 0))))
        (func (export \"[async-lift]my:app/root#run\") (param i32) (result i32)
          (global.set $all (call $set)) (global.set $open (i32.const 0))
          (call $watch (call $left (local.get 0) (i32.const 16)))
          (call $watch (call $right (local.get 0) (i32.const 48)))
          (call $next))
        (func (export \"[callback][async-lift]my:app/root#run\") (param i32 i32 i32) (result i32)
          (if (i32.and (i32.eq (local.get 0) (i32.const 1)) (i32.eq (local.get 2) (i32.const 2))) (then
            (call $drop (local.get 1))
            (global.set $open (i32.sub (global.get $open) (i32.const 1)))))
          (call $next)))";
    let side = |name: &str| {
        format!(
            "package my:{name}; interface leaf {{ use shipote:link/errors@0.1.0.{{call-error}};
               value: async func(n: u32) -> result<u32, call-error>; }}"
        )
    };
    let root = common::ROOT.replace("func", "async func");
    encode(
        module,
        &[common::ERRORS, &side("left"), &side("right"), &root],
        "import my:left/leaf; import my:right/leaf; export my:app/root;",
    )
}

/// The tree of [`both`], whose sides wait by the gate in `linker`.
async fn sides<T: Clone + Send + Sync + 'static>(
    runtime: &Runtime,
    linker: &Linker<State<T>>,
    data: T,
    limits: Limits,
    typed: bool,
) -> AsyncHead<T> {
    let copy = || {
        let data = data.clone();
        move || data.clone()
    };
    let app = Plugin::new("app", "root", Component::new(runtime.engine(), both()).unwrap(), copy()).limits(PATIENT);
    let plugins = [
        waiter("left", runtime, copy()).limits(limits),
        waiter("right", runtime, copy()).limits(limits),
        app.socket("left").socket("right"),
    ];
    let interfaces = [
        late("root", "my:app/root", ExactlyOne),
        late("left", "my:left/leaf", ExactlyOne),
        late("right", "my:right/leaf", ExactlyOne),
    ];
    let (tree, errors) = Tree::new("root", interfaces.map(Ok), plugins.map(Ok));
    assert_eq!(errors, []);
    let tree =
        if typed { tree.typed::<(u32,), u32>("left", "value").typed::<(u32,), u32>("right", "value") } else { tree };
    let (head, errors) = tree.load_async(runtime, linker).await.unwrap();
    assert_eq!(errors, []);
    head
}

#[test]
fn a_plugin_calls_another_while_it_waits_for_the_first() {
    let runtime = runtime();
    let mut linker: Linker<State<Arc<Barrier>>> = Linker::new(runtime.engine());
    let mut gate = linker.instance("my:gates/gate").unwrap();
    gate.func_wrap_async("wait", |store, (): ()| {
        let all = Arc::clone(&store.data().data);
        Box::new(async move {
            all.wait().await;
            Ok(())
        })
    })
    .unwrap();
    tasks().block_on(async {
        for typed in [false, true] {
            // Neither side is let out before both are in.
            let head = sides(&runtime, &linker, Arc::new(Barrier::new(2)), PATIENT, typed).await;
            for n in [7, 8] {
                assert_eq!(call(&head, n).await, Ok(2 * n), "typed: {typed}");
            }
            // Three never come: each side's deadline is an error of its own to the caller.
            let head = sides(&runtime, &linker, Arc::new(Barrier::new(3)), SHORT, typed).await;
            assert_eq!(call(&head, 7).await, Ok(2 * 1001), "typed: {typed}");
        }
    });
}

/// Counts who comes in; nobody is let out.
#[derive(Clone, Default)]
struct Pit {
    came: Arc<AtomicU32>,
    left: Arc<AtomicU32>,
}

struct Leaving(Arc<AtomicU32>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn who_gives_a_call_up_breaks_off_those_that_it_made() {
    let runtime = runtime();
    let mut linker: Linker<State<Pit>> = Linker::new(runtime.engine());
    let mut gate = linker.instance("my:gates/gate").unwrap();
    gate.func_wrap_async("wait", |store, (): ()| {
        let pit = store.data().data.clone();
        Box::new(async move {
            pit.came.fetch_add(1, Ordering::SeqCst);
            let _leaving = Leaving(pit.left);
            std::future::pending::<()>().await;
            Ok(())
        })
    })
    .unwrap();
    tasks().block_on(async {
        for typed in [false, true] {
            let pit = Pit::default();
            let head = sides(&runtime, &linker, pit.clone(), PATIENT, typed).await;
            // The sides have a minute each; the second round would find them busy.
            for round in [2, 4] {
                tokio::select! {
                    answer = call(&head, 7) => panic!("{answer:?}"),
                    () = until(&pit.came, round) => {}
                }
                until(&pit.left, round).await;
            }
        }
    });
}

async fn until(count: &AtomicU32, wanted: u32) {
    while count.load(Ordering::SeqCst) < wanted {
        tokio::task::yield_now().await;
    }
}

#[test]
fn one_that_ends_without_an_answer_or_waits_for_nothing_fails_alone() {
    let runtime = runtime();
    let silent = |body: &str| {
        let module = format!(
            "(module (import \"$root\" \"[waitable-set-new]\" (func $set (result i32)))
               (import \"[export]my:test/leaf\" \"[task-return]value\" (func $answer (param i32)))
               (memory (export \"memory\") 1)
               (func (export \"[async-lift]my:test/leaf#value\") (param i32) (result i32) {body})
               (func (export \"[callback][async-lift]my:test/leaf#value\") (param i32 i32 i32) (result i32) unreachable))"
        );
        let leaf = common::LEAF.replace("func", "async func");
        plugin("a", "leaf", encode(&module, &[&leaf], "export my:test/leaf;")).limits(SHORT)
    };
    tasks().block_on(async {
        for body in ["(i32.const 0)", "(i32.or (i32.const 2) (i32.shl (call $set) (i32.const 4)))"] {
            let (tree, _) = Tree::new("leaf", [Ok(late("leaf", "my:test/leaf", ExactlyOne))], [Ok(silent(body))]);
            let (head, _) = tree.load_async(&runtime, &Linker::new(runtime.engine())).await.unwrap();
            for _ in 0..2 {
                let answer = call(&head, 1).await;
                assert!(matches!(answer, Err(DispatchError::Failed { .. })), "{body}: {answer:?}");
            }
            let head = chain(&runtime, ExactlyOne, vec![silent(body)], true).await;
            let seen = call(&head, 1).await;
            assert!(matches!(seen, Ok(1000 | 1001)), "{body}: {seen:?}");
        }
    });
}

#[test]
fn a_deadline_ends_the_root_too() {
    let runtime = runtime();
    tasks().block_on(async {
        let spinner = plugin("a", "leaf", leaf_of(Does::Spins, "async func")).limits(SHORT);
        let (tree, _) = Tree::new("leaf", [Ok(late("leaf", "my:test/leaf", ExactlyOne))], [Ok(spinner)]);
        let (head, _) = tree.load_async(&runtime, &Linker::new(runtime.engine())).await.unwrap();
        for _ in 0..2 {
            let answer = call(&head, 1).await;
            assert!(matches!(answer, Err(DispatchError::Failed { failure: Failure::Deadline, .. })), "{answer:?}");
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_at_load() {
    let runtime = runtime();
    let linker = Linker::new(runtime.engine());
    let one_late = || plugin("a", "leaf", leaf_of(Does::Adds(1), "async func"));
    let late_leaf = || late("leaf", "my:test/leaf", ExactlyOne);
    // A thread cannot wait for it.
    let (tree, _) = Tree::new("leaf", [Ok(late_leaf())], [Ok(one_late())]);
    let (refusal, _) = tree.load(&runtime, &linker).unwrap_err();
    assert!(matches!(refusal, LoadError::Asynchronous { .. }), "{refusal}");
    assert!(refusal.to_string().contains("load_async"), "{refusal}");
    // The interface says one thing, the component another.
    tasks().block_on(async {
        for (interface, plugin) in
            [(leaf_interface(ExactlyOne), one_late()), (late_leaf(), plugin("a", "leaf", leaf(Does::Adds(1))))]
        {
            let (tree, _) = Tree::new("leaf", [Ok(interface)], [Ok(plugin)]);
            let (_, errors) = tree.load_async(&runtime, &linker).await.unwrap_err();
            let [LoadError::ExportType { expected, found, .. }] = &errors[..] else { panic!("{errors:?}") };
            assert_eq!([expected, found].iter().filter(|text| text.starts_with("async ")).count(), 1);
        }
    });
}
