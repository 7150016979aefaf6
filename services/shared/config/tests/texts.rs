//! The exact text of every kind of error: people read these, so a change of one must show.
#![allow(missing_docs)]

use std::collections::BTreeMap;

use serde::Deserialize;
use shipote_config::{ErrorKind, parse, parse_bytes};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "only what is refused is looked at")]
struct Pipeline {
    label: String,
    nodes: Vec<Node>,
    limits: Limits,
    env: BTreeMap<String, String>,
    port: Option<u16>,
    lossless: bool,
    lenient: Option<Lenient>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only what is refused is looked at")]
struct Node {
    label: String,
    payload: Option<Payload>,
    restart: Option<Restart>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[allow(dead_code, reason = "only what is refused is looked at")]
enum Payload {
    Native { exec: String, argv: Vec<String> },
    Virtual,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "when")]
#[allow(dead_code, reason = "only what is refused is looked at")]
enum Restart {
    Never,
    OnFailure { delay_ms: u64 },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(dead_code, reason = "only what is refused is looked at")]
struct Limits {
    memory_bytes: Option<u64>,
    share: Option<Share>,
}

/// A type with rules of its own.
#[derive(Debug, Deserialize)]
#[serde(try_from = "u32")]
struct Share;

impl TryFrom<u32> for Share {
    type Error = &'static str;
    fn try_from(value: u32) -> Result<Self, Self::Error> {
        if value <= 100 { Ok(Self) } else { Err("a share is at most 100; write a percentage") }
    }
}

/// Does not refuse unknown keys by itself.
#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only what is refused is looked at")]
struct Lenient {
    known: Option<u8>,
}

#[test]
fn texts_of_refusals() {
    let cases: &[(&str, &str)] = &[
        ("lable = 'x'", "p.toml:1:1: lable: unknown key `lable`; did you mean `label`?"),
        (
            "zzz = 1",
            "p.toml:1:1: zzz: unknown key `zzz`; known keys here: `label`, `nodes`, `limits`, `env`, `port`, `lossless`, `lenient`",
        ),
        (
            "[limits]\nmemory-bytes = 1",
            "p.toml:2:1: limits.memory-bytes: unknown key `memory-bytes`; did you mean `memory_bytes`?",
        ),
        (
            "[[nodes]]\nlabel = 'a'\n[[nodes]]\nlabel = 'b'\npaylod = 1",
            "p.toml:5:1: nodes[1].paylod: unknown key `paylod`; did you mean `payload`?",
        ),
        (
            "[[nodes]]\nlabel = 'a'\npayload.native = { exec = 'x', argv = [], exce = 1 }",
            "p.toml:3:43: nodes[0].payload.native.exce: unknown key `exce`; did you mean `exec`?",
        ),
        (
            "[[nodes]]\nlabel = 'a'\npayload.natve = { exec = 'x', argv = [] }",
            "p.toml:3:9: nodes[0].payload.natve: unknown value `natve`; did you mean `native`?",
        ),
        (
            "[[nodes]]\nlabel = 'a'\npayload = 'nothing'",
            "p.toml:3:11: nodes[0].payload: unknown value `nothing`; known values: `native`, `virtual`",
        ),
        (
            "[[nodes]]\nlabel = 'a'\nrestart = { when = 'on-failure', delay = 1 }",
            "p.toml:3:34: nodes[0].restart.delay: unknown key `delay`; known keys here: `delay_ms`",
        ),
        ("lenient = { knwon = 1 }", "p.toml:1:13: lenient.knwon: unknown key `knwon`; remove it"),
        ("[[nodes]]\npayload = 'virtual'", "p.toml:1:1: nodes[0]: the key `label` is missing; add `label = …`"),
        (
            "port = '80'",
            "p.toml:1:8: port: found string \"80\", expected a whole number from 0 to 65535; write the number without quotes",
        ),
        (
            "port = 70000",
            "p.toml:1:8: port: found integer `70000`, expected a whole number from 0 to 65535; give a number in that range",
        ),
        (
            "lossless = 'yes'",
            "p.toml:1:12: lossless: found string \"yes\", expected true or false; write `true` or `false` without quotes",
        ),
        ("label = 3", "p.toml:1:9: label: found integer `3`, expected a string; put the value in double quotes"),
        ("nodes = 3", "p.toml:1:9: nodes: found integer `3`, expected a list; write `[…]`"),
        (
            "limits = 3",
            "p.toml:1:10: limits: found integer `3`, expected a table; write `{ key = value }` or a `[section]`",
        ),
        (
            "[env]\nA = 'é'\n'a b' = 2",
            "p.toml:3:9: env.\"a b\": found integer `2`, expected a string; put the value in double quotes",
        ),
        ("limits.share = 101", "p.toml:1:16: limits.share: a share is at most 100; write a percentage"),
        (
            "label = ",
            "p.toml:1:9: not valid TOML: string values must be quoted, expected literal string; correct the syntax (https://toml.io)",
        ),
        ("label = 'a'\nlabel = 'b'", "p.toml:2:1: this key is given twice; keep one of them"),
        (
            "\u{1b}[31m = 1",
            "p.toml:1:2: not valid TOML: key with no value, expected `=`; correct the syntax (https://toml.io)",
        ),
        (
            "\"\\u001b[31m\" = 1",
            "p.toml:1:1: \"\\\\u{1b}[31m\": unknown key `\\u{1b}[31m`; known keys here: `label`, `nodes`, `limits`, `env`, `port`, `lossless`, `lenient`",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, expected) in cases {
        let said = parse::<Pipeline>(text, "p.toml").map(drop).map_err(|error| error.to_string());
        if said != Err((*expected).to_owned()) {
            wrong.push(format!("{text}\n  expected {expected}\n  said     {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn texts_that_are_no_text() {
    let error = parse_bytes::<Pipeline>(b"label = 'x'\nport = \xff", "p.toml", 100).expect_err("not UTF-8");
    assert_eq!(error.to_string(), "p.toml:2:8: the byte 0xff is not UTF-8 text; save the file as UTF-8");
    assert_eq!(error.kind(), ErrorKind::NotUtf8);

    let error = parse_bytes::<Pipeline>(&[b'#'; 101], "p.toml", 100).expect_err("too large");
    assert_eq!(error.to_string(), "p.toml: larger than the 100 bytes allowed; split it or shorten it");
}

#[test]
fn errors_stay_one_short_line() {
    let long = "x".repeat(10_000);
    for text in [format!("{long} = 1"), format!("port = '{long}'"), format!("port = \"\"\"a\nb{long}\"\"\"")] {
        let said = parse::<Pipeline>(&text, "p.toml").expect_err("refused").to_string();
        assert!(!said.contains('\n') && said.chars().count() < 800, "{said}");
    }
}

#[test]
fn what_is_right_is_taken() {
    let text = "label = 'a'\nport = 80\n[limits]\nmemory_bytes = 5\nshare = 3\n[[nodes]]\nlabel = 'n'\npayload.native = { exec = 'x', argv = ['y'] }\nrestart = { when = 'on-failure', delay_ms = 1 }";
    let pipeline: Pipeline = parse(text, "p.toml").expect("valid");
    assert_eq!((pipeline.label.as_str(), pipeline.port, pipeline.limits.memory_bytes), ("a", Some(80), Some(5)));
    assert!(matches!(pipeline.nodes[0].payload, Some(Payload::Native { .. })));
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    for text in [
        format!("label = {}", "[".repeat(200_000)),
        format!("label = {}", "{a=".repeat(200_000)),
        format!("[{}]", "a.".repeat(200_000) + "a"),
        format!("{} = 1", "a.".repeat(200_000) + "a"),
    ] {
        assert_eq!(parse::<Pipeline>(&text, "p.toml").expect_err("refused").kind(), ErrorKind::Syntax);
    }
}
