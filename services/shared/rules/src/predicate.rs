//! A rule's `match`: a tree of checks under `all_of`, `any_of` and `not`.

use serde::Serialize;
use serde_json::Value as Json;

use crate::error::Problem;
use crate::field::{Field, Phase};
use crate::operator::{Operator, Value};
use crate::section::kind;

/// What a check looks at: the data plane's side of a [`Field`].
pub trait View {
    /// Calls `f` with each value that `field` has, until one call returns `true`; says whether one did.
    /// A field that is absent has no value.
    fn any(&self, field: &Field, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool;
}

/// One field compared with one value.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What is compared.
    pub field: Field,
    /// With what, and how.
    pub operator: Operator,
}

impl Check {
    /// Whether the check holds. Of a field that repeats, one value must satisfy a positive operator, and all of
    /// them a negative one; an absent field satisfies neither.
    pub fn holds(&self, view: &dyn View) -> bool {
        if self.operator.is_negative() {
            let mut present = false;
            let broken = view.any(&self.field, &mut |value| {
                present = true;
                !self.operator.holds(value)
            });
            present && !broken
        } else {
            view.any(&self.field, &mut |value| self.operator.holds(value))
        }
    }
}

/// The tree. An empty `all_of` always holds, an empty `any_of` never.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant is the combinator that its wire name says")]
pub enum Predicate {
    Check(Check),
    AllOf(Vec<Predicate>),
    AnyOf(Vec<Predicate>),
    Not(Box<Predicate>),
}

/// How deep combinators may nest: far past what anybody writes, far below what a stack holds.
const DEPTH: usize = 32;

impl Predicate {
    pub(crate) fn parse(value: &Json, path: &str) -> Result<Self, Problem> {
        parse(value, path, 0)
    }

    /// The latest phase that a check of the tree needs.
    #[must_use]
    pub fn phase(&self) -> Phase {
        let mut phase = Phase::Raw;
        self.each(&mut |check| phase = phase.max(check.field.phase()));
        phase
    }

    /// How many checks the tree has: the measure of how specific a rule is.
    #[must_use]
    pub fn specificity(&self) -> usize {
        let mut count = 0;
        self.each(&mut |_| count += 1);
        count
    }

    /// Visits every check.
    pub fn each(&self, f: &mut dyn FnMut(&Check)) {
        match self {
            Self::Check(check) => f(check),
            Self::AllOf(parts) | Self::AnyOf(parts) => parts.iter().for_each(|p| p.each(f)),
            Self::Not(part) => part.each(f),
        }
    }
}

fn parse(value: &Json, path: &str, depth: usize) -> Result<Predicate, Problem> {
    if depth > DEPTH {
        return Err(Problem::new(path, format!("nested deeper than {DEPTH}")));
    }
    let Json::Object(map) = value else {
        return Err(Problem::new(path, format!("expected an object, found {}", kind(value))));
    };
    let mut parts = Vec::with_capacity(map.len());
    for (key, value) in map {
        let here = format!("{path}.{key}");
        match key.as_str() {
            "all_of" => parts.push(Predicate::AllOf(list(value, &here, depth)?)),
            "any_of" => parts.push(Predicate::AnyOf(list(value, &here, depth)?)),
            "not" => parts.push(Predicate::Not(Box::new(parse(value, &here, depth + 1)?))),
            name => checks(name, value, &here, &mut parts)?,
        }
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Predicate::AllOf(parts) })
}

/// The beginnings of field names. TOML's dotted keys (`http.uri.path.prefix = "/a"`) arrive as nested objects.
const STEMS: [&str; 7] = ["http", "http.uri", "http.header", "tls", "tls.peer_cert", "remote", "local"];

fn checks(name: &str, value: &Json, here: &str, parts: &mut Vec<Predicate>) -> Result<(), Problem> {
    if let (true, Json::Object(inner)) = (STEMS.contains(&name), value) {
        return inner
            .iter()
            .try_for_each(|(key, value)| checks(&format!("{name}.{key}"), value, &format!("{here}.{key}"), parts));
    }
    let field = Field::parse(name, here)?;
    let Json::Object(operators) = value else {
        let found = kind(value);
        return Err(Problem::new(here, format!("expected {{\"<operator>\": value}}, found {found}")));
    };
    if operators.is_empty() {
        return Err(Problem::new(here, "needs an operator, such as {\"equals\": value}"));
    }
    for (name, value) in operators {
        let operator = Operator::parse(name, value, &field, &format!("{here}.{name}"))?;
        parts.push(Predicate::Check(Check { field: field.clone(), operator }));
    }
    Ok(())
}

fn list(value: &Json, path: &str, depth: usize) -> Result<Vec<Predicate>, Problem> {
    let Json::Array(items) = value else {
        return Err(Problem::new(path, format!("expected a list, found {}", kind(value))));
    };
    if items.is_empty() {
        return Err(Problem::new(path, "must list at least one"));
    }
    items.iter().enumerate().map(|(i, item)| parse(item, &format!("{path}[{i}]"), depth + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    struct Headers(Vec<(&'static str, &'static str)>);

    impl View for Headers {
        fn any(&self, field: &Field, f: &mut dyn FnMut(Value<'_>) -> bool) -> bool {
            let Field::Header(name) = field else { return false };
            self.0.iter().filter(|(n, _)| n == name).any(|(_, v)| f(Value::Bytes(v.as_bytes())))
        }
    }

    fn check(value: &Json) -> Check {
        match Predicate::parse(value, "match").unwrap() {
            Predicate::Check(check) => check,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_repeated_header_holds_by_one_value_and_is_denied_by_one_value() {
        let view = Headers(vec![("a", "1"), ("a", "2")]);
        assert!(check(&json!({"http.header.a": {"equals": "2"}})).holds(&view));
        assert!(!check(&json!({"http.header.a": {"not_equals": "2"}})).holds(&view));
        assert!(check(&json!({"http.header.a": {"not_equals": "3"}})).holds(&view));
    }

    #[test]
    fn an_absent_field_fails_both_ways() {
        let view = Headers(vec![]);
        assert!(!check(&json!({"http.header.a": {"equals": "1"}})).holds(&view));
        assert!(!check(&json!({"http.header.a": {"not_equals": "1"}})).holds(&view));
    }

    #[test]
    fn several_fields_and_operators_mean_all_of() {
        let p = Predicate::parse(
            &json!({"http.uri.path": {"prefix": "/a", "suffix": "z"}, "remote.ip": {"cidr": "10.0.0.0/8"}}),
            "match",
        )
        .unwrap();
        assert_eq!(p.specificity(), 3);
        assert_eq!(p.phase(), Phase::Request);
        assert!(matches!(p, Predicate::AllOf(parts) if parts.len() == 3));
    }

    #[test]
    fn dotted_keys_of_toml_name_fields_too() {
        let nested = json!({"http": {"uri": {"path": {"prefix": "/a"}}, "header": {"x-b": {"equals": "c"}}}});
        let p = Predicate::parse(&nested, "match").unwrap();
        let mut fields = Vec::new();
        p.each(&mut |check| fields.push(check.field.to_string()));
        fields.sort();
        assert_eq!(fields, ["http.header.x-b", "http.uri.path"]);
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut value = json!({"peek": {"prefix": "x"}});
        for _ in 0..40 {
            value = json!({"not": value});
        }
        assert!(Predicate::parse(&value, "match").unwrap_err().message.contains("deeper"));
    }

    #[test]
    fn errors_name_the_place() {
        let problem = Predicate::parse(&json!({"any_of": [{"http.method": {"equal": "GET"}}]}), "match").unwrap_err();
        assert_eq!(problem.field, "match.any_of[0].http.method.equal");
        assert!(problem.message.contains("\"equals\""));
    }
}
