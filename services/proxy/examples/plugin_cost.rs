//! What the proxy adds to a plugin's call and to loading it, against the same straight on wasmtime, in turns.
//!
//! `plugin_cost ROUNDS` prints a line of JSON for each case: `id`, and `wall` and `cpu`, nanoseconds of one in each round.
//! `cargo run --release -p shipote-proxy --example plugin_cost` runs it.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a measurement stops where it cannot go on")]

use std::hint::black_box;
use std::time::Instant;

use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::handlers::{BytesView, Header, L7RequestDecision, L7RequestInput};
use shipote_plugin_abi::metadata::{MiddlewareKind, PluginError};
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;
use shipote_proxy::measure::Caller;
use wasmtime::component::{Component, Linker, TypedFunc};
use wasmtime::{Engine, Store};

/// A case: its name, how often it is done a round, once done.
type Case = (&'static str, u32, Box<dyn FnMut()>);

fn main() {
    let rounds: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(9);
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
    let mut cases = cases(&engine, &code);
    let mut found: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); cases.len()];
    let count = cases.len();
    // The first round warms up; who begins changes from round to round.
    for round in 0..=rounds {
        for turn in 0..count {
            let at = (round + turn) % count;
            let (_, times, once) = &mut cases[at];
            let (cpu, wall) = (cpu(), Instant::now());
            (0..*times).for_each(|_| once());
            found[at].0.push(wall.elapsed().as_secs_f64() * 1e9 / f64::from(*times));
            found[at].1.push((self::cpu() - cpu) / f64::from(*times));
        }
    }
    for ((id, _, _), (wall, cpu)) in cases.iter().zip(found) {
        println!("{{\"id\": {id:?}, \"wall\": {wall:?}, \"cpu\": {cpu:?}}}");
    }
}

fn cases(engine: &Engine, code: &PluginCode) -> Vec<Case> {
    let caller = Caller::new(code, "l7-request").unwrap();
    let loader = Caller::new(code, "l7-request").unwrap();
    let input = request();
    let (mut store, handle) = straight(engine, code);
    let (ours, theirs) = (input.clone(), input);
    let (bytes, code, engine) = (code.code.clone(), code.clone(), engine.clone());
    vec![
        ("request", 5_000, Box::new(move || assert!(black_box(caller.request(&ours))))),
        (
            "request-straight",
            5_000,
            Box::new(move || {
                let answer = handle.call(&mut store, ("l7-request".to_owned(), theirs.clone())).unwrap();
                assert!(matches!(black_box(answer.0), Ok(L7RequestDecision::Continue)));
            }),
        ),
        ("load", 50, Box::new(move || loader.load(&code).unwrap())),
        (
            "load-straight",
            50,
            // SAFETY: the bytes were compiled above, by the same wasmtime.
            Box::new(move || drop(black_box(unsafe { Component::deserialize(&engine, &bytes) }.unwrap()))),
        ),
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

type Handle = TypedFunc<(String, L7RequestInput), (Result<L7RequestDecision, PluginError>,)>;

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

/// Processor time of this thread, nanoseconds (/proc/thread-self/schedstat, its first field).
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(f64::NAN)
}
