//! What linking costs: each kind of call against the same call straight on wasmtime, in interleaved rounds of one run.
//!
//! `cargo run --release -p shipote-link --example ratio [ROUNDS]` prints one JSON object a line: `id`, `ns`, `against`,
//! `ratio` (medians).
#![allow(clippy::unwrap_used, reason = "a measurement stops where it cannot go on")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use shipote_link::{Answers, Cardinality, Function, Interface, Limits, Plugin, Runtime, Tree, ValueType};
use wasmtime::component::{Component, Linker, Val};
use wasmtime::{Config, Engine, Store};

const CALLS: u32 = 20_000;
const ADD: &str = r#"(component
  (core module $m (func (export "f") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))
  (core instance $i (instantiate $m))
  (func $f (param "n" u32) (result u32) (canon lift (core func $i "f")))
  (instance $e (export "value" (func $f)))
  (export "my:test/leaf" (instance $e)))"#;
/// Calls the leaf through its socket and returns what it says.
const CALLER: &str = r#"(component
  (type $call-error (variant (case "trap" string) (case "deadline") (case "memory-limit") (case "busy") (case "resource" string) (case "unavailable" string)))
  (import "my:test/leaf" (instance $leaf
    (type $e' (variant (case "trap" string) (case "deadline") (case "memory-limit") (case "busy") (case "resource" string) (case "unavailable" string)))
    (export "call-error" (type $e (eq $e')))
    (type $r (result u32 (error $e)))
    (export "value" (func (param "n" u32) (result $r)))))
  (core module $memory (memory (export "memory") 1)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096)))
  (core instance $mem (instantiate $memory))
  (alias core export $mem "memory" (core memory $memory))
  (alias core export $mem "realloc" (core func $realloc))
  (core func $value (canon lower (func $leaf "value") (memory $memory) (realloc $realloc)))
  (core module $m (import "leaf" "value" (func $value (param i32 i32))) (import "mem" "memory" (memory 1))
    (func (export "f") (param i32) (result i32)
      (call $value (local.get 0) (i32.const 16)) (i32.load offset=4 (i32.const 16))))
  (core instance $i (instantiate $m (with "leaf" (instance (export "value" (func $value)))) (with "mem" (instance $mem))))
  (func $f (param "n" u32) (result u32) (canon lift (core func $i "f")))
  (instance $e (export "run" (func $f)))
  (export "my:app/root" (instance $e)))"#;

struct Case {
    id: &'static str,
    against: Option<&'static str>,
    call: Box<dyn FnMut(u32) -> u32>,
    samples: Vec<f64>,
}

fn main() {
    let rounds: usize = std::env::args().nth(1).map_or(31, |text| text.parse().unwrap());
    let mut cases = direct();
    cases.extend(linked());
    for round in 0..=rounds {
        for case in &mut cases {
            let start = Instant::now();
            for n in 0..CALLS {
                assert_eq!(black_box((case.call)(black_box(n))), n + 1);
            }
            let each = start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS);
            // The first round warms up.
            if round > 0 {
                case.samples.push(each);
            }
        }
    }
    let medians: Vec<(&str, f64)> = cases.iter_mut().map(|case| (case.id, median(&mut case.samples))).collect();
    for case in &cases {
        let of = |id: &str| medians.iter().find(|(known, _)| *known == id).map_or(f64::NAN, |(_, ns)| *ns);
        let against = case.against.map_or(f64::NAN, of);
        let ratio = of(case.id) / against;
        println!(
            "{{\"id\": \"{}\", \"ns\": {:.1}, \"against\": \"{}\", \"ratio\": {}}}",
            case.id,
            of(case.id),
            case.against.unwrap_or(""),
            if ratio.is_nan() { "null".to_owned() } else { format!("{ratio:.2}") }
        );
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The same component on wasmtime alone, with epoch interruption as a host would have it, and without.
fn direct() -> Vec<Case> {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, wat::parse_str(ADD).unwrap()).unwrap();
    let start = || {
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1 << 40);
        let instance = Linker::new(&engine).instantiate(&mut store, &component).unwrap();
        let outer = instance.get_export_index(&mut store, None, "my:test/leaf").unwrap();
        let index = instance.get_export_index(&mut store, Some(&outer), "value").unwrap();
        let func = instance.get_func(&mut store, index).unwrap();
        (store, func)
    };
    let (mut store, func) = start();
    let typed = func.typed::<(u32,), (u32,)>(&store).unwrap();
    let (mut untyped_store, untyped) = start();
    vec![
        Case {
            id: "wasmtime-typed",
            against: None,
            call: Box::new(move |n| typed.call(&mut store, (n,)).unwrap().0),
            samples: vec![],
        },
        Case {
            id: "wasmtime-untyped",
            against: None,
            call: Box::new(move |n| {
                let mut result = [Val::Bool(false)];
                untyped.call(&mut untyped_store, &[Val::U32(n)], &mut result).unwrap();
                let [Val::U32(result)] = result else { panic!() };
                result
            }),
            samples: vec![],
        },
    ]
}

fn linked() -> Vec<Case> {
    let runtime = Runtime::new(Config::new()).unwrap();
    let function = |name| Function::new(name, [ValueType::U32], Some(ValueType::U32));
    let leaf = || Interface::new("leaf", "my:test/leaf", Cardinality::ExactlyOne).function(function("value"));
    let root = || Interface::new("root", "my:app/root", Cardinality::ExactlyOne).function(function("run"));
    let component = |text: &str| Component::new(runtime.engine(), wat::parse_str(text).unwrap()).unwrap();
    let (add, caller) = (component(ADD), component(CALLER));
    let limits = Limits { deadline: Duration::from_secs(10), ..Limits::default() };
    let plugin =
        |id: &str, plug: &str, component: &Component| Plugin::new(id, plug, component.clone(), || ()).limits(limits);
    let linker = Linker::new(runtime.engine());
    let single = || {
        let (tree, _) = Tree::new("leaf", [Ok(leaf())], [Ok(plugin("a", "leaf", &add))]);
        Box::leak(Box::new(tree.load(&runtime, &linker).unwrap().0))
    };
    let chain = |typed: bool| {
        let plugins = [Ok(plugin("app", "root", &caller).socket("leaf")), Ok(plugin("a", "leaf", &add))];
        let (tree, _) = Tree::new("root", [Ok(root()), Ok(leaf())], plugins);
        let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
        Box::leak(Box::new(tree.load(&runtime, &linker).unwrap().0))
    };
    let untyped = single();
    let typed = single().typed::<(u32,), (u32,)>("value").unwrap();
    let chain_typed = chain(true).typed::<(u32,), (u32,)>("run").unwrap();
    let chain_untyped = chain(false).typed::<(u32,), (u32,)>("run").unwrap();
    let exact = |answers: Answers<Result<(u32,), shipote_link::DispatchError>>| match answers {
        Answers::ExactlyOne(answer) => answer.unwrap().0,
        other => panic!("{other:?}"),
    };
    vec![
        Case {
            id: "dispatch-typed",
            against: Some("wasmtime-typed"),
            call: Box::new(move |n| exact(typed.call((n,)))),
            samples: vec![],
        },
        Case {
            id: "dispatch-untyped",
            against: Some("wasmtime-untyped"),
            call: Box::new(move |n| match untyped.dispatch("value", &[Val::U32(n)]).unwrap() {
                Answers::ExactlyOne(Ok(Some(Val::U32(answer)))) => answer,
                other => panic!("{other:?}"),
            }),
            samples: vec![],
        },
        // Host → plugin → plugin: the socket's share is what it takes beyond dispatch-typed.
        Case {
            id: "through-socket-typed",
            against: Some("dispatch-typed"),
            call: Box::new(move |n| exact(chain_typed.call((n,)))),
            samples: vec![],
        },
        Case {
            id: "through-socket-untyped",
            against: Some("dispatch-typed"),
            call: Box::new(move |n| exact(chain_untyped.call((n,)))),
            samples: vec![],
        },
    ]
}
