//! Handles: they stay with the plugin that made them, wherever they go.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use common::{WAYS, Way, encode, load, one, plugin, root_interface, runtime};
use shipote_link::Cardinality::{AtLeastOne, ExactlyOne};
use shipote_link::{Answers, Cardinality, DispatchError, Interface, Tree};
use wasmtime::component::{Linker, Val};

const COUNTERS: &str = "package my:test; interface counters {
    resource counter { add: func(n: u32) -> u32; }
    open: func(start: u32) -> counter;
    close: func(c: counter) -> u32;
    live: func() -> u32;
}";

fn interface(cardinality: Cardinality) -> Interface {
    Interface::from_wit("counters", "my:test/counters", cardinality, &[COUNTERS]).unwrap()
}

/// Keeps each counter in a word of memory, the resource's representation being its address; traps when 666 is added.
fn owner() -> Vec<u8> {
    let module = r#"(module
        (import "[export]my:test/counters" "[resource-new]counter" (func $new (param i32) (result i32)))
        (import "[export]my:test/counters" "[resource-rep]counter" (func $rep (param i32) (result i32)))
        (import "[export]my:test/counters" "[resource-drop]counter" (func $drop (param i32)))
        (memory (export "memory") 1) (global $next (mut i32) (i32.const 64)) (global $live (mut i32) (i32.const 0))
        (func (export "my:test/counters#open") (param i32) (result i32)
          (global.set $next (i32.add (global.get $next) (i32.const 4)))
          (global.set $live (i32.add (global.get $live) (i32.const 1)))
          (i32.store (global.get $next) (local.get 0))
          (call $new (global.get $next)))
        (func (export "my:test/counters#[method]counter.add") (param i32 i32) (result i32)
          (if (i32.eq (local.get 1) (i32.const 666)) (then unreachable))
          (i32.store (local.get 0) (i32.add (i32.load (local.get 0)) (local.get 1)))
          (i32.load (local.get 0)))
        (func (export "my:test/counters#close") (param i32) (result i32) (local $value i32)
          (local.set $value (i32.load (call $rep (local.get 0))))
          (call $drop (local.get 0)) (local.get $value))
        (func (export "my:test/counters#live") (result i32) (global.get $live))
        (func (export "my:test/counters#[dtor]counter") (param i32)
          (global.set $live (i32.sub (global.get $live) (i32.const 1)))))"#;
    encode(module, &[COUNTERS], "export my:test/counters;")
}

/// Calls a function of the counters as `n` says and shows what it sees: values as they are, errors as 1000 and case.
fn user() -> Vec<u8> {
    let wrapped = "package my:test; interface counters {
        use shipote:link/errors@0.1.0.{call-error};
        resource counter { add: func(n: u32) -> result<u32, call-error>; }
        open: func(start: u32) -> result<counter, call-error>;
        close: func(c: counter) -> result<u32, call-error>;
        live: func() -> result<u32, call-error>;
    }";
    let module = r#"(module
        (import "my:test/counters" "open" (func $open (param i32 i32)))
        (import "my:test/counters" "[method]counter.add" (func $add (param i32 i32 i32)))
        (import "my:test/counters" "close" (func $close (param i32 i32)))
        (import "my:test/counters" "live" (func $live (param i32)))
        (import "my:test/counters" "[resource-drop]counter" (func $drop (param i32)))
        (memory (export "memory") 1) (global $held (mut i32) (i32.const 0))
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
        (func $seen (result i32)
          (if (result i32) (i32.load8_u (i32.const 16))
            (then (i32.add (i32.const 1000) (i32.load8_u (i32.const 20))))
            (else (i32.load (i32.const 20)))))
        (func (export "my:app/root#run") (param i32) (result i32)
          (if (i32.eq (local.get 0) (i32.const 0)) (then
            (call $open (i32.const 5) (i32.const 16))
            (global.set $held (call $seen))
            (return (i32.load8_u (i32.const 16)))))
          (if (i32.eq (local.get 0) (i32.const 1)) (then (call $drop (global.get $held)) (return (i32.const 0))))
          (if (i32.eq (local.get 0) (i32.const 2)) (then (call $close (global.get $held) (i32.const 16)) (return (call $seen))))
          (if (i32.eq (local.get 0) (i32.const 3)) (then (call $live (i32.const 16)) (return (call $seen))))
          (if (i32.eq (local.get 0) (i32.const 4)) (then unreachable))
          (call $add (global.get $held) (local.get 0) (i32.const 16))
          (call $seen)))"#;
    encode(module, &[common::ERRORS, wrapped, common::ROOT], "import my:test/counters; export my:app/root;")
}

const OPEN: u32 = 0;
const DROP: u32 = 1;
const CLOSE: u32 = 2;
const LIVE: u32 = 3;
const TRAP: u32 = 4;
const RESOURCE_ERROR: u32 = 1004;

fn between_plugins(way: Way) -> impl Fn(u32) -> Result<u32, DispatchError> {
    let runtime = runtime();
    let plugins = [Ok(plugin("app", "root", user()).socket("counters")), Ok(plugin("owner", "counters", owner()))];
    let (tree, errors) = Tree::new("root", [Ok(root_interface()), Ok(interface(ExactlyOne))], plugins);
    assert_eq!(errors, []);
    let (head, errors) = load(tree, way, &runtime, &Linker::new(runtime.engine())).unwrap();
    assert_eq!(errors, []);
    move |n| one(head.dispatch("run", &[Val::U32(n)]).unwrap())
}

#[test]
fn a_plugin_uses_and_drops_what_another_made() {
    for run in WAYS.map(between_plugins) {
        assert_eq!(run(OPEN), Ok(0));
        assert_eq!((run(10), run(20)), (Ok(15), Ok(35)));
        assert_eq!(run(LIVE), Ok(1));
        assert_eq!(run(DROP), Ok(0));
        assert_eq!(run(LIVE), Ok(0), "dropping the handle dropped the resource");
    }
}

#[test]
fn a_plugin_gives_back_what_another_made() {
    for run in WAYS.map(between_plugins) {
        run(OPEN).unwrap();
        run(10).unwrap();
        assert_eq!(run(CLOSE), Ok(15));
        assert_eq!(run(LIVE), Ok(0));
        assert!(run(10).is_err(), "the handle is gone; using it is the caller's own trap");
    }
}

#[test]
fn what_a_failed_holder_held_is_dropped() {
    for run in WAYS.map(between_plugins) {
        run(OPEN).unwrap();
        assert_eq!(run(LIVE), Ok(1));
        assert!(run(TRAP).is_err());
        assert_eq!(run(LIVE), Ok(0));
    }
}

#[test]
fn handles_of_a_failed_owner_are_errors() {
    for run in WAYS.map(between_plugins) {
        run(OPEN).unwrap();
        assert_eq!(run(666), Ok(1000), "the owner traps");
        assert_eq!(run(10), Ok(RESOURCE_ERROR), "its resources went with it");
        assert_eq!(run(DROP), Ok(0));
        run(OPEN).unwrap();
        assert_eq!(run(10), Ok(15));
    }
}

#[test]
fn the_host_routes_handles_to_their_owners() {
    WAYS.into_iter().for_each(routed_by_a_host_that);
}

fn routed_by_a_host_that(way: Way) {
    let runtime = runtime();
    let plugins = ["a", "b"].map(|id| Ok(plugin(id, "counters", owner())));
    let (tree, _) = Tree::new("counters", [Ok(interface(AtLeastOne))], plugins);
    let (head, _) = load(tree, way, &runtime, &Linker::new(runtime.engine())).unwrap();
    let all = |answers| match answers {
        Answers::AtLeastOne(answers) => answers.into_iter().map(|(_, answer)| answer).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let handles: Vec<_> = all(head.dispatch("open", &[Val::U32(7)]).unwrap())
        .into_iter()
        .map(|answer| match answer {
            Ok(Some(Val::Resource(handle))) => handle,
            other => panic!("{other:?}"),
        })
        .collect();
    let add =
        |at: usize, n: u32| head.dispatch("[method]counter.add", &[Val::Resource(handles[at]), Val::U32(n)]).map(one);
    assert_eq!((add(0, 1), add(1, 10), add(0, 1)), (Ok(Ok(8)), Ok(Ok(17)), Ok(Ok(9))));

    let closed = all(head.dispatch("close", &[Val::Resource(handles[1])]).unwrap());
    assert!(matches!(&closed[0], Err(DispatchError::Resource { plugin, .. }) if plugin == "a"), "{closed:?}");
    assert_eq!(closed[1], Ok(Some(Val::U32(17))));
    assert!(matches!(add(1, 1), Err(DispatchError::Resource { .. })), "given away");

    head.drop_resource(handles[0]);
    head.drop_resource(handles[0]);
    assert!(matches!(add(0, 1), Err(DispatchError::Resource { .. })), "dropped");
    assert_eq!(all(head.dispatch("live", &[]).unwrap()), [Ok(Some(Val::U32(0))), Ok(Some(Val::U32(0)))]);
}
