//! By `wasm-link` 0.1, on the wasmtime that it needs.

use std::convert::Infallible;

use wasm_link::{
    Component, Engine, FunctionData, InterfaceCardinality, InterfaceData, Linker, PluginCtxView, PluginData, PluginTree,
    ResourceTable, ReturnKind, Socket, Val,
};

use crate::{ADD, Case, caller};

const DISPATCH_ERROR: &str = r#"(case "deadlock") (case "wit-parser-error" string) (case "invalid-interface" string) (case "invalid-function" string) (case "missing-response") (case "runtime-exception" string) (case "invalid-argument-list") (case "unsupported-type" string)"#;

#[derive(Debug, Clone)]
struct Func(&'static str);

impl FunctionData for Func {
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
    path: &'static str,
    functions: [Func; 1],
}

impl InterfaceData for Interface {
    type Id = &'static str;
    type Error = Infallible;
    type Function = Func;
    type FunctionIter<'a> = std::slice::Iter<'a, Func>;
    type ResourceIter<'a> = std::iter::Empty<&'a String>;
    fn id(&self) -> Result<&Self::Id, Infallible> {
        Ok(&self.id)
    }
    fn cardinality(&self) -> Result<&InterfaceCardinality, Infallible> {
        Ok(&InterfaceCardinality::ExactlyOne)
    }
    fn package_name(&self) -> Result<&str, Infallible> {
        Ok(self.path)
    }
    fn functions(&self) -> Result<Self::FunctionIter<'_>, Infallible> {
        Ok(self.functions.iter())
    }
    fn resources(&self) -> Result<Self::ResourceIter<'_>, Infallible> {
        Ok(std::iter::empty())
    }
}

struct Plugin {
    id: &'static str,
    plug: &'static str,
    sockets: Vec<&'static str>,
    component: Vec<u8>,
    table: ResourceTable,
}

impl Plugin {
    fn new(id: &'static str, plug: &'static str, sockets: &[&'static str], text: &str) -> Self {
        let component = wat::parse_str(text).expect("text");
        Self { id, plug, sockets: sockets.to_vec(), component, table: ResourceTable::new() }
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
    fn id(&self) -> Result<&Self::Id, Infallible> {
        Ok(&self.id)
    }
    fn plug(&self) -> Result<&Self::InterfaceId, Infallible> {
        Ok(&self.plug)
    }
    fn sockets(&self) -> Result<Self::SocketIter<'_>, Infallible> {
        Ok(self.sockets.iter())
    }
    fn component(&self, engine: &Engine) -> Result<Component, Infallible> {
        Ok(Component::new(engine, &self.component).expect("a component"))
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let leaf = || Interface { id: "leaf", path: "my:test/leaf", functions: [Func("value")] };
    let root = || Interface { id: "root", path: "my:app/root", functions: [Func("run")] };
    let app = Plugin::new("app", "root", &["leaf"], &caller(DISPATCH_ERROR));
    let add = || Plugin::new("a", "leaf", &[], ADD);
    vec![
        case("wasm-link", "leaf", ("my:test/leaf", "value"), vec![leaf()], vec![add()]),
        case("wasm-link-chain", "root", ("my:app/root", "run"), vec![root(), leaf()], vec![app, add()]),
    ]
}

fn case(
    id: &'static str,
    root: &'static str,
    (path, function): (&'static str, &'static str),
    interfaces: Vec<Interface>,
    plugins: Vec<Plugin>,
) -> Case {
    let (tree, errors) = PluginTree::new(root, interfaces, plugins);
    assert!(errors.is_empty(), "{id}: the tree has errors");
    let engine = Engine::default();
    let Ok((head, _)) = tree.load(&engine, &Linker::new(&engine)) else { panic!("{id}: the tree does not load") };
    Case::new(id, move |n| match head.dispatch(path, function, true, &[Val::U32(n)]) {
        Socket::ExactlyOne(Ok(Val::U32(answer))) => answer,
        Socket::ExactlyOne(Err(error)) => panic!("{id}: {error}"),
        _ => panic!("{id}: no number"),
    })
}
