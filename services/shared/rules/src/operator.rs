//! Operators of a check, compiled once and applied to a field's value without allocating.

use std::net::IpAddr;

use ipnet::IpNet;
use regex::bytes::Regex;
use serde::Serialize;
use serde_json::Value as Json;

use crate::error::{Problem, suggest};
use crate::field::{Field, Kind};
use crate::section::show;

/// The value of a field at run time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Text or bytes.
    Bytes(&'a [u8]),
    /// A whole number.
    Integer(i64),
    /// An address.
    Address(IpAddr),
    /// True or false.
    Boolean(bool),
}

/// A value that a rule compares with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Literal {
    /// Text; compared byte by byte.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// An address.
    Address(IpAddr),
    /// True or false.
    Boolean(bool),
}

/// What a check asks of a value. A field that a connection does not have fails every operator, the negative ones
/// too; `not` around a positive one holds for absent fields.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each variant is the operator that its wire name says")]
pub enum Operator {
    Equals(Literal),
    NotEquals(Literal),
    Contains(String),
    NotContains(String),
    Prefix(String),
    Suffix(String),
    Matches(#[serde(serialize_with = "pattern")] Regex),
    In(Vec<Literal>),
    NotIn(Vec<Literal>),
    Gt(i64),
    Gte(i64),
    Lt(i64),
    Lte(i64),
    Cidr(IpNet),
}

fn pattern<S: serde::Serializer>(regex: &Regex, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(regex.as_str())
}

pub(crate) const NAMES: [&str; 14] = [
    "equals",
    "not_equals",
    "contains",
    "not_contains",
    "prefix",
    "suffix",
    "matches",
    "in",
    "not_in",
    "gt",
    "gte",
    "lt",
    "lte",
    "cidr",
];

/// Largest compiled size of a pattern, in bytes: bounds what one rule can cost in memory.
const PATTERN_LIMIT: usize = 1 << 20;

impl Operator {
    pub(crate) fn parse(name: &str, value: &Json, field: &Field, path: &str) -> Result<Self, Problem> {
        let kind = field.kind();
        if !NAMES.contains(&name) {
            return Err(Problem::new(path, format!("unknown operator: {}", suggest(name, NAMES))));
        }
        if !applies(name, kind) {
            let usable: Vec<&str> = NAMES.into_iter().filter(|n| applies(n, kind)).collect();
            return Err(Problem::new(
                path,
                format!("{name:?} does not apply to {field}; use one of {}", usable.join(", ")),
            ));
        }
        let literal = |v: &Json| Literal::parse(v, kind, path);
        let text = || match value {
            Json::String(s) => Ok(s.clone()),
            other => Err(Problem::new(path, format!("expected a string, found {}", show(other)))),
        };
        let integer = || {
            value.as_i64().ok_or_else(|| Problem::new(path, format!("expected a whole number, found {}", show(value))))
        };
        let list = || match value {
            Json::Array(items) => items.iter().map(&literal).collect::<Result<Vec<_>, _>>(),
            other => Err(Problem::new(path, format!("expected a list, found {}", show(other)))),
        };
        Ok(match name {
            "equals" => Self::Equals(literal(value)?),
            "not_equals" => Self::NotEquals(literal(value)?),
            "contains" => Self::Contains(text()?),
            "not_contains" => Self::NotContains(text()?),
            "prefix" => Self::Prefix(text()?),
            "suffix" => Self::Suffix(text()?),
            "matches" => Self::Matches(
                regex::bytes::RegexBuilder::new(&text()?)
                    .size_limit(PATTERN_LIMIT)
                    .build()
                    .map_err(|e| Problem::new(path, format!("not a pattern: {}", last_line(&e.to_string()))))?,
            ),
            "in" => Self::In(list()?),
            "not_in" => Self::NotIn(list()?),
            "gt" => Self::Gt(integer()?),
            "gte" => Self::Gte(integer()?),
            "lt" => Self::Lt(integer()?),
            "lte" => Self::Lte(integer()?),
            _ => {
                let text = text()?;
                let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                Self::Cidr(net.map_err(|_| {
                    Problem::new(path, format!("expected a network such as \"10.0.0.0/8\", found {text:?}"))
                })?)
            }
        })
    }

    /// Whether the operator asks that something is *not* so. Such an operator must hold for every value of a
    /// repeated field, the others for one of them.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        matches!(self, Self::NotEquals(_) | Self::NotContains(_) | Self::NotIn(_))
    }

    /// Whether the operator holds for one value.
    #[must_use]
    pub fn holds(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Equals(literal), value) => literal.is(value),
            (Self::NotEquals(literal), value) => !literal.is(value),
            (Self::In(literals), value) => literals.iter().any(|l| l.is(value)),
            (Self::NotIn(literals), value) => !literals.iter().any(|l| l.is(value)),
            (Self::Contains(text), Value::Bytes(b)) => contains(b, text.as_bytes()),
            (Self::NotContains(text), Value::Bytes(b)) => !contains(b, text.as_bytes()),
            (Self::Prefix(text), Value::Bytes(b)) => b.starts_with(text.as_bytes()),
            (Self::Suffix(text), Value::Bytes(b)) => b.ends_with(text.as_bytes()),
            (Self::Matches(regex), Value::Bytes(b)) => regex.is_match(b),
            (Self::Gt(n), Value::Integer(v)) => v > *n,
            (Self::Gte(n), Value::Integer(v)) => v >= *n,
            (Self::Lt(n), Value::Integer(v)) => v < *n,
            (Self::Lte(n), Value::Integer(v)) => v <= *n,
            (Self::Cidr(net), Value::Address(a)) => net.contains(&a),
            _ => false,
        }
    }
}

fn applies(name: &str, kind: Kind) -> bool {
    match name {
        "equals" | "not_equals" => kind != Kind::Texts,
        "in" | "not_in" => !matches!(kind, Kind::Texts | Kind::Boolean),
        "contains" | "not_contains" => matches!(kind, Kind::Text | Kind::Bytes | Kind::Texts),
        "prefix" | "suffix" => matches!(kind, Kind::Text | Kind::Bytes),
        "matches" => kind == Kind::Text,
        "cidr" => kind == Kind::Address,
        _ => kind == Kind::Integer,
    }
}

impl Literal {
    fn parse(value: &Json, kind: Kind, path: &str) -> Result<Self, Problem> {
        let wrong = |expected: &str| Problem::new(path, format!("expected {expected}, found {}", show(value)));
        match (kind, value) {
            (Kind::Text | Kind::Bytes, Json::String(s)) => Ok(Self::Text(s.clone())),
            (Kind::Text | Kind::Bytes | Kind::Texts, _) => Err(wrong("a string")),
            (Kind::Integer, v) => v.as_i64().map(Self::Integer).ok_or_else(|| wrong("a whole number")),
            (Kind::Boolean, v) => v.as_bool().map(Self::Boolean).ok_or_else(|| wrong("true or false")),
            (Kind::Address, v) => {
                v.as_str().and_then(|s| s.parse().ok()).map(Self::Address).ok_or_else(|| wrong("an IP address"))
            }
            (Kind::Word(words), v) => match v.as_str() {
                Some(s) if words.contains(&s) => Ok(Self::Text(s.to_owned())),
                Some(s) => Err(Problem::new(path, format!("{s:?}: {}", suggest(s, words.iter().copied())))),
                None => Err(wrong("a string")),
            },
        }
    }

    fn is(&self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(text), Value::Bytes(b)) => text.as_bytes() == b,
            (Self::Integer(a), Value::Integer(b)) => *a == b,
            (Self::Address(a), Value::Address(b)) => *a == b,
            (Self::Boolean(a), Value::Boolean(b)) => *a == b,
            _ => false,
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|w| w == needle)
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or(text).trim_start_matches("error: ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn op(name: &str, value: &Json, field: &Field) -> Operator {
        Operator::parse(name, value, field, "at").unwrap()
    }

    #[test]
    fn text_operators() {
        let path = Field::UriPath;
        let value = Value::Bytes(b"/api/v1");
        for (name, arg, want) in [
            ("equals", json!("/api/v1"), true),
            ("equals", json!("/api"), false),
            ("not_equals", json!("/api"), true),
            ("prefix", json!("/api"), true),
            ("suffix", json!("v1"), true),
            ("suffix", json!("v2"), false),
            ("contains", json!("pi/v"), true),
            ("not_contains", json!("pi/v"), false),
            ("matches", json!("^/api/v[0-9]+$"), true),
            ("in", json!(["/a", "/api/v1"]), true),
            ("not_in", json!(["/a", "/api/v1"]), false),
        ] {
            assert_eq!(op(name, &arg, &path).holds(value), want, "{name} {arg}");
        }
    }

    #[test]
    fn numbers_and_networks() {
        let port = Field::LocalPort;
        for (name, arg, want) in [("gt", 79, true), ("gte", 80, true), ("lt", 80, false), ("lte", 80, true)] {
            assert_eq!(op(name, &json!(arg), &port).holds(Value::Integer(80)), want, "{name}");
        }
        let inside = Value::Address("10.1.2.3".parse().unwrap());
        assert!(op("cidr", &json!("10.0.0.0/8"), &Field::RemoteIp).holds(inside));
        assert!(!op("cidr", &json!("10.0.0.1"), &Field::RemoteIp).holds(inside));
        assert!(op("not_in", &json!(["10.0.0.1"]), &Field::RemoteIp).holds(inside));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (name, arg, field) in [
            ("cidr", json!("10.0.0.0/8"), Field::UriPath),
            ("prefix", json!("1"), Field::RemotePort),
            ("matches", json!("("), Field::UriPath),
            ("matches", json!("(?:a{1000}){1000}{1000}"), Field::UriPath),
            ("equals", json!(1), Field::UriPath),
            ("equals", json!("tpc"), Field::Transport),
            ("cidr", json!("10.0.0.0/99"), Field::RemoteIp),
            ("equal", json!("x"), Field::UriPath),
        ] {
            assert!(Operator::parse(name, &arg, &field, "at").is_err(), "{name} {arg} {field}");
        }
    }
}
