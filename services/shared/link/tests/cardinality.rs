//! Every cardinality × {0, 1, 2 plugins} × {all good, one fails to load, one traps}, called by the host and by a plugin,
//! typed and untyped, by a thread that waits and by a task that yields.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod common;

use common::{Does, WAYS, Way, caller, leaf, leaf_interface, load, plugin, root_interface, runtime, value};
use shipote_link::Cardinality::{Any, AtLeastOne, AtMostOne, ExactlyOne};
use shipote_link::{Answers, Cardinality, DispatchError, Failure, LoadError, Plugin, SourceError, Tree};
use wasmtime::component::{Linker, Val};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Broken,
    Traps,
}

/// What loading comes to.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    /// These plugins serve; the second list holds those that were left out.
    Loads(Vec<&'static str>, Vec<&'static str>),
    /// The count is wrong; those left out.
    Refused(usize, Vec<&'static str>),
}
use Outcome::{Loads, Refused};

/// The table: the first plugin has the fault, the second is good.
fn expected(cardinality: Cardinality, count: usize, fault: Fault) -> Outcome {
    let a = || vec!["a"];
    match (count, fault) {
        (0, _) => match cardinality {
            ExactlyOne | AtLeastOne => Refused(0, vec![]),
            AtMostOne | Any => Loads(vec![], vec![]),
        },
        (1, Fault::Broken) => match cardinality {
            ExactlyOne | AtLeastOne => Refused(0, a()),
            AtMostOne | Any => Loads(vec![], a()),
        },
        (1, _) => Loads(a(), vec![]),
        (_, Fault::Broken) => Loads(vec!["b"], a()),
        _ => match cardinality {
            ExactlyOne | AtMostOne => Refused(2, vec![]),
            AtLeastOne | Any => Loads(vec!["a", "b"], vec![]),
        },
    }
}

fn leaves(count: usize, fault: Fault) -> Vec<Plugin<()>> {
    let first = match fault {
        Fault::None => plugin("a", "leaf", leaf(Does::Adds(1))),
        Fault::Broken => Plugin::lazy("a", "leaf", |_| Err(SourceError::Read("no such file".into())), || ()),
        Fault::Traps => plugin("a", "leaf", leaf(Does::Traps)),
    };
    [first, plugin("b", "leaf", leaf(Does::Adds(2)))].into_iter().take(count).collect()
}

fn cases() -> impl Iterator<Item = (Cardinality, usize, Fault)> {
    Cardinality::ALL.into_iter().flat_map(|cardinality| {
        (0..=2).flat_map(move |count| {
            [Fault::None, Fault::Broken, Fault::Traps]
                .into_iter()
                .filter(move |fault| count > 0 || *fault == Fault::None)
                .map(move |fault| (cardinality, count, fault))
        })
    })
}

/// Who was left out for want of a component.
fn unread(errors: &[LoadError]) -> Vec<&str> {
    errors
        .iter()
        .filter_map(|error| match error {
            LoadError::Read { plugin, interface, reason } => {
                assert_eq!((interface.as_str(), reason.as_str()), ("leaf", "no such file"));
                Some(plugin.as_str())
            }
            _ => None,
        })
        .collect()
}

#[test]
fn called_by_the_host() {
    WAYS.into_iter().for_each(called_by_the_host_that);
}

fn called_by_the_host_that(way: Way) {
    let runtime = runtime();
    let linker = Linker::new(runtime.engine());
    for (cardinality, count, fault) in cases() {
        let case = format!("{cardinality:?} × {count} × {fault:?}, {way:?}");
        let (tree, errors) =
            Tree::new("leaf", [Ok(leaf_interface(cardinality))], leaves(count, fault).into_iter().map(Ok));
        assert_eq!(errors, [], "{case}");
        let loaded = load(tree, way, &runtime, &linker);
        let (serving, left_out) = match (expected(cardinality, count, fault), loaded) {
            (Refused(found, left_out), Err((error, errors))) => {
                let interface = "leaf".to_owned();
                assert_eq!(error, LoadError::Cardinality { interface, expected: cardinality, found }, "{case}");
                assert_eq!(unread(&errors), left_out, "{case}");
                assert_eq!(errors.len(), left_out.len(), "{case}: {errors:?}");
                continue;
            }
            (Loads(serving, left_out), Ok((head, errors))) => {
                assert_eq!(unread(&errors), left_out, "{case}");
                assert_eq!(errors.len(), left_out.len(), "{case}: {errors:?}");
                assert_eq!(head.plugins(), serving, "{case}");
                let answers = answers_of(head.dispatch("value", &[Val::U32(40)]).unwrap(), cardinality, &case);
                let typed = answers_of(head.dispatch_typed("value", 40).unwrap(), cardinality, &case);
                assert_eq!(answers, typed, "{case}");
                (answers, serving)
            }
            (expected, loaded) => panic!("{case}: expected {expected:?}, loaded {loaded:?}"),
        };
        let wanted: Vec<_> = left_out
            .iter()
            .map(|id| match (*id, fault) {
                ("a", Fault::Traps) => None,
                ("a", _) => Some(41),
                _ => Some(42),
            })
            .collect();
        assert_eq!(serving.len(), wanted.len(), "{case}");
        for (answer, wanted) in serving.into_iter().zip(wanted) {
            match (answer, wanted) {
                (Ok(answer), Some(wanted)) => assert_eq!(answer, wanted, "{case}"),
                (Err(DispatchError::Failed { plugin, failure, .. }), None) => {
                    assert_eq!(plugin, "a", "{case}");
                    assert!(matches!(failure, Failure::Exception { trap: Some(_), .. }), "{case}: {failure:?}");
                }
                (answer, wanted) => panic!("{case}: {answer:?} instead of {wanted:?}"),
            }
        }
    }
}

/// The answers in order, and that they come in the cardinality's form.
fn answers_of(
    answers: Answers<Result<Option<Val>, DispatchError>>,
    cardinality: Cardinality,
    case: &str,
) -> Vec<Result<u32, DispatchError>> {
    match (answers, cardinality) {
        (Answers::ExactlyOne(answer), ExactlyOne) => vec![value(answer)],
        (Answers::AtMostOne(answer), AtMostOne) => answer.into_iter().map(value).collect(),
        (Answers::AtLeastOne(answers), AtLeastOne) | (Answers::Any(answers), Any) => {
            answers.into_iter().map(|(_, answer)| value(answer)).collect()
        }
        (answers, _) => panic!("{case}: {answers:?}"),
    }
}

#[test]
fn called_by_a_plugin_untyped() {
    WAYS.into_iter().for_each(|way| called_by_a_plugin(false, way));
}

#[test]
fn called_by_a_plugin_typed() {
    WAYS.into_iter().for_each(|way| called_by_a_plugin(true, way));
}

fn called_by_a_plugin(typed: bool, way: Way) {
    let runtime = runtime();
    let linker = Linker::new(runtime.engine());
    for (cardinality, count, fault) in cases() {
        let case = format!("{cardinality:?} × {count} × {fault:?}, typed: {typed}, {way:?}");
        let root = plugin("app", "root", caller(cardinality)).socket("leaf");
        let plugins = leaves(count, fault).into_iter().chain([root]).map(Ok);
        let (tree, errors) = Tree::new("root", [Ok(root_interface()), Ok(leaf_interface(cardinality))], plugins);
        assert_eq!(errors, [], "{case}");
        let tree = if typed { tree.typed::<(u32,), u32>("leaf", "value") } else { tree };
        match (expected(cardinality, count, fault), load(tree, way, &runtime, &linker)) {
            (Refused(found, left_out), Err((error, errors))) => {
                // The root wants its one plugin, which wants its socket, which has the wrong count.
                assert!(matches!(error, LoadError::Cardinality { found: 0, .. }), "{case}: {error:?}");
                assert_eq!(unread(&errors), left_out, "{case}");
                let of_leaf = LoadError::Cardinality { interface: "leaf".into(), expected: cardinality, found };
                assert!(errors.contains(&of_leaf), "{case}: {errors:?}");
                assert!(
                    errors.iter().any(|error| matches!(error, LoadError::InvalidSocket { plugin, socket, .. } if plugin == "app" && socket == "leaf")),
                    "{case}: {errors:?}"
                );
            }
            (Loads(serving, left_out), Ok((head, errors))) => {
                assert_eq!(unread(&errors), left_out, "{case}");
                let of = |id: &str| match (id, fault) {
                    ("a", Fault::Traps) => 1000,
                    ("a", _) => 41,
                    _ => 42,
                };
                let sum = match cardinality {
                    ExactlyOne => of(serving[0]),
                    AtMostOne => serving.first().map_or(900, |id| of(id)),
                    AtLeastOne | Any => serving.iter().map(|id| 10_000 + of(id)).sum(),
                };
                // Twice: a plugin that trapped is started anew and traps again, its caller is whole.
                for _ in 0..2 {
                    assert_eq!(common::one(head.dispatch("run", &[Val::U32(40)]).unwrap()), Ok(sum), "{case}");
                }
            }
            (expected, loaded) => panic!("{case}: expected {expected:?}, loaded {loaded:?}"),
        }
    }
}
