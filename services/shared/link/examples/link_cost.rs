//! What linking costs: each kind of call, and the same call straight on wasmtime. `cargo xtask bench plugins` asks it.
//!
//! `echo typed | cargo run --release -p shipote-link --example link_cost` does one block: units, wall and CPU nanoseconds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a measurement stops where it cannot go on")]

mod measured;

use std::hint::black_box;
use std::time::Duration;

use measured::Case;
use parking_lot::Mutex;
use shipote_link::{
    Answers, AsyncHead, CallError, Cardinality, DispatchError, Function, Head, Interface, Limits, Plugin, Runtime, Tree,
};
use shipote_link::{Typed, ValueType};
use wasmtime::component::{Component, Func, Linker, Val};
use wasmtime::{Config, Engine, Store, StoreContextMut};

/// Calls of a block.
const CALLS: u32 = 100_000;
/// Calls through a socket that one call from the host makes.
const INNER: u32 = 1_000;
const LEAF: &str = include_str!("measured/leaf.wat");
const CALLER: &str = include_str!("measured/caller.wat");

fn main() {
    let mut cases = straight();
    cases.push(between_stores());
    cases.extend(linked());
    cases.extend(yielding());
    measured::serve(cases);
}

/// The leaf on wasmtime alone, with epoch interruption as a host of untrusted code has it.
fn straight() -> Vec<Case> {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let engine = Engine::new(&config).unwrap();
    let component = Component::new(&engine, wat::parse_str(LEAF).unwrap()).unwrap();
    let start = || -> (Store<()>, Func) {
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1 << 40);
        let instance = Linker::new(&engine).instantiate(&mut store, &component).unwrap();
        let outer = instance.get_export_index(&mut store, None, "my:leaf/root").unwrap();
        let index = instance.get_export_index(&mut store, Some(&outer), "value").unwrap();
        let func = instance.get_func(&mut store, index).unwrap();
        (store, func)
    };
    let (mut store, func) = start();
    let typed = func.typed::<(u32,), (u32,)>(&store).unwrap();
    let (mut untyped_store, untyped) = start();
    vec![
        Case::new("typed-straight", CALLS, move || {
            assert_eq!(black_box(typed.call(&mut store, (black_box(7),)).unwrap()), (8,));
        }),
        Case::new("untyped-straight", CALLS, move || {
            let mut result = [Val::Bool(false)];
            untyped.call(&mut untyped_store, &[Val::U32(black_box(7))], &mut result).unwrap();
            assert!(matches!(black_box(&result), [Val::U32(8)]));
        }),
    ]
}

/// The least that a call from one store to another is with wasmtime: a typed function of the host that calls the other
/// store's. No deadline, no limit, no lock that anybody else wants, and an error would trap the caller.
fn between_stores() -> Case {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let engine = Engine::new(&config).unwrap();
    let find = |linker: &Linker<()>, text: &str, path: &str, name: &str| {
        let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1 << 40);
        let instance = linker.instantiate(&mut store, &component).unwrap();
        let outer = instance.get_export_index(&mut store, None, path).unwrap();
        let index = instance.get_export_index(&mut store, Some(&outer), name).unwrap();
        let func = instance.get_typed_func::<(u32,), (u32,)>(&mut store, index).unwrap();
        (store, func)
    };
    let leaf = Mutex::new(find(&Linker::new(&engine), LEAF, "my:leaf/root", "value"));
    let mut linker = Linker::new(&engine);
    let mut imported = linker.instance("my:leaf/root").unwrap();
    let call = move |_: StoreContextMut<'_, ()>, (n,): (u32,)| {
        let (store, func) = &mut *leaf.lock();
        Ok((Ok::<u32, CallError>(func.call(store, (n,))?.0),))
    };
    imported.func_wrap("value", call).unwrap();
    let (mut store, repeat) = find(&linker, CALLER, "my:app/root", "repeat");
    let once = move || assert_eq!(repeat.call(&mut store, (black_box(INNER),)).unwrap(), (INNER,));
    Case { units: INNER, ..Case::new("socket-straight", CALLS / INNER, once) }
}

/// An interface of one plugin and one function, from number to number.
fn interface(id: &str, path: &str, name: &str) -> Interface {
    let function = Function::new(name, [ValueType::U32], Some(ValueType::U32));
    Interface::new(id, path, Cardinality::ExactlyOne).function(function)
}

type One = Typed<'static, (), (u32,), (u32,)>;

fn linked() -> Vec<Case> {
    let runtime = Runtime::new(Config::new()).unwrap();
    let linker = Linker::new(runtime.engine());
    let component = |text: &str| Component::new(runtime.engine(), wat::parse_str(text).unwrap()).unwrap();
    let (leaf, caller) = (component(LEAF), component(CALLER));
    let interface = |id: &str, path: &str, name: &str| Ok(interface(id, path, name));
    let limits = Limits { deadline: Duration::from_secs(10), ..Limits::default() };
    let plugin = |id: &str, component: &Component| Plugin::new(id, id, component.clone(), || ()).limits(limits);
    let single = || -> &'static Head<()> {
        let (tree, _) = Tree::new("leaf", [interface("leaf", "my:leaf/root", "value")], [Ok(plugin("leaf", &leaf))]);
        Box::leak(Box::new(tree.load(&runtime, &linker).unwrap().0))
    };
    let chain = |typed: bool| -> One {
        let interfaces = [interface("caller", "my:app/root", "repeat"), interface("leaf", "my:leaf/root", "value")];
        let plugins = [Ok(plugin("caller", &caller).socket("leaf")), Ok(plugin("leaf", &leaf))];
        let (tree, _) = Tree::new("caller", interfaces, plugins);
        let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
        let head: &'static Head<()> = Box::leak(Box::new(tree.load(&runtime, &linker).unwrap().0));
        head.typed("repeat").unwrap()
    };
    let (typed, untyped): (One, _) = (single().typed("value").unwrap(), single());
    let (socket, socket_untyped) = (chain(true), chain(false));
    let through = |name, chain: One| Case {
        units: INNER,
        ..Case::new(name, CALLS / INNER, move || assert_eq!(exact(chain.call((black_box(INNER),))), INNER))
    };
    vec![
        Case::new("typed", CALLS, move || assert_eq!(exact(black_box(typed.call((black_box(7),)))), 8)),
        Case::new("untyped", CALLS, move || {
            let answers = untyped.dispatch("value", &[Val::U32(black_box(7))]);
            assert!(matches!(black_box(&answers), Ok(Answers::ExactlyOne(Ok(Some(Val::U32(8)))))));
        }),
        through("socket", socket),
        through("socket-untyped", socket_untyped),
    ]
}

/// The leaf called by a task: alone, and linked. Both yield when a tick of the clock finds them at work.
fn yielding() -> Vec<Case> {
    let tasks = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let component = |engine: &Engine| Component::new(engine, wat::parse_str(LEAF).unwrap()).unwrap();
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let engine = Engine::new(&config).unwrap();
    let straight = tasks();
    let mut store = Store::new(&engine, ());
    store.epoch_deadline_async_yield_and_update(1);
    let func = straight.block_on(async {
        let instance = Linker::new(&engine).instantiate_async(&mut store, &component(&engine)).await.unwrap();
        let outer = instance.get_export_index(&mut store, None, "my:leaf/root").unwrap();
        let index = instance.get_export_index(&mut store, Some(&outer), "value").unwrap();
        instance.get_typed_func::<(u32,), (u32,)>(&mut store, index).unwrap()
    });
    let runtime = Runtime::new(Config::new()).unwrap();
    let ours = tasks();
    let head: &'static AsyncHead<()> = Box::leak(Box::new(ours.block_on(async {
        let interface = interface("leaf", "my:leaf/root", "value");
        let limits = Limits { deadline: Duration::from_secs(10), ..Limits::default() };
        let plugin = Plugin::new("leaf", "leaf", component(runtime.engine()), || ()).limits(limits);
        let (tree, _) = Tree::new("leaf", [Ok(interface)], [Ok(plugin)]);
        tree.load_async(&runtime, &Linker::new(runtime.engine())).await.unwrap().0
    })));
    let typed = ours.block_on(head.typed::<(u32,), (u32,)>("value")).unwrap();
    let thousand = |name, once: Box<dyn FnMut()>| Case { name, times: CALLS / INNER, units: INNER, once };
    vec![
        thousand(
            "yielding-straight",
            Box::new(move || {
                straight.block_on(async {
                    for _ in 0..INNER {
                        let answer = func.call_async(&mut store, (black_box(7),)).await.unwrap();
                        assert_eq!(black_box(answer), (8,));
                    }
                });
            }),
        ),
        thousand(
            "yielding",
            Box::new(move || {
                ours.block_on(async {
                    for _ in 0..INNER {
                        assert_eq!(exact(black_box(typed.call((black_box(7),)).await)), 8);
                    }
                });
            }),
        ),
    ]
}

fn exact(answers: Answers<Result<(u32,), DispatchError>>) -> u32 {
    match answers {
        Answers::ExactlyOne(answer) => answer.unwrap().0,
        other => panic!("{other:?}"),
    }
}
