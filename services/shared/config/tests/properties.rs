//! Whatever comes in: a value or an error of one line, never a panic.
#![allow(missing_docs)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;
use shipote_config::parse_bytes;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
#[allow(dead_code, reason = "only whether it is taken is looked at")]
struct Any {
    label: String,
    nodes: Vec<Node>,
    map: BTreeMap<String, Vec<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase", tag = "kind")]
#[allow(dead_code, reason = "only whether it is taken is looked at")]
enum Node {
    One { a: Option<u8> },
    Two { b: (String, bool) },
}

const GOOD: &str = "label = \"x\"\n[[nodes]]\nkind = 'one'\na = 3\n[[nodes]]\nkind = 'two'\nb = ['é', true]\n[map]\n'k k' = [1.5, 2.0]\n";

fn judge(bytes: &[u8]) {
    if let Err(error) = parse_bytes::<Any>(bytes, "f", 1 << 20) {
        let said = error.to_string();
        assert!(!said.contains('\n') && said.contains("; "), "{said}");
        if let Some((line, column)) = error.position() {
            let text: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
            assert!(line >= 1 && line <= text.len(), "{said}");
            assert!(column >= 1 && column <= text[line - 1].len() + 1, "{said}");
        }
    }
}

proptest! {
    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        judge(&bytes);
    }

    #[test]
    fn random_toml_like_text(text in "([a-z\\[\\]{}=.\"'# \n0-9é-]|label|nodes|kind|map){0,80}") {
        judge(text.as_bytes());
    }

    #[test]
    fn mutated_documents(edits in prop::collection::vec((0..GOOD.len(), any::<u8>(), 0..3u8), 1..6)) {
        let mut bytes = GOOD.as_bytes().to_vec();
        for (at, byte, how) in edits {
            let at = at.min(bytes.len().saturating_sub(1));
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.drain(at..(at + usize::from(byte % 16)).min(bytes.len()))),
            }
            if bytes.is_empty() { break; }
        }
        judge(&bytes);
    }
}
