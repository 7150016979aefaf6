//! Answers that rules make themselves: the `static` terminator, `on_error`, a rate limit's `on_limit`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::Value as Json;

use crate::error::Problem;
use crate::field::is_token;
use crate::section::{Section, show};

/// A whole response. Header names are lower-case tokens and values hold no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Response {
    /// The status, 200 to 599.
    pub status: u16,
    /// The headers in the order written; framing headers are the data plane's own.
    pub headers: Vec<(String, String)>,
    /// The body.
    #[serde(serialize_with = "length_only")]
    pub body: Vec<u8>,
}

fn length_only<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(body) {
        Ok(text) if text.len() <= 256 => serializer.serialize_str(text),
        _ => serializer.serialize_str(&format!("({} bytes)", body.len())),
    }
}

/// Headers that say where a message ends or that concern one connection: never taken from rules or plugins.
pub(crate) const RESERVED: [&str; 7] =
    ["connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];

impl Response {
    /// An answer without a body.
    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Reads `status`, `headers`, and `body` (base64) or `text`.
    pub(crate) fn parse(value: &Json, path: &str, default_status: Option<u16>) -> Result<Self, Problem> {
        let mut section = Section::new(value, path)?;
        let response = Self::read(&mut section, default_status)?;
        section.finish()?;
        Ok(response)
    }

    pub(crate) fn read(section: &mut Section<'_>, default_status: Option<u16>) -> Result<Self, Problem> {
        let status = match (section.number("status", 200..=599)?, default_status) {
            (Some(status), _) => u16::try_from(status).unwrap_or(u16::MAX),
            (None, Some(status)) => status,
            (None, None) => return Err(section.missing("status")),
        };
        let headers = match section.get("headers") {
            None => Vec::new(),
            Some(value) => parse_headers(value, &section.path("headers"))?,
        };
        let body = match (section.text("body")?, section.text("text")?) {
            (Some(_), Some(_)) => {
                return Err(Problem::new(section.path("text"), "give either body (base64) or text, not both"));
            }
            (Some(base64), None) => STANDARD.decode(base64).map_err(|e| {
                Problem::new(section.path("body"), format!("not base64 ({e}); write plain text as \"text\""))
            })?,
            (None, Some(text)) => text.as_bytes().to_vec(),
            (None, None) => Vec::new(),
        };
        if !body.is_empty() && matches!(status, 204 | 304) {
            return Err(Problem::new(section.path("status"), format!("a {status} answer has no body")));
        }
        Ok(Self { status, headers, body })
    }
}

/// An object of header names to values.
pub(crate) fn parse_headers(value: &Json, path: &str) -> Result<Vec<(String, String)>, Problem> {
    let Json::Object(map) = value else {
        return Err(Problem::new(path, format!("expected an object of names to values, found {}", show(value))));
    };
    map.iter()
        .map(|(name, value)| {
            let here = format!("{path}.{name}");
            let name = header_name(name, &here)?;
            let Json::String(text) = value else {
                return Err(Problem::new(here, format!("expected a string, found {}", show(value))));
            };
            Ok((name, header_value(text, &here)?))
        })
        .collect()
}

pub(crate) fn header_name(name: &str, path: &str) -> Result<String, Problem> {
    let name = name.to_ascii_lowercase();
    if !is_token(&name) {
        return Err(Problem::new(path, format!("{name:?} is no header name")));
    }
    if RESERVED.contains(&name.as_str()) {
        return Err(Problem::new(path, format!("{name:?} is set by the proxy itself")));
    }
    Ok(name)
}

pub(crate) fn header_value(text: &str, path: &str) -> Result<String, Problem> {
    if text.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
        return Err(Problem::new(path, "a header value cannot hold control characters"));
    }
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bodies_come_as_base64_or_text() {
        let a = Response::parse(&json!({"status": 200, "body": "aGk="}), "r", None).unwrap();
        let b = Response::parse(&json!({"text": "hi"}), "r", Some(200)).unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn what_could_split_a_response_is_refused() {
        for headers in [
            json!({"a": "b\r\nc: d"}),
            json!({"a\r\nb": "c"}),
            json!({"content-length": "5"}),
            json!({"Transfer-Encoding": "chunked"}),
            json!({"": "x"}),
            json!({"a": 1}),
        ] {
            let value = json!({"status": 200, "headers": headers});
            assert!(Response::parse(&value, "r", None).is_err(), "{value}");
        }
        for value in [
            json!({}),
            json!({"status": 600}),
            json!({"status": 200, "body": "%"}),
            json!({"status": 204, "text": "x"}),
        ] {
            assert!(Response::parse(&value, "r", None).is_err(), "{value}");
        }
    }
}
