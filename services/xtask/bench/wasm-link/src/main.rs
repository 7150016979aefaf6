//! What `wasm-link` costs: its calls, and the same calls straight on the wasmtime that it uses. The components are those
//! by which ours is measured, and so is the way to ask (`services/shared/link/examples/link_cost.rs`).

#[path = "../../../../shared/link/examples/measured/mod.rs"]
mod measured;

use std::convert::Infallible;
use std::hint::black_box;
use std::iter::Empty;

use measured::Case;
use wasm_link::{
    FunctionData, InterfaceCardinality, InterfaceData, PluginCtxView, PluginData, PluginTree, PluginTreeHead,
    ResourceTable, ReturnKind, Socket,
};
use wasmtime::component::{Component, Func, Linker, Val};
use wasmtime::{Engine, Store};

/// Calls of a block.
const CALLS: u32 = 100_000;
/// Calls through a socket that one call from the host makes.
const INNER: u32 = 1_000;
const LEAF: &str = include_str!("../../../../shared/link/examples/measured/leaf.wat");
const CALLER: &str = include_str!("../../../../shared/link/examples/measured/caller.wat");

fn main() {
    // It has neither deadlines nor an option for epochs, so its engine is the default one.
    let engine = Engine::default();
    let mut cases = straight(&engine);
    cases.extend(linked(&engine));
    measured::serve(cases);
}

fn straight(engine: &Engine) -> Vec<Case> {
    let component = Component::new(engine, LEAF).unwrap();
    let start = || -> (Store<()>, Func) {
        let mut store = Store::new(engine, ());
        let instance = Linker::new(engine).instantiate(&mut store, &component).unwrap();
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
            let answer = typed.call(&mut store, (black_box(7),)).unwrap();
            typed.post_return(&mut store).unwrap();
            assert_eq!(black_box(answer), (8,));
        }),
        Case::new("untyped-straight", CALLS, move || {
            let mut result = [Val::Bool(false)];
            untyped.call(&mut untyped_store, &[Val::U32(black_box(7))], &mut result).unwrap();
            untyped.post_return(&mut untyped_store).unwrap();
            assert!(matches!(black_box(&result), [Val::U32(8)]));
        }),
    ]
}

fn linked(engine: &Engine) -> Vec<Case> {
    let leaf = || Interface::new("leaf", "my:leaf", "value");
    let single = load(engine, "leaf", vec![leaf()], vec![Plugin::new("leaf", LEAF, &[])]);
    let plugins = vec![Plugin::new("caller", CALLER, &["leaf"]), Plugin::new("leaf", LEAF, &[])];
    let chain = load(engine, "caller", vec![Interface::new("caller", "my:app", "repeat"), leaf()], plugins);
    vec![
        Case::new("dispatch", CALLS, move || {
            let answer = single.dispatch("my:leaf/root", "value", true, &[Val::U32(black_box(7))]);
            assert!(matches!(black_box(&answer), Socket::ExactlyOne(Ok(Val::U32(8)))));
        }),
        Case {
            units: INNER,
            ..Case::new("socket", CALLS / INNER, move || {
                let answer = chain.dispatch("my:app/root", "repeat", true, &[Val::U32(black_box(INNER))]);
                assert!(matches!(black_box(&answer), Socket::ExactlyOne(Ok(Val::U32(INNER)))));
            })
        },
    ]
}

fn load(
    engine: &Engine,
    root: &'static str,
    interfaces: Vec<Interface>,
    plugins: Vec<Plugin>,
) -> PluginTreeHead<Interface, Plugin> {
    let (tree, errors) = PluginTree::new(root, interfaces, plugins);
    assert!(errors.is_empty(), "the tree has errors");
    match tree.load(engine, &Linker::new(engine)) {
        Ok((head, errors)) => {
            assert!(errors.is_empty(), "plugins did not load");
            head
        }
        Err(_) => panic!("the root did not load"),
    }
}

#[derive(Debug, Clone)]
struct Function(&'static str);

impl FunctionData for Function {
    fn name(&self) -> &str {
        self.0
    }
    fn return_kind(&self) -> ReturnKind {
        ReturnKind::AssumeNoResources
    }
    fn is_method(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Interface {
    id: &'static str,
    package: &'static str,
    functions: Vec<Function>,
}

impl Interface {
    fn new(id: &'static str, package: &'static str, function: &'static str) -> Self {
        Self { id, package, functions: vec![Function(function)] }
    }
}

impl InterfaceData for Interface {
    type Id = &'static str;
    type Error = Infallible;
    type Function = Function;
    type FunctionIter<'a> = std::slice::Iter<'a, Function>;
    type ResourceIter<'a> = Empty<&'a String>;
    fn id(&self) -> Result<&Self::Id, Self::Error> {
        Ok(&self.id)
    }
    fn cardinality(&self) -> Result<&InterfaceCardinality, Self::Error> {
        Ok(&InterfaceCardinality::ExactlyOne)
    }
    fn package_name(&self) -> Result<&str, Self::Error> {
        Ok(self.package)
    }
    fn functions(&self) -> Result<Self::FunctionIter<'_>, Self::Error> {
        Ok(self.functions.iter())
    }
    fn resources(&self) -> Result<Self::ResourceIter<'_>, Self::Error> {
        Ok(std::iter::empty())
    }
}

struct Plugin {
    id: &'static str,
    text: &'static str,
    sockets: &'static [&'static str],
    table: ResourceTable,
}

impl Plugin {
    /// A plugin that plugs into the interface of its own name.
    fn new(id: &'static str, text: &'static str, sockets: &'static [&'static str]) -> Self {
        Self { id, text, sockets, table: ResourceTable::new() }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

impl PluginCtxView for Plugin {
    fn resource_table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl PluginData for Plugin {
    type Id = &'static str;
    type InterfaceId = &'static str;
    type Error = Infallible;
    type SocketIter<'a> = std::slice::Iter<'a, &'static str>;
    fn id(&self) -> Result<&Self::Id, Self::Error> {
        Ok(&self.id)
    }
    fn plug(&self) -> Result<&Self::InterfaceId, Self::Error> {
        Ok(&self.id)
    }
    fn sockets(&self) -> Result<Self::SocketIter<'_>, Self::Error> {
        Ok(self.sockets.iter())
    }
    fn component(&self, engine: &Engine) -> Result<Component, Self::Error> {
        Ok(Component::new(engine, self.text).expect("a component"))
    }
}
