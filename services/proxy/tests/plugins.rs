//! Plugins in a chain: compiled here as the registry does it, called on real requests.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value as Json, json};
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;
use support::{Proxy, Upstream, ask, connect, free_port, read_answer};

/// What the registry hands over for a component.
fn compiled(fixture: &Fixture, digest: &str) -> PluginCode {
    let engine = wasmtime::Engine::new(&shipote_plugin_abi::engine::config()).unwrap();
    PluginCode {
        name: fixture.metadata.name.clone(),
        digest: digest.to_owned(),
        metadata: fixture.metadata.clone(),
        policy: Policy::default(),
        code: engine.precompile_component(&fixture.component()).unwrap(),
    }
}

/// A plugin whose handler runs `body`.
fn running(name: &str, body: &str) -> Fixture {
    let mut fixture = Fixture::new(name, "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.handlers[0].1 = body.to_owned();
    fixture
}

fn rules(port: u16, upstream: &str, plugin: &str, on_error: &Json) -> Json {
    let mut entry = json!({"use": format!("{plugin}:l7-request"), "args": {"k": 1}});
    if !on_error.is_null() {
        entry["on_error"] = on_error.clone();
    }
    json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")], "middleware_chain": [entry],
        "terminate": {"type": "http_proxy", "upstream": upstream}}])
}

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_plugin_lets_requests_on_or_answers_them() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let go_on = Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]);
    let answers = Fixture::answering("edge", "1.1.0", 418, "short and stout");
    proxy.apply_with(&rules(port, &upstream.address(), "edge", &Json::Null), &[compiled(&go_on, "sha256:1")]).unwrap();
    assert!(ask(port, GET).text().starts_with("GET /x "));
    // Another version takes over between two requests of one connection.
    let mut client = connect(port);
    client.write_all(GET.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut client, false).status, 200);
    proxy
        .apply_with(&rules(port, &upstream.address(), "edge", &Json::Null), &[compiled(&answers, "sha256:2")])
        .unwrap();
    client.write_all(GET.as_bytes()).unwrap();
    let answer = read_answer(&mut client, false);
    assert_eq!((answer.status, answer.text().as_str()), (418, "short and stout"));
}

#[test]
fn what_fails_is_answered_as_the_rule_says() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let trapping = compiled(&running("bad", "unreachable"), "sha256:3");
    for (on_error, status) in [(Json::Null, 500), (json!({"response": {"status": 503}}), 503), (json!("close"), 0)] {
        let rules = rules(port, &upstream.address(), "bad", &on_error);
        proxy.apply_with(&rules, std::slice::from_ref(&trapping)).unwrap();
        // The instance that trapped is replaced: the second request is answered in the same way.
        for _ in 0..2 {
            assert_eq!(ask(port, GET).status, status, "{on_error}");
        }
    }
    assert_eq!(upstream.accepted.load(Relaxed), 0);
    let flow = support::until(|| proxy.engine.flows(10).into_iter().find(|f| f.status == 503));
    assert!(flow.error.contains("bad:l7-request"), "{}", flow.error);
}

#[test]
fn an_endless_loop_is_stopped_and_the_worker_goes_on() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let endless = compiled(&running("endless", "(loop (br 0)) unreachable"), "sha256:4");
    proxy.apply_with(&rules(port, &upstream.address(), "endless", &Json::Null), &[endless]).unwrap();
    assert_eq!(ask(port, GET).status, 500);
    let flow = support::until(|| proxy.engine.flows(10).into_iter().find(|f| f.status == 500));
    assert!(flow.error.contains("10 ms"), "{}", flow.error);
    assert!(flow.duration_us >= 9_000, "{}", flow.duration_us);
}

#[test]
fn what_cannot_be_linked_is_refused_and_the_rules_from_before_go_on() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let plugin = compiled(&Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]), "sha256:5");
    let good = rules(port, &upstream.address(), "edge", &Json::Null);
    proxy.apply_with(&good, std::slice::from_ref(&plugin)).unwrap();
    let mut stateful = plugin.clone();
    stateful.metadata.exports[0].stateless = false;
    let mut renamed = plugin.clone();
    renamed.metadata.exports[0].name = "other".to_owned();
    let mut torn = plugin.clone();
    (torn.digest, torn.code) = ("sha256:6".to_owned(), vec![0; 100]);
    for (codes, reason) in [
        (vec![], "not in the registry"),
        (vec![stateful], "stateful"),
        (vec![renamed], "has no export"),
        (vec![torn], "\"all\""),
    ] {
        let error = proxy.apply_with(&good, &codes).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    assert_eq!(ask(port, GET).status, 200);
}
