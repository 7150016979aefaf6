//! Reading one object of a rule file field by field, so that every error names the field and a misspelt field is
//! answered with the nearest one that exists.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Problem, suggest};

/// An object being read: what was asked for is remembered, and [`Section::finish`] refuses the rest.
pub(crate) struct Section<'v> {
    map: &'v Map<String, Value>,
    path: String,
    known: Vec<&'static str>,
}

impl<'v> Section<'v> {
    pub(crate) fn new(value: &'v Value, path: impl Into<String>) -> Result<Self, Problem> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self { map, path, known: Vec::new() }),
            other => Err(Problem::new(path, format!("expected an object, found {}", kind(other)))),
        }
    }

    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn get(&mut self, key: &'static str) -> Option<&'v Value> {
        self.known.push(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub(crate) fn require(&mut self, key: &'static str) -> Result<&'v Value, Problem> {
        self.get(key).ok_or_else(|| self.missing(key))
    }

    /// The problem of a field that should be there; points at a misspelt one where there is one.
    pub(crate) fn missing(&self, key: &str) -> Problem {
        let near = self.map.keys().find(|k| {
            !self.known.contains(&k.as_str()) && strsim::damerau_levenshtein(k.as_str(), key) <= 1 + key.len() / 4
        });
        match near {
            Some(near) => Problem::new(self.path(near), format!("unknown field: did you mean {key:?}?")),
            None => Problem::new(self.path(key), "this field is required"),
        }
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<&'v str>, Problem> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    pub(crate) fn require_text(&mut self, key: &'static str) -> Result<&'v str, Problem> {
        self.text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Result<Option<bool>, Problem> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn number(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value
            .as_u64()
            .filter(|n| range.contains(n))
            .map(Some)
            .ok_or_else(|| self.wrong(key, &format!("a whole number from {} to {}", range.start(), range.end()), value))
    }

    /// A number of bytes within `range`, or a size such as `"64K"`.
    pub(crate) fn size(
        &mut self,
        key: &'static str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let bytes = value.as_u64().or_else(|| shipote_units::bytes(value.as_str()?).ok());
        let expected = format!("{} to {} bytes, or a size such as \"64K\"", range.start(), range.end());
        bytes.filter(|n| range.contains(n)).map(Some).ok_or_else(|| self.wrong(key, &expected, value))
    }

    /// `"250ms"`, `"30s"`, `"1m30s"`, or a whole number of milliseconds.
    pub(crate) fn duration(&mut self, key: &'static str) -> Result<Option<Duration>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let parsed = match value {
            Value::Number(n) => n.as_u64().map(Duration::from_millis),
            Value::String(s) => shipote_units::time(s, None).ok(),
            _ => None,
        };
        parsed
            .map(Some)
            .ok_or_else(|| self.wrong(key, "a time such as \"250ms\", \"30s\", \"1m30s\" or milliseconds", value))
    }

    /// A list of strings; with `at_least_one`, not an empty one.
    pub(crate) fn texts(&mut self, key: &'static str, at_least_one: bool) -> Result<Option<Vec<&'v str>>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(items) = value else { return Err(self.wrong(key, "a list of strings", value)) };
        if at_least_one && items.is_empty() {
            return Err(Problem::new(self.path(key), "must list at least one"));
        }
        let mut out = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match item.as_str() {
                Some(s) => out.push(s),
                None => {
                    let at = format!("{}[{i}]", self.path(key));
                    return Err(Problem::new(at, format!("expected a string, found {}", kind(item))));
                }
            }
        }
        Ok(Some(out))
    }

    pub(crate) fn require_texts(&mut self, key: &'static str) -> Result<Vec<&'v str>, Problem> {
        self.texts(key, true)?.ok_or_else(|| self.missing(key))
    }

    pub(crate) fn wrong(&self, key: &str, expected: &str, found: &Value) -> Problem {
        Problem::new(self.path(key), format!("expected {expected}, found {}", show(found)))
    }

    /// Refuses fields that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        match self.map.keys().find(|k| !self.known.contains(&k.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(Problem::new(
                self.path(unknown),
                format!("unknown field: {}", suggest(unknown, self.known.iter().copied())),
            )),
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value as an error shows it: short ones whole, others by kind.
pub(crate) fn show(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 60 { text } else { kind(value).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations() {
        let read = |value: Value| Section::new(&json!({ "t": value }), "").unwrap().duration("t");
        for (value, want) in [(json!("250ms"), 250), (json!("1m30s"), 90_000), (json!("1 h"), 3_600_000), (json!(5), 5)]
        {
            assert_eq!(read(value.clone()), Ok(Some(Duration::from_millis(want))), "{value}");
        }
        for value in [json!("5"), json!("5 parsecs"), json!(-1), json!(true)] {
            let problem = read(value.clone()).unwrap_err();
            assert!(problem.message.contains("\"1m30s\""), "{value}: {}", problem.message);
        }
    }

    /// A size is bytes, or a text with a unit.
    #[test]
    fn sizes() {
        let read = |value: Value| Section::new(&json!({ "b": value }), "").unwrap().size("b", 1..=1 << 20);
        assert_eq!((read(json!(7)), read(json!("64K"))), (Ok(Some(7)), Ok(Some(65_536))));
        for value in [json!(0), json!("2M"), json!("much"), json!(1.5)] {
            assert!(read(value.clone()).unwrap_err().message.contains("such as \"64K\""), "{value}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused_with_the_nearest() {
        let value = json!({"prefixs": []});
        let mut section = Section::new(&value, "args").unwrap();
        let problem = section.require_texts("prefixes").unwrap_err();
        assert_eq!(problem.field, "args.prefixs");
        assert!(problem.message.contains("\"prefixes\""), "{}", problem.message);
    }

    #[test]
    fn a_number_out_of_range_is_refused() {
        let value = json!({"status": 99});
        let mut section = Section::new(&value, "").unwrap();
        assert_eq!(section.number("status", 100..=599).unwrap_err().field, "status");
    }
}
