//! What a registry says of a refusal in its own words (OCI distribution spec, "Error codes"): they tell a wrong tag from a
//! repository that isn't there, where the status is the same. They come from anywhere, and end on somebody's terminal.

use std::io::Read;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// Most of an answer that is read.
const BODY_MAX: usize = 16 * 1024;
/// For how long it is read: who refuses has no reason to take long.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Most errors that are told, and characters of each.
const ERRORS_MAX: usize = 3;
const ERROR_MAX: usize = 200;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    errors: Vec<Error>,
    /// Docker Hub's token service has it so,
    details: Option<String>,
    /// and those that follow RFC 6749, 5.2, so.
    error_description: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Error {
    code: Option<String>,
    message: Option<String>,
}

/// What the body of a refusal says; nothing where it says nothing that is understood.
pub(super) fn words(body: impl Read) -> Option<String> {
    let Refusal { errors, details, error_description } = serde_json::from_slice(&some(body)).ok()?;
    let told: Vec<String> = errors
        .into_iter()
        .map(|Error { code, message }| [code, message].into_iter().flatten().collect::<Vec<_>>().join(": "))
        .chain(details)
        .chain(error_description)
        .map(|text| plain(&text))
        .filter(|text| !text.is_empty())
        .take(ERRORS_MAX)
        .collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// What there is of a body within the bounds.
fn some(mut body: impl Read) -> Vec<u8> {
    let (begun, mut bytes, mut piece) = (Instant::now(), Vec::new(), [0; 4096]);
    while bytes.len() < BODY_MAX && begun.elapsed() < BODY_TIME {
        match body.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
        }
    }
    bytes
}

/// Letters and what stands between them, and nothing that a terminal would act on.
fn plain(text: &str) -> String {
    // Marks that change the direction of what follows would let it look like other words.
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let text: String = text.chars().map(|c| if c.is_control() || turns(c) { ' ' } else { c }).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(ERROR_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> Option<String> {
        words(body.as_bytes())
    }

    #[test]
    fn code_and_message_are_told() {
        for (body, words) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#,
                "MANIFEST_UNKNOWN: manifest unknown",
            ),
            (r#"{"errors":[{"code":"DENIED"},{"message":"not you"}]}"#, "DENIED; not you"),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"error":"x","error_description":"no such client"}"#, "no such client"),
        ] {
            assert_eq!(said(body).as_deref(), Some(words), "{body}");
        }
        for nothing in ["", "<html>", "{}", "[]", r#"{"errors":[]}"#, r#"{"errors":[{"message":"\u0007"}]}"#] {
            assert_eq!(said(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not() {
        let body = r#"{"errors":[{"message":"a\u001b[2J\r\nshipote:\u0000 b\u202ec"}]}"#;
        assert_eq!(said(body).as_deref(), Some("a [2J shipote: b c"));
    }

    #[test]
    fn there_are_bounds() {
        let one = format!("{{\"message\":\"{}\"}}", "x".repeat(1000));
        let many = format!("{{\"errors\":[{}]}}", [one.as_str(); 10].join(","));
        assert_eq!(said(&many).unwrap().len(), ERRORS_MAX * ERROR_MAX + 2 * (ERRORS_MAX - 1));
        // An endless body ends all the same, and is no document.
        assert_eq!(words(std::io::repeat(b' ')), None);
    }
}
