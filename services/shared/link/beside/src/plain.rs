//! Straight on wasmtime: the product's version, with epoch interruption as a host has it, and the one that wasm-link has.

use wasmtime::component::{Component, Linker, Val};
use wasmtime::{Config, Engine, Store};
use wasmtime_41::component as component_41;

use crate::{ADD, Case};

pub(crate) fn cases() -> Vec<Case> {
    let mut config = Config::new();
    config.concurrency_support(false).epoch_interruption(true);
    let engine = Engine::new(&config).expect("an engine");
    let component = Component::new(&engine, wat::parse_str(ADD).expect("text")).expect("a component");
    let start = || {
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1 << 40);
        let instance = Linker::new(&engine).instantiate(&mut store, &component).expect("an instance");
        let outer = instance.get_export_index(&mut store, None, "my:test/leaf").expect("its interface");
        let index = instance.get_export_index(&mut store, Some(&outer), "value").expect("its function");
        let func = instance.get_func(&mut store, index).expect("its function");
        (store, func)
    };
    let (mut store, func) = start();
    let typed = func.typed::<(u32,), (u32,)>(&store).expect("its types");
    let (mut untyped_store, untyped) = start();
    vec![
        Case::new("wasmtime-typed", move |n| typed.call(&mut store, (n,)).expect("an answer").0),
        Case::new("wasmtime-untyped", move |n| {
            let mut result = [Val::Bool(false)];
            untyped.call(&mut untyped_store, &[Val::U32(n)], &mut result).expect("an answer");
            let [Val::U32(result)] = result else { panic!("{result:?}") };
            result
        }),
        untyped_41(),
    ]
}

fn untyped_41() -> Case {
    let engine = wasmtime_41::Engine::default();
    let bytes = wat::parse_str(ADD).expect("text");
    let component = component_41::Component::new(&engine, bytes).expect("a component");
    let mut store = wasmtime_41::Store::new(&engine, ());
    let linker = component_41::Linker::new(&engine);
    let instance = linker.instantiate(&mut store, &component).expect("an instance");
    let outer = instance.get_export_index(&mut store, None, "my:test/leaf").expect("its interface");
    let index = instance.get_export_index(&mut store, Some(&outer), "value").expect("its function");
    let func = instance.get_func(&mut store, index).expect("its function");
    Case::new("wasmtime-41-untyped", move |n| {
        let mut result = [component_41::Val::Bool(false)];
        func.call(&mut store, &[component_41::Val::U32(n)], &mut result).expect("an answer");
        func.post_return(&mut store).expect("an end");
        let [component_41::Val::U32(result)] = result else { panic!("{result:?}") };
        result
    })
}
