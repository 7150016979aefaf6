//! By `shipote-link`.

use std::time::Duration;

use shipote_link::{
    Answers, Cardinality, DispatchError, Function, Head, Interface, Limits, Plugin, Runtime, Tree, ValueType,
};
use wasmtime::Config;
use wasmtime::component::{Component, Linker, Val};

use crate::{ADD, Case, caller};

const CALL_ERROR: &str = r#"(case "trap" string) (case "deadline") (case "memory-limit") (case "busy") (case "resource" string) (case "unavailable" string)"#;

pub(crate) fn cases() -> Vec<Case> {
    let runtime = Runtime::new(Config::new()).expect("a runtime");
    let function = |name| Function::new(name, [ValueType::U32], Some(ValueType::U32));
    let leaf = || Interface::new("leaf", "my:test/leaf", Cardinality::ExactlyOne).function(function("value"));
    let root = || Interface::new("root", "my:app/root", Cardinality::ExactlyOne).function(function("run"));
    let component = |text: &str| Component::new(runtime.engine(), wat::parse_str(text).expect("text")).expect("fits");
    let (add, caller) = (component(ADD), component(&caller(CALL_ERROR)));
    let limits = Limits { deadline: Duration::from_secs(10), ..Limits::default() };
    let plugin =
        |id: &str, plug: &str, component: &Component| Plugin::new(id, plug, component.clone(), || ()).limits(limits);
    let linker = Linker::new(runtime.engine());
    // Typed functions borrow their tree, which lives as long as the program.
    let load = |tree: Tree<()>| -> &'static Head<()> {
        Box::leak(Box::new(tree.load(&runtime, &linker).expect("a tree that loads").0))
    };
    let single = || load(Tree::new("leaf", [Ok(leaf())], [Ok(plugin("a", "leaf", &add))]).0);
    let chain = |typed: bool| {
        let plugins = [Ok(plugin("app", "root", &caller).socket("leaf")), Ok(plugin("a", "leaf", &add))];
        let tree = Tree::new("root", [Ok(root()), Ok(leaf())], plugins).0;
        load(if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree })
    };
    let untyped = single();
    let typed = single().typed::<(u32,), (u32,)>("value").expect("its types");
    let chain_typed = chain(true).typed::<(u32,), (u32,)>("run").expect("its types");
    let chain_untyped = chain(false).typed::<(u32,), (u32,)>("run").expect("its types");
    vec![
        Case::new("dispatch-typed", move |n| exactly(typed.call((n,)))),
        Case::new("dispatch-untyped", move |n| match untyped.dispatch("value", &[Val::U32(n)]) {
            Ok(Answers::ExactlyOne(Ok(Some(Val::U32(answer))))) => answer,
            other => panic!("{other:?}"),
        }),
        Case::new("chain-typed", move |n| exactly(chain_typed.call((n,)))),
        Case::new("chain-untyped", move |n| exactly(chain_untyped.call((n,)))),
    ]
}

fn exactly(answers: Answers<Result<(u32,), DispatchError>>) -> u32 {
    match answers {
        Answers::ExactlyOne(Ok((answer,))) => answer,
        other => panic!("{other:?}"),
    }
}
