//! Answers 401 unless the request carries the right key in `x-api-key`. The rule that calls it gives the key:
//! `args = { key = "…" }`.

wit_bindgen::generate!({ world: "plugin", path: "wit", generate_all });

use exports::vane::plugin::handler_l7_request::{Guest as Handler, L7RequestDecision, L7RequestInput, SynthResponse};
use exports::vane::plugin::registry::Guest as Registry;
use vane::host::host::get_args;
use vane::plugin::types::{Header, Metadata, MiddlewareExport, MiddlewareKind, PluginError};

struct ApiKey;

impl Registry for ApiKey {
    fn get_metadata() -> Metadata {
        Metadata {
            name: "api-key".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: "0.1.0".to_owned(),
            exports: vec![MiddlewareExport {
                name: "check".to_owned(),
                kind: MiddlewareKind::L7Request,
                stateless: true,
                needs_body: false,
                inspects: Vec::new(),
                needs_streaming_body: false,
            }],
        }
    }
}

impl Handler for ApiKey {
    fn handle(_export: String, input: L7RequestInput) -> Result<L7RequestDecision, PluginError> {
        let args: serde_json::Value = serde_json::from_str(&get_args()).unwrap_or_default();
        let Some(key) = args["key"].as_str().filter(|key| !key.is_empty()) else {
            // Without a key nobody could be let in; better to say why than to let everybody in.
            return Err(PluginError {
                code: "no-key".to_owned(),
                message: "the rule gives no key; write args = { key = \"…\" }".to_owned(),
                on_error_hint: Some("internal".to_owned()),
            });
        };
        let given = input.headers.iter().find(|header| header.name == "x-api-key");
        if given.is_some_and(|header| same(header.value.as_bytes(), key.as_bytes())) {
            return Ok(L7RequestDecision::Continue);
        }
        Ok(L7RequestDecision::Short(SynthResponse {
            status: 401,
            headers: vec![Header { name: "content-type".to_owned(), value: "text/plain".to_owned() }],
            body: b"give your key in x-api-key\n".to_vec(),
        }))
    }
}

/// Compares in a time that does not tell how much was right.
fn same(given: &[u8], key: &[u8]) -> bool {
    given.len() == key.len() && given.iter().zip(key).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

export!(ApiKey);
