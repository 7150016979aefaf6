//! Any bytes: a value or a one-line error, never a panic.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only whether it is taken matters")]
struct Any {
    label: Option<String>,
    nodes: Option<Vec<Any>>,
    map: Option<BTreeMap<String, Kind>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "kind")]
#[allow(dead_code, reason = "only whether it is taken matters")]
enum Kind {
    One { number: u8 },
    Two { pair: (String, bool) },
}

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = shipote_config::parse_bytes::<Any>(bytes, "fuzz", 1 << 20) {
        assert!(!error.to_string().contains('\n'));
    }
});
