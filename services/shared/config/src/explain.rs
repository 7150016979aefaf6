//! Puts what serde says about a value into words for whoever wrote the text.
//!
//! Serde's messages are the only place where the known keys and the expected type can be had from, so they are taken
//! apart here. A message of an unforeseen shape is passed on as it is: the worst case is a plainer error.

use crate::error::{ErrorKind, quote};

/// A message in the words of this crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Explanation {
    pub(crate) kind: ErrorKind,
    pub(crate) reason: String,
    pub(crate) way_out: String,
    /// The key that the message is about, where the path does not end in it.
    pub(crate) about: Option<String>,
}

/// Explains a message of serde's derived or built-in deserializers.
pub(crate) fn explain(message: &str) -> Explanation {
    let message = message.trim_end();
    if let Some((name, known)) = named(message, "unknown field `") {
        return unknown_key(&name, &known);
    }
    if let Some((name, known)) = named(message, "unknown variant `") {
        let way_out = hint(&name, &known, "known values", "remove it");
        let reason = format!("unknown value `{}`", quote(&name));
        return Explanation { kind: ErrorKind::WrongValue, reason, way_out, about: Some(name) };
    }
    // The deserializer's own words for the keys of an enum's struct variant.
    if let Some((names, known)) =
        message.strip_prefix("unexpected keys in table: ").and_then(|rest| rest.rsplit_once(", available keys: "))
    {
        let name = names.split_once(", ").map_or(names, |(first, _)| first);
        return unknown_key(name, &known.split(", ").collect::<Vec<_>>());
    }
    if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return Explanation {
            kind: ErrorKind::MissingKey,
            reason: format!("the key `{name}` is missing"),
            way_out: format!("add `{name} = …`"),
            about: None,
        };
    }
    let typed = ["invalid type: ", "invalid value: ", "invalid length "];
    if typed.iter().any(|prefix| message.starts_with(prefix))
        && let Some((found, expected)) = message.rsplit_once(", expected ")
    {
        let found = found.split_once(": ").map_or(found, |(_, found)| found);
        let (expected, way_out) = expectation(expected);
        // What is a number already is out of range.
        let way_out = match way_out {
            UNQUOTE if found.starts_with("integer `") => "give a number in that range",
            UNQUOTE if found.starts_with("floating point `") => "give a whole number in that range",
            other => other,
        };
        return wrong(format!("found {}, expected {expected}", quote(found)), way_out.to_owned());
    }
    if message.starts_with("data did not match any variant of untagged enum") {
        return wrong("the value has none of the forms known here".to_owned(), "correct it".to_owned());
    }
    // A type's own words; by convention of this tree they may bring their way out after a semicolon.
    match message.split_once("; ") {
        Some((reason, way_out)) => wrong(reason.to_owned(), way_out.to_owned()),
        None => wrong(message.to_owned(), "change this value".to_owned()),
    }
}

/// The explanation of a key that nothing has asked for.
pub(crate) fn unknown_key(name: &str, known: &[&str]) -> Explanation {
    Explanation {
        kind: ErrorKind::UnknownKey,
        reason: format!("unknown key `{}`", quote(name)),
        way_out: hint(name, known, "known keys here", "remove it"),
        about: Some(name.to_owned()),
    }
}

fn wrong(reason: String, way_out: String) -> Explanation {
    Explanation { kind: ErrorKind::WrongValue, reason, way_out, about: None }
}

/// Takes "unknown … `NAME`, expected one of `a`, `b`" apart. The name is the user's and may itself hold anything, so
/// the list is looked for from the end: the names in it are ours and hold no back-quote.
fn named<'m>(message: &'m str, prefix: &str) -> Option<(String, Vec<&'m str>)> {
    let rest = message.strip_prefix(prefix)?;
    let end = ["`, expected ", "`, there are no "].iter().filter_map(|mark| rest.rfind(mark)).max();
    let (name, list) = match end {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest.strip_suffix('`')?, ""),
    };
    Some((name.to_owned(), list.split('`').skip(1).step_by(2).collect()))
}

fn hint(name: &str, known: &[&str], label: &str, otherwise: &str) -> String {
    if let Some(nearest) = nearest(name, known) {
        return format!("did you mean `{nearest}`?");
    }
    if known.is_empty() {
        return otherwise.to_owned();
    }
    format!("{label}: `{}`", known.join("`, `"))
}

/// The known name that `name` was most likely meant to be: at most a third of its characters off (never fewer than
/// one), where `-`, `_` and the case do not count.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let folded = |text: &str| text.to_lowercase().replace('-', "_");
    let length = name.chars().count();
    // The distance costs length times length: a key of a megabyte is nobody's slip.
    if length > 64 {
        return None;
    }
    let limit = (length / 3).max(1);
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&folded(name), &folded(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What to do about a number in quotes.
const UNQUOTE: &str = "write the number without quotes";

/// What serde expected, in words, and what to write.
fn expectation(expected: &str) -> (String, &'static str) {
    let whole = |range: &str| (format!("a whole number {range}"), UNQUOTE);
    match expected {
        "u8" => whole("from 0 to 255"),
        "u16" => whole("from 0 to 65535"),
        "u32" => whole("from 0 to 4294967295"),
        "u64" | "usize" | "u128" => whole("from 0 up"),
        "i8" | "i16" | "i32" | "i64" | "isize" | "i128" => whole("in range"),
        "f32" | "f64" => ("a number".to_owned(), UNQUOTE),
        "a boolean" => ("true or false".to_owned(), "write `true` or `false` without quotes"),
        "a string" | "a borrowed string" | "path string" => ("a string".to_owned(), "put the value in double quotes"),
        "a sequence" => ("a list".to_owned(), "write `[…]`"),
        "a map" => ("a table".to_owned(), "write `{ key = value }` or a `[section]`"),
        other if other.starts_with("struct ") => ("a table".to_owned(), "write `{ key = value }` or a `[section]`"),
        other if other.starts_with("an array of length") || other.starts_with("a tuple") => {
            (other.to_owned(), "write a list of that length")
        }
        other => (quote(other), "change this value"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_near() {
        let known = ["label", "memory_bytes", "argv", "a"];
        for (name, expected) in [
            ("lable", Some("label")),
            ("Label", Some("label")),
            ("memory-bytes", Some("memory_bytes")),
            ("memry_bytes", Some("memory_bytes")),
            ("args", Some("argv")),
            ("payload", None),
            ("b", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(nearest(&"l".repeat(100_000), &known), None);
    }

    #[test]
    fn a_key_that_looks_like_the_message_does_not_mislead() {
        let told = explain("unknown field `x`, expected `evil`, expected `label` or `argv`");
        assert_eq!(told.about.as_deref(), Some("x`, expected `evil"));
        assert_eq!(told.way_out, "known keys here: `label`, `argv`");
    }

    #[test]
    fn a_number_out_of_range_is_not_told_to_lose_its_quotes() {
        let told = explain("invalid value: integer `9999`, expected u8");
        assert_eq!(told.reason, "found integer `9999`, expected a whole number from 0 to 255");
        assert_eq!(told.way_out, "give a number in that range");
        assert_eq!(
            explain("invalid type: floating point `1.5`, expected u32").way_out,
            "give a whole number in that range"
        );
        assert_eq!(explain("invalid type: string \"80\", expected u16").way_out, UNQUOTE);
    }

    #[test]
    fn own_words_keep_their_way_out() {
        let told = explain("the name is taken; choose another");
        assert_eq!((told.reason.as_str(), told.way_out.as_str()), ("the name is taken", "choose another"));
    }
}
