//! Building trees, and what is found at load.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Does, caller, leaf, leaf_interface, leaf_of, plugin, root_interface, runtime, tasks};
use shipote_link::Cardinality::{Any, ExactlyOne};
use shipote_link::{Function, Interface, LoadError, Plugin, SourceError, Tree, TreeError, ValueType, WitError};
use wasmtime::component::{Component, Linker, Val};

fn named(id: &str, plug: &str, sockets: &[&str]) -> Plugin<()> {
    let plugin = Plugin::lazy(id, plug, |_| Err(SourceError::Read("never read".into())), || ());
    sockets.iter().fold(plugin, |plugin, socket| plugin.socket(*socket))
}

fn empty(id: &str) -> Result<Interface, (String, String)> {
    Ok(Interface::new(id, format!("my:test/{id}"), Any))
}

#[test]
fn what_is_wrong_is_listed_and_the_rest_kept() {
    let (_, errors) = Tree::new(
        "root",
        [empty("root"), empty("root"), Err(("interface file x.wit".into(), "no such file".into()))],
        [
            Ok(named("a", "root", &["nowhere"])),
            Ok(named("a", "root", &[])),
            Ok(named("b", "elsewhere", &[])),
            Err(("plugin c".into(), "no metadata".into())),
        ],
    );
    let text: Vec<_> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 6, "{text:?}");
    assert!(errors.contains(&TreeError::DuplicateInterface { interface: "root".into() }));
    assert!(errors.contains(&TreeError::DuplicatePlugin { plugin: "a".into() }));
    for (interface, by) in [("nowhere", "plugin \"a\""), ("elsewhere", "plugin \"b\"")] {
        assert!(errors.contains(&TreeError::MissingInterface { interface: interface.into(), wanted_by: by.into() }));
    }
    assert_eq!(errors.iter().filter(|error| matches!(error, TreeError::Unreadable { .. })).count(), 2);
}

#[test]
fn a_missing_root_fails_at_load_too() {
    let runtime = runtime();
    let (tree, errors) = Tree::<()>::new("root", [], []);
    assert_eq!(errors, [TreeError::MissingInterface { interface: "root".into(), wanted_by: "the root".into() }]);
    let (error, rest) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap_err();
    assert_eq!((error, rest), (LoadError::MissingInterface { interface: "root".into() }, vec![]));
}

#[test]
fn cycles_are_named_with_their_path() {
    let path = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let (_, errors) = Tree::new("a", [empty("a")], [Ok(named("p", "a", &["a"]))]);
    assert_eq!(errors, [TreeError::Cycle { path: path(&["a", "p", "a"]) }]);

    let plugins = || [Ok(named("p", "a", &["b"])), Ok(named("q", "b", &["c"])), Ok(named("r", "c", &["b"]))];
    let (tree, errors) = Tree::new("a", [empty("a"), empty("b"), empty("c")], plugins());
    assert_eq!(errors, [TreeError::Cycle { path: path(&["b", "q", "c", "r", "b"]) }]);
    let runtime = runtime();
    let (_, errors) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
    let round = path(&["b", "q", "c", "r", "b"]);
    assert!(errors.contains(&LoadError::Loop { plugin: "r".into(), interface: "c".into(), path: round }), "{errors:?}");

    let diamond = [
        Ok(named("top", "a", &["b", "c"])),
        Ok(named("left", "b", &["d"])),
        Ok(named("right", "c", &["d"])),
        Ok(named("leaf", "d", &[])),
    ];
    let (_, errors) = Tree::new("a", ["a", "b", "c", "d"].map(empty), diamond);
    assert_eq!(errors, [], "a diamond is no cycle");
}

#[test]
fn a_cycle_out_of_reach_of_the_root_is_no_concern() {
    let plugins = [Ok(named("p", "b", &["b"]))];
    let (_, errors) = Tree::new("a", [empty("a"), empty("b")], plugins);
    assert_eq!(errors, []);
}

#[test]
fn only_what_the_root_reaches_is_read_and_a_diamond_shares_one_instance() {
    let runtime = runtime();
    let read = Arc::new(AtomicUsize::new(0));
    let counting = |id: &str, plug: &str, bytes: Vec<u8>| {
        let read = Arc::clone(&read);
        let source = move |engine: &wasmtime::Engine| {
            read.fetch_add(1, Ordering::SeqCst);
            Component::new(engine, &bytes).map_err(|error| SourceError::Invalid(error.to_string()))
        };
        Plugin::lazy(id, plug, source, || ())
    };
    // Two plugins in the root call one leaf that counts its calls.
    let mut root = root_interface();
    assert_eq!(root.cardinality(), ExactlyOne);
    root = Interface::from_wit("root", "my:app/root", Any, &[common::ROOT]).unwrap();
    let plugins = [
        Ok(counting("left", "root", caller(ExactlyOne)).socket("leaf")),
        Ok(counting("right", "root", caller(ExactlyOne)).socket("leaf")),
        Ok(counting("count", "leaf", leaf(Does::TrapsOnEven))),
        Ok(counting("unreached", "island", leaf(Does::Traps))),
    ];
    let (tree, errors) = Tree::new("root", [Ok(root), Ok(leaf_interface(ExactlyOne)), empty("island")], plugins);
    assert_eq!(errors, []);
    let chart = tree.mermaid();
    assert!(
        chart.contains("p_left -.-> i_leaf") && chart.contains("i_leaf --> p_count") && !chart.contains("unreached")
    );
    let (head, errors) = tree.load(&runtime, &Linker::new(runtime.engine())).unwrap();
    assert_eq!(errors, []);
    assert_eq!(read.load(Ordering::SeqCst), 3);
    let shipote_link::Answers::Any(answers) = head.dispatch("run", &[Val::U32(1)]).unwrap() else { panic!() };
    let answers: Vec<_> = answers.into_iter().map(|(_, answer)| common::value(answer).unwrap()).collect();
    assert_eq!(answers, [1, 2], "both call the same instance");
}

fn load_one(interface: Interface, plugin: Plugin<()>) -> Vec<LoadError> {
    let runtime = runtime();
    let id = interface.id().to_owned();
    let (tree, _) = Tree::new(id, [Ok(interface), Ok(leaf_interface(ExactlyOne))], [Ok(plugin)]);
    tree.load(&runtime, &Linker::new(runtime.engine())).unwrap_err().1
}

#[test]
fn exports_are_checked_at_load() {
    let declared = |name: &str, params: Vec<ValueType>, result| {
        Interface::new("it", "my:test/leaf", ExactlyOne).function(Function::new(name, params, result))
    };
    let good = || plugin("a", "it", leaf(Does::Adds(1)));
    let errors = load_one(declared("other", vec![], None), good());
    assert!(
        matches!(&errors[..], [LoadError::ExportMissing { export, .. }] if export == "my:test/leaf#other"),
        "{errors:?}"
    );
    for (params, result) in [
        (vec![], Some(ValueType::U32)),
        (vec![ValueType::U64], Some(ValueType::U32)),
        (vec![ValueType::U32], None),
        (vec![ValueType::U32], Some(ValueType::String)),
    ] {
        let errors = load_one(declared("value", params, result), good());
        let [LoadError::ExportType { found, .. }] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(found, "func(u32) -> u32");
    }
    let errors = load_one(Interface::new("it", "my:test/absent", ExactlyOne), good());
    assert!(
        matches!(&errors[..], [LoadError::ExportMissing { export, .. }] if export == "my:test/absent"),
        "{errors:?}"
    );
    let errors = load_one(leaf_interface(ExactlyOne), plugin("a", "leaf", b"no wasm".to_vec()));
    assert!(matches!(&errors[..], [LoadError::InvalidComponent { .. }]), "{errors:?}");
}

#[test]
fn imports_are_checked_at_load() {
    let runtime = runtime();
    let linker = Linker::new(runtime.engine());
    let load = |app: Plugin<()>| {
        let interfaces = [Ok(root_interface()), Ok(leaf_interface(ExactlyOne))];
        let (tree, _) = Tree::new("root", interfaces, [Ok(app), Ok(plugin("a", "leaf", leaf(Does::Adds(1))))]);
        tree.load(&runtime, &linker).map(|_| ()).map_err(|(_, errors)| errors)
    };
    let errors = load(plugin("app", "root", caller(ExactlyOne))).unwrap_err();
    let [LoadError::ImportNotSatisfied { import, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert!(import.contains("my:test/leaf") && import.contains("socket"), "{import}");

    let errors = load(plugin("app", "root", caller(Any)).socket("leaf")).unwrap_err();
    let [LoadError::ImportNotSatisfied { import, reason, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert_eq!(import, "my:test/leaf#value");
    assert!(reason.contains("list<result<u32"), "{reason}");
    load(plugin("app", "root", caller(ExactlyOne)).socket("leaf")).unwrap();
}

#[test]
fn functions_that_wit_calls_async_are_refused_with_the_way_out() {
    let runtime = runtime();
    let linker = Linker::new(runtime.engine());
    let late = || plugin("a", "leaf", leaf_of(Does::Adds(1), "async func"));
    let text = common::LEAF.replace("func", "async func");
    let interface = || Interface::from_wit("leaf", "my:test/leaf", ExactlyOne, &[&text]).unwrap();
    assert_eq!(interface().functions()[0].signature().to_string(), "async func(u32) -> u32");
    let tree = || Tree::new("leaf", [Ok(interface())], [Ok(late())]).0;
    let refusals = [
        tree().load(&runtime, &linker).unwrap_err().0,
        tasks().block_on(tree().load_async(&runtime, &linker)).unwrap_err().0,
    ];
    for refusal in refusals {
        assert!(matches!(refusal, LoadError::Asynchronous { .. }), "{refusal}");
        assert!(refusal.to_string().contains("Runtime::with_async_functions"), "{refusal}");
    }
    // Nor does such a component pass for one without.
    let errors = load_one(leaf_interface(ExactlyOne), late());
    let [LoadError::InvalidComponent { reason, .. }] = &errors[..] else { panic!("{errors:?}") };
    assert!(reason.contains("async"), "{reason}");
}

#[test]
fn interfaces_are_read_from_wit() {
    let text = "package my:shapes@1.2.0;
        interface shapes {
          record point { x: s32, y: s32 }
          variant shape { dot, line(tuple<point, point>) }
          flags style { bold, dashed }
          resource canvas { constructor(); draw: func(what: list<shape>, how: style) -> result<_, string>; }
          measure: func(c: borrow<canvas>) -> option<f64>;
        }";
    let interface = Interface::from_wit("shapes", "my:shapes/shapes@1.2.0", Any, &[text]).unwrap();
    let signatures: Vec<_> =
        interface.functions().iter().map(|known| format!("{} {}", known.name(), known.signature())).collect();
    assert_eq!(
        signatures,
        [
            "[constructor]canvas func() -> canvas",
            "[method]canvas.draw func(borrow<canvas>, list<variant {dot, line(tuple<record {x: s32, y: s32}, \
             record {x: s32, y: s32}>)}>, flags {bold, dashed}) -> result<_, string>",
            "measure func(borrow<canvas>) -> option<f64>",
        ]
    );
    let absent = Interface::from_wit("x", "my:shapes/shapes@2.0.0", Any, &[text]).unwrap_err();
    assert_eq!(absent, WitError::NoSuchInterface("my:shapes/shapes@2.0.0".into()));
    assert!(matches!(Interface::from_wit("x", "a:b/c", Any, &["interface {"]), Err(WitError::Syntax(_))));
}

#[test]
fn a_plug_may_have_another_version_or_another_name() {
    let runtime = runtime();
    let component = |path: &str| {
        let (package, interface) = path.split_once('/').unwrap();
        let (interface, version) = interface.split_once('@').unwrap_or((interface, ""));
        let at = if version.is_empty() { String::new() } else { format!("@{version}") };
        let wit = format!("package {package}{at}; interface {interface} {{ value: func(n: u32) -> u32; }}");
        let module = format!(
            "(module (memory (export \"memory\") 1) (func (export \"{path}#value\") (param i32) (result i32) (local.get 0)))"
        );
        common::encode(&module, &[&wit], &format!("export {path};"))
    };
    for (wanted, exported, renamed, loads) in [
        ("my:test/leaf@1.1.0", "my:test/leaf@1.1.0", None, true),
        ("my:test/leaf@1.1.0", "my:test/leaf@1.4.0", None, true),
        ("my:test/leaf@1.4.0", "my:test/leaf@1.1.0", None, false),
        ("my:test/leaf@1.1.0", "my:test/leaf@2.0.0", None, false),
        ("my:test/leaf@1.1.0", "my:test/other@1.1.0", None, false),
        ("my:test/leaf@1.1.0", "other:kind/name", Some("other:kind/name"), true),
        ("my:test/leaf@1.1.0", "my:test/leaf@1.1.0", Some("other:kind/name"), false),
    ] {
        let case = format!("{exported} for {wanted}, renamed {renamed:?}");
        let function = Function::new("value", [ValueType::U32], Some(ValueType::U32));
        let interface = Interface::new("leaf", wanted, ExactlyOne).function(function);
        let plugin = plugin("a", "leaf", component(exported));
        let plugin = renamed.into_iter().fold(plugin, Plugin::exported_as);
        let (tree, _) = Tree::new("leaf", [Ok(interface)], [Ok(plugin)]);
        match tree.load(&runtime, &Linker::new(runtime.engine())) {
            Ok((head, _)) => {
                assert!(loads, "{case}");
                assert_eq!(common::one(head.dispatch("value", &[Val::U32(7)]).unwrap()), Ok(7), "{case}");
            }
            Err((_, errors)) => {
                let missing = matches!(&errors[..], [LoadError::ExportMissing { .. }]);
                assert!(!loads && missing, "{case}: {errors:?}");
            }
        }
    }
}
