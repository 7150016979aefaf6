//! The known defects of the original (issue 5), each by its name with what happens here instead.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value as Json, json};
use shipote_plugin_abi::fixtures::{Fixture, RESULT};
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;
use support::plugin::{chain, compiled, under};
use support::two::{Raw, frame, get};
use support::{Proxy, Upstream, ask, connect, free_port, settings, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A plugin that runs `body` for each request.
fn running(body: &str) -> Fixture {
    let mut fixture = Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.handlers[0].1 = body.to_owned();
    fixture
}

/// A proxy with this plugin in the chain of its one rule, in front of an echo.
fn with(plugin: PluginCode, export: &str, on_error: &Json) -> (Proxy, Upstream, u16) {
    let (proxy, upstream, port) = (Proxy::start(&json!([])), Upstream::echo(), free_port());
    let mut entry = json!({"use": format!("edge:{export}")});
    if !on_error.is_null() {
        entry["on_error"] = on_error.clone();
    }
    proxy.apply_with(&chain(port, &upstream.address(), &json!([entry]), "http_proxy"), &[plugin]).unwrap();
    (proxy, upstream, port)
}

#[test]
fn components_that_import_the_host_interface_are_refused() {
    let mut fixture = running(&format!("(drop (call $now)) i32.const {RESULT}"));
    fixture.imports = r#"(import "vane:host/host@0.1.0" "now-unix-ms" (func $now (result i64)))"#.to_owned();
    let (_proxy, _upstream, port) = with(compiled(&fixture, "sha256:1"), "l7-request", &Json::Null);
    assert_eq!(ask(port, GET).status, 200, "it is taken, and its calls are answered");
}

#[test]
fn on_error_is_parsed_and_ignored() {
    for (on_error, status) in [(json!({"response": {"status": 503}}), 503), (json!("close"), 0)] {
        let (_proxy, upstream, port) = with(compiled(&running("unreachable"), "sha256:2"), "l7-request", &on_error);
        assert_eq!(ask(port, GET).status, status, "it is honoured: {on_error}");
        assert_eq!(upstream.accepted.load(Relaxed), 0);
    }
}

#[test]
fn response_plugins_never_compile() {
    let stamp = Fixture::stamping("edge", "1.0.0", "x-stamp", "yes");
    let (_proxy, _upstream, port) = with(compiled(&stamp, "sha256:3"), "l7-response", &Json::Null);
    let answer = ask(port, GET);
    assert!(answer.status == 200 && answer.has("x-stamp", "yes"), "they run after the fetch: {answer:?}");
}

#[test]
fn stateful_plugins_answer_500() {
    let mut fixture = Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.metadata.exports[0].stateless = false;
    let (proxy, _upstream, port) = with(compiled(&fixture, "sha256:4"), "l7-request", &Json::Null);
    assert!((0..5).all(|_| ask(port, GET).status == 200), "they have a pool for each place");
    assert_eq!(proxy.engine.pools()[0].kind, "stateful");
}

#[test]
fn an_endless_loop_runs_300_ms_instead_of_10() {
    let endless = under(&running("(loop (br 0)) unreachable"), "sha256:5", Policy::default());
    let (proxy, _upstream, port) = with(endless, "l7-request", &Json::Null);
    assert_eq!(ask(port, GET).status, 500);
    let flow = until(|| proxy.engine.flows(10).into_iter().find(|f| f.status == 500));
    assert!(flow.error.contains("10 ms"), "its limit is what it was stopped by: {}", flow.error);
}

#[test]
fn an_http2_client_to_an_http1_upstream_answers_500() {
    let (upstream, port) = (Upstream::echo(), free_port());
    let _proxy = Proxy::start(&chain(port, &upstream.address(), &json!([]), "http_proxy"));
    let mut raw = Raw::connect(port);
    raw.send(&frame(1, 5, 1, &get("/")));
    let head = raw.outcome().unwrap();
    assert_eq!((head.kind, head.payload[0]), (1, 0x88), "HEADERS that begin with the indexed :status 200");
    assert!(upstream.seen().starts_with("GET / HTTP/1.1\r\n"), "{}", upstream.seen());
}

#[test]
fn limits_are_constants() {
    let (upstream, port) = (Upstream::echo(), free_port());
    let settings = shipote_proxy::Settings { head_bytes: 1024, connections_per_address: 1, ..settings() };
    let _proxy = Proxy::start_with(settings, &chain(port, &upstream.address(), &json!([]), "http_proxy"));
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(2000));
    assert_eq!(ask(port, &long).status, 431);
    let mut held = Vec::new();
    until(|| {
        let mut next = connect(port);
        let _ = next.write_all(GET.as_bytes());
        let refused = !matches!(next.read(&mut [0]), Ok(1));
        held.push(next);
        refused.then_some(())
    });
    assert!(held.len() <= 2, "one at once from an address: {}", held.len());
}

#[test]
fn there_is_one_upstream_a_rule() {
    let all = [Upstream::moody(Arc::default(), "one"), Upstream::moody(Arc::default(), "two")];
    let (port, addresses) = (free_port(), all.each_ref().map(Upstream::address));
    let _proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "http_proxy", "upstreams": addresses}}]));
    let answers: BTreeSet<String> = (0..6).map(|_| ask(port, GET).text()).collect();
    assert_eq!(answers.len(), 2, "{answers:?}");
}

#[test]
fn there_are_no_health_checks() {
    let ill = Arc::new(AtomicBool::new(true));
    let (bad, good) = (Upstream::moody(Arc::clone(&ill), "bad"), Upstream::moody(Arc::default(), "good"));
    let port = free_port();
    let proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")], "terminate":
        {"type": "http_proxy", "upstreams": [bad.address(), good.address()],
            "health_check": {"path": "/", "interval": "20ms", "healthy": 1, "unhealthy": 1}}}]));
    until(|| proxy.engine.upstreams().iter().any(|u| u.address == bad.address() && u.down).then_some(()));
    assert!((0..4).all(|_| ask(port, GET).text() == "good"));
    ill.store(false, Relaxed);
    until(|| (ask(port, GET).text() == "bad").then_some(()));
}

#[test]
fn there_is_no_proxy_protocol() {
    let (upstream, port) = (Upstream::raw_echo(), free_port());
    let _proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")],
        "accept_proxy_protocol": ["127.0.0.0/8"],
        "terminate": {"type": "tcp_forward", "upstream": upstream.address(), "send_proxy_protocol": "v1"}}]));
    let mut client = connect(port);
    client.write_all(b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    client.read_to_string(&mut back).unwrap();
    assert_eq!(back, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello", "taken in, and passed on");
}
