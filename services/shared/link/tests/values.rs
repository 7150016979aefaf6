//! Untyped calls from number to number: each pair of types, those that are called typed underneath and those that are not.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use std::fmt::Write as _;

use common::{WAYS, load, runtime};
use shipote_link::{
    Answers, Cardinality, DispatchError, Failure, Function, Interface, Limits, Plugin, Tree, ValueType,
};
use wasmtime::component::{Component, Linker, Val};

/// Name in WIT, type, type in a core module, a value, and how wat writes it.
type Number = (&'static str, ValueType, &'static str, Val, &'static str);

fn numbers() -> Vec<Number> {
    vec![
        ("bool", ValueType::Bool, "i32", Val::Bool(true), "1"),
        ("u8", ValueType::U8, "i32", Val::U8(200), "200"),
        ("s16", ValueType::S16, "i32", Val::S16(-3), "-3"),
        ("u32", ValueType::U32, "i32", Val::U32(4_000_000_000), "4000000000"),
        ("s32", ValueType::S32, "i32", Val::S32(i32::MIN), "-2147483648"),
        ("u64", ValueType::U64, "i64", Val::U64(u64::MAX), "18446744073709551615"),
        ("s64", ValueType::S64, "i64", Val::S64(-8), "-8"),
        ("f32", ValueType::F32, "f32", Val::Float32(0.25), "0.25"),
        ("f64", ValueType::F64, "f64", Val::Float64(-1e300), "-1e300"),
        ("char", ValueType::Char, "i32", Val::Char('ß'), "223"),
    ]
}

/// A function for each pair of types, or none: it traps unless it gets that type's value, and answers the other's.
fn component(pairs: &[(Option<Number>, Option<Number>)]) -> String {
    let (mut core, mut lifted, mut exported) = (String::new(), String::new(), String::new());
    for (given, answered) in pairs {
        let name = name(given.as_ref(), answered.as_ref());
        let (mut core_type, mut ty, mut check, mut answer) = Default::default();
        if let Some((wit, _, core, _, text)) = given {
            core_type = format!("(param {core})");
            ty = format!("(param \"n\" {wit})");
            check = format!("(if ({core}.ne (local.get 0) ({core}.const {text})) (then unreachable))");
        }
        if let Some((wit, _, core, _, text)) = answered {
            core_type += &format!("(result {core})");
            ty += &format!("(result {wit})");
            answer = format!("({core}.const {text})");
        }
        writeln!(core, "(func (export \"{name}\") {core_type} {check} {answer})").unwrap();
        writeln!(lifted, "(func ${name} {ty} (canon lift (core func $i \"{name}\")))").unwrap();
        writeln!(exported, "(export \"{name}\" (func ${name}))").unwrap();
    }
    format!(
        "(component (core module $m {core}) (core instance $i (instantiate $m)) {lifted}
            (instance $e {exported}) (export \"my:numbers/all\" (instance $e)))"
    )
}

fn name(given: Option<&Number>, answered: Option<&Number>) -> String {
    let word = |number: Option<&Number>| number.map_or("none", |number| number.0);
    format!("{}-to-{}", word(given), word(answered))
}

#[test]
fn a_number_arrives_and_another_comes_back_whatever_their_types() {
    let kinds = || numbers().into_iter().map(Some).chain([None]);
    let pairs: Vec<_> = kinds().flat_map(|given| kinds().map(move |answered| (given.clone(), answered))).collect();
    assert_eq!(pairs.len(), 121);
    let runtime = runtime();
    let component = Component::new(runtime.engine(), wat::parse_str(component(&pairs)).unwrap()).unwrap();
    for way in WAYS {
        let mut interface = Interface::new("numbers", "my:numbers/all", Cardinality::ExactlyOne);
        for (given, answered) in &pairs {
            let params: Vec<_> = given.iter().map(|number| number.1.clone()).collect();
            let result = answered.as_ref().map(|number| number.1.clone());
            interface = interface.function(Function::new(name(given.as_ref(), answered.as_ref()), params, result));
        }
        let limits = Limits { deadline: std::time::Duration::from_secs(60), ..Limits::default() };
        let plugin = Plugin::new("a", "numbers", component.clone(), || ()).limits(limits);
        let (tree, _) = Tree::new("numbers", [Ok(interface)], [Ok(plugin)]);
        let (head, _) = load(tree, way, &runtime, &Linker::new(runtime.engine())).unwrap();
        for (given, answered) in &pairs {
            let name = name(given.as_ref(), answered.as_ref());
            let argument: Vec<_> = given.iter().map(|number| number.3.clone()).collect();
            let wanted = Answers::ExactlyOne(Ok(answered.as_ref().map(|number| number.3.clone())));
            assert_eq!(head.dispatch(&name, &argument), Ok(wanted.clone()), "{name}, {way:?}");
            // What does not fit is refused before the plugin sees it.
            for wrong in [vec![Val::String("1".into())], vec![Val::U32(1), Val::U32(1)]] {
                let refused = head.dispatch(&name, &wrong);
                assert!(matches!(refused, Err(DispatchError::WrongArguments { .. })), "{name}, {way:?}: {refused:?}");
            }
            // Another number of its type traps, and the next call finds a fresh instance.
            if let Some((_, ValueType::U64, ..)) = given {
                let trapped = head.dispatch(&name, &[Val::U64(1)]);
                let Ok(Answers::ExactlyOne(Err(DispatchError::Failed { failure, .. }))) = trapped else {
                    panic!("{name}, {way:?}: {trapped:?}");
                };
                assert!(matches!(failure, Failure::Exception { .. }), "{name}, {way:?}: {failure:?}");
                assert_eq!(head.dispatch(&name, &argument), Ok(wanted), "{name}, {way:?}");
            }
        }
    }
}
