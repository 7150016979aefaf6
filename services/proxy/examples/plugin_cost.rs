//! What the proxy adds to a plugin's call and to loading it, and the same straight on wasmtime. `cargo xtask bench
//! plugins` asks it.
//!
//! `echo request | cargo run --release -p shipote-proxy --example plugin_cost` does one block: units, wall and CPU
//! nanoseconds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unsafe_code,
    reason = "a measurement stops where it cannot go on, and runs code that it compiled itself"
)]

#[path = "../../shared/link/examples/measured/mod.rs"]
mod measured;

use std::hint::black_box;

use measured::Case;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::handlers::{BytesView, Header, L7RequestDecision, L7RequestInput, L7RequestRef};
use shipote_plugin_abi::metadata::{MiddlewareKind, PluginError};
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;
use shipote_proxy::measure::Caller;
use wasmtime::component::{Component, Linker, TypedFunc};
use wasmtime::{Engine, Store};

fn main() {
    let mut fixture = Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.metadata.exports[0].needs_body = true;
    let engine = Engine::new(&shipote_plugin_abi::engine::config()).unwrap();
    let code = PluginCode {
        name: "edge".to_owned(),
        digest: "sha256:1".to_owned(),
        metadata: fixture.metadata.clone(),
        policy: Policy { deadline_ms: 60_000, ..Policy::default() },
        links: Vec::new(),
        code: engine.precompile_component(&fixture.component()).unwrap(),
        canary: None,
    };
    measured::serve(cases(&engine, &code));
}

fn cases(engine: &Engine, code: &PluginCode) -> Vec<Case> {
    let caller = Caller::new(code, "l7-request").unwrap();
    let loader = Caller::new(code, "l7-request").unwrap();
    let input = request();
    let (mut store, handle) = straight(engine, code);
    let (ours, theirs) = (input.clone(), input);
    let (bytes, code, engine) = (code.code.clone(), code.clone(), engine.clone());
    vec![
        Case::new("request", 5_000, move || assert!(black_box(caller.request(&ours)))),
        Case::new("request-straight", 5_000, move || {
            let answer = handle.call(&mut store, ("l7-request", L7RequestRef::from(&theirs))).unwrap();
            assert!(matches!(black_box(answer.0), Ok(L7RequestDecision::Continue)));
        }),
        Case::new("load", 50, move || loader.load(&code).unwrap()),
        Case::new("load-straight", 50, move || {
            // SAFETY: the bytes were compiled above, by the same wasmtime.
            drop(black_box(unsafe { Component::deserialize(&engine, &bytes) }.unwrap()));
        }),
    ]
}

/// 20 headers and a body of 1 KiB.
fn request() -> L7RequestInput {
    let header = |n: usize| Header { name: format!("x-header-{n}"), value: "of some twenty bytes".to_owned() };
    L7RequestInput {
        method: "POST".to_owned(),
        uri: "/some/path?with=query".to_owned(),
        headers: (0..20).map(header).collect(),
        body: Some(BytesView { data: vec![b'x'; 1024], truncated: false }),
        context: Vec::new(),
    }
}

type Handle = TypedFunc<(&'static str, L7RequestRef<'static>), (Result<L7RequestDecision, PluginError>,)>;

fn straight(engine: &Engine, code: &PluginCode) -> (Store<()>, Handle) {
    // SAFETY: the bytes were compiled by this process, by the same wasmtime.
    let component = unsafe { Component::deserialize(engine, &code.code) }.unwrap();
    let mut store = Store::new(engine, ());
    store.set_epoch_deadline(1 << 40);
    let instance = Linker::new(engine).instantiate(&mut store, &component).unwrap();
    let outer = instance.get_export_index(&mut store, None, MiddlewareKind::L7Request.interface()).unwrap();
    let index = instance.get_export_index(&mut store, Some(&outer), "handle").unwrap();
    let handle = instance.get_typed_func(&mut store, index).unwrap();
    (store, handle)
}
