//! Components for the tests, from core modules in text form and WIT.
#![allow(
    clippy::unwrap_used,
    clippy::result_large_err,
    dead_code,
    reason = "a test fails where it unwraps; each test uses a part"
)]

use std::time::Duration;

use shipote_link::{
    Answers, AsyncHead, Cardinality, DispatchError, Head, Interface, Limits, LoadError, PartialResult, Plugin, Runtime,
    SourceError, State, Tree,
};
use wasmtime::Config;
use wasmtime::component::{Component, Linker, ResourceAny, Val};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

pub(crate) const ERRORS: &str = include_str!("../../../../../wit/shipote-link/errors.wit");
pub(crate) const LEAF: &str = "package my:test; interface leaf { value: func(n: u32) -> u32; }";
pub(crate) const ROOT: &str = "package my:app; interface root { run: func(n: u32) -> u32; }";

pub(crate) fn runtime() -> Runtime {
    Runtime::new(Config::new()).unwrap()
}

/// How a tree is loaded and called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Way {
    Blocking,
    Yielding,
}

pub(crate) const WAYS: [Way; 2] = [Way::Blocking, Way::Yielding];

/// A loaded tree, called either way.
#[derive(Debug)]
pub(crate) enum Loaded<T: 'static> {
    Blocking(Head<T>),
    Yielding(AsyncHead<T>, tokio::runtime::Runtime),
}

pub(crate) fn load<T: Send + 'static>(
    tree: Tree<T>,
    way: Way,
    runtime: &Runtime,
    linker: &Linker<State<T>>,
) -> PartialResult<Loaded<T>, LoadError> {
    match way {
        Way::Blocking => tree.load(runtime, linker).map(|(head, errors)| (Loaded::Blocking(head), errors)),
        Way::Yielding => {
            let tasks = tasks();
            let loaded = tasks.block_on(tree.load_async(runtime, linker));
            loaded.map(|(head, errors)| (Loaded::Yielding(head, tasks), errors))
        }
    }
}

pub(crate) fn tasks() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

type Dispatched<R> = Result<Answers<Result<R, DispatchError>>, DispatchError>;

impl<T: Send + 'static> Loaded<T> {
    pub(crate) fn dispatch(&self, function: &str, arguments: &[Val]) -> Dispatched<Option<Val>> {
        match self {
            Self::Blocking(head) => head.dispatch(function, arguments),
            Self::Yielding(head, tasks) => tasks.block_on(head.dispatch(function, arguments)),
        }
    }

    /// The same for a function from number to number, by a typed call.
    pub(crate) fn dispatch_typed(&self, function: &str, n: u32) -> Dispatched<Option<Val>> {
        let answers = match self {
            Self::Blocking(head) => head.typed::<(u32,), (u32,)>(function)?.call((n,)),
            Self::Yielding(head, tasks) => {
                tasks.block_on(async { Ok(head.typed::<(u32,), (u32,)>(function).await?.call((n,)).await) })?
            }
        };
        let value = |answer: Result<(u32,), DispatchError>| answer.map(|(n,)| Some(Val::U32(n)));
        Ok(match answers {
            Answers::ExactlyOne(answer) => Answers::ExactlyOne(value(answer)),
            Answers::AtMostOne(answer) => Answers::AtMostOne(answer.map(value)),
            Answers::AtLeastOne(answers) => {
                Answers::AtLeastOne(answers.into_iter().map(|(id, answer)| (id, value(answer))).collect())
            }
            Answers::Any(answers) => {
                Answers::Any(answers.into_iter().map(|(id, answer)| (id, value(answer))).collect())
            }
        })
    }

    pub(crate) fn plugins(&self) -> Vec<&str> {
        match self {
            Self::Blocking(head) => head.plugins().collect(),
            Self::Yielding(head, _) => head.plugins().collect(),
        }
    }

    pub(crate) fn drop_resource(&self, resource: ResourceAny) {
        match self {
            Self::Blocking(head) => head.drop_resource(resource),
            Self::Yielding(head, tasks) => tasks.block_on(head.drop_resource(resource)),
        }
    }
}

/// Encodes a core module as a component of the world `my:fixture/it`.
pub(crate) fn encode(module: &str, packages: &[&str], world: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    for (at, text) in packages.iter().enumerate() {
        resolve.push_str(format!("{at}.wit"), text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
    }
    let text = format!("package my:fixture; world it {{ {world} }}");
    let package = resolve.push_str("fixture.wit", &text).unwrap_or_else(|error| panic!("{text}: {error:#}"));
    let world = resolve.select_world(&[package], Some("it")).unwrap();
    let mut module = wat::parse_str(module).unwrap_or_else(|error| panic!("{error}"));
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let mut encoder = ComponentEncoder::default().validate(true).module(&module).unwrap();
    encoder.encode().unwrap_or_else(|error| panic!("{error:#}"))
}

pub(crate) fn leaf_interface(cardinality: Cardinality) -> Interface {
    Interface::from_wit("leaf", "my:test/leaf", cardinality, &[LEAF]).unwrap()
}

pub(crate) fn root_interface() -> Interface {
    Interface::from_wit("root", "my:app/root", Cardinality::ExactlyOne, &[ROOT]).unwrap()
}

/// What a leaf does with its argument `n`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Does {
    /// Answers `n + k`.
    Adds(u32),
    /// Traps.
    Traps,
    /// Traps for even `n`, else counts its calls since it was started.
    TrapsOnEven,
    /// Never ends.
    Spins,
    /// Allocates until it may not, then traps.
    Hoards,
}

pub(crate) fn leaf(does: Does) -> Vec<u8> {
    leaf_of(does, "func")
}

/// The same whose function WIT calls `func`: `func` or `async func`.
pub(crate) fn leaf_of(does: Does, func: &str) -> Vec<u8> {
    let body = match does {
        Does::Adds(k) => format!("(i32.add (local.get 0) (i32.const {k}))"),
        Does::Traps => "unreachable".to_owned(),
        Does::TrapsOnEven => "(if (i32.eqz (i32.rem_u (local.get 0) (i32.const 2))) (then unreachable))
            (global.set $calls (i32.add (global.get $calls) (i32.const 1))) (global.get $calls)"
            .to_owned(),
        Does::Spins => "(loop $again (br $again)) unreachable".to_owned(),
        Does::Hoards => {
            "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable".to_owned()
        }
    };
    let module = format!(
        "(module (memory (export \"memory\") 1) (global $calls (mut i32) (i32.const 0))
           (func (export \"my:test/leaf#value\") (param i32) (result i32) {body}))"
    );
    encode(&module, &[&LEAF.replace("func", func)], "export my:test/leaf;")
}

/// A root plugin that calls the leaves and sums up what it sees: `ok` counts its value, an error 1000 and its case,
/// `none` 900; a list counts 10,000 an item besides.
pub(crate) fn caller(cardinality: Cardinality) -> Vec<u8> {
    caller_of(cardinality, "func")
}

/// The same where WIT calls all functions `func`: `func` or `async func`.
pub(crate) fn caller_of(cardinality: Cardinality, func: &str) -> Vec<u8> {
    let (shape, read) = match cardinality {
        Cardinality::ExactlyOne => ("result<u32, call-error>", "(call $one (i32.const 16))"),
        Cardinality::AtMostOne => (
            "option<result<u32, call-error>>",
            "(if (result i32) (i32.load8_u (i32.const 16)) (then (call $one (i32.const 20))) (else (i32.const 900)))",
        ),
        Cardinality::AtLeastOne | Cardinality::Any => (
            "list<result<u32, call-error>>",
            "(local.set $at (i32.load (i32.const 16))) (local.set $left (i32.load (i32.const 20)))
             (block $end (loop $next
               (br_if $end (i32.eqz (local.get $left)))
               (local.set $sum (i32.add (i32.const 10000) (i32.add (local.get $sum) (call $one (local.get $at)))))
               (local.set $at (i32.add (local.get $at) (i32.const 16)))
               (local.set $left (i32.sub (local.get $left) (i32.const 1)))
               (br $next)))
             (local.get $sum)",
        ),
    };
    let module = format!(
        "(module (import \"my:test/leaf\" \"value\" (func $value (param i32 i32)))
           (memory (export \"memory\") 2) (global $heap (mut i32) (i32.const 4096))
           (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (local $at i32)
             (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
             (global.set $heap (i32.add (local.get $at) (local.get 3))) (local.get $at))
           (func $one (param i32) (result i32)
             (if (result i32) (i32.load8_u (local.get 0))
               (then (i32.add (i32.const 1000) (i32.load8_u offset=4 (local.get 0))))
               (else (i32.load offset=4 (local.get 0)))))
           (func (export \"my:app/root#run\") (param i32) (result i32) (local $at i32) (local $left i32) (local $sum i32)
             (global.set $heap (i32.const 4096))
             (call $value (local.get 0) (i32.const 16))
             {read}))"
    );
    let wrapped = format!(
        "package my:test; interface leaf {{ use shipote:link/errors@0.1.0.{{call-error}}; value: {func}(n: u32) -> {shape}; }}"
    );
    encode(&module, &[ERRORS, &wrapped, &ROOT.replace("func", func)], "import my:test/leaf; export my:app/root;")
}

pub(crate) fn plugin(id: &str, plug: &str, bytes: Vec<u8>) -> Plugin<()> {
    Plugin::lazy(
        id,
        plug,
        move |engine| Component::new(engine, &bytes).map_err(|error| SourceError::Invalid(format!("{error:#}"))),
        || (),
    )
    // Far from what a healthy call takes, even under a debugger's build and a busy machine.
    .limits(Limits { deadline: Duration::from_secs(60), memory: 4 << 20, ..Limits::default() })
}

pub(crate) fn value(answer: Result<Option<Val>, DispatchError>) -> Result<u32, DispatchError> {
    answer.map(|value| match value {
        Some(Val::U32(value)) => value,
        other => panic!("{other:?}"),
    })
}

pub(crate) fn one(answers: Answers<Result<Option<Val>, DispatchError>>) -> Result<u32, DispatchError> {
    match answers {
        Answers::ExactlyOne(answer) => value(answer),
        other => panic!("{other:?}"),
    }
}
