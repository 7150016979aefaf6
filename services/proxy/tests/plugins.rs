//! Plugins in a chain: compiled here as the registry does it, called on real requests.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value as Json, json};
use shipote_plugin_abi::fixtures::{Fixture, LEAF, RESULT};
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_plugin_abi::policy::{Cardinality, Policy};
use shipote_proxy::{PluginCode, PluginLink};
use support::plugin::{chain, compiled, under};
use support::{Proxy, Upstream, ask, connect, free_port, read_answer};

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
fn a_plugin_lets_only_those_on_who_have_its_token() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let guard = Fixture::guarding("guard", "1.0.0", ("authorization", "Bearer open sesame"), "who are you?");
    let with = |lines: &str| ask(port, &format!("GET /x HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
    // In place, and apart from the workers as one that may fetch.
    for (digest, hosts) in [("sha256:17", vec![]), ("sha256:18", vec!["api.example".to_owned()])] {
        let mut plugin = compiled(&guard, digest);
        plugin.policy.http.allowed_hosts = hosts;
        proxy.apply_with(&rules(port, &upstream.address(), "guard", &Json::Null), &[plugin]).unwrap();
        for _ in 0..2 {
            for wrong in [
                "",
                "Authorization: Bearer open sesamE\r\n",
                "Authorization: Bearer open\r\n",
                "X: Bearer open sesame\r\n",
            ] {
                let answer = with(wrong);
                assert_eq!((answer.status, answer.text().as_str()), (401, "who are you?"), "{wrong}");
            }
            let answer = with("Accept: */*\r\nAuthorization: Bearer open sesame\r\nX-Y: z\r\n");
            assert!(answer.status == 200 && answer.text().starts_with("GET /x "), "after refusals too");
        }
    }
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
    // The second is longer than the clock of deadlines goes on without a call that begins.
    for deadline_ms in [10, 400] {
        let policy = Policy { deadline_ms, ..Policy::default() };
        let digest = format!("sha256:{deadline_ms}");
        let endless = under(&running("endless", "(loop (br 0)) unreachable"), &digest, policy);
        proxy.apply_with(&rules(port, &upstream.address(), "endless", &Json::Null), &[endless]).unwrap();
        assert_eq!(ask(port, GET).status, 500);
        let limit = format!("{deadline_ms} ms");
        let flow = support::until(|| proxy.engine.flows(1).into_iter().find(|f| f.error.contains(&limit)));
        assert!(flow.duration_us >= u64::from(deadline_ms) * 1000 - 1000, "{}", flow.duration_us);
    }
}

#[test]
fn what_cannot_be_linked_is_refused_and_the_rules_from_before_go_on() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let plugin = compiled(&Fixture::new("edge", "1.0.0", &[MiddlewareKind::L7Request]), "sha256:5");
    let good = rules(port, &upstream.address(), "edge", &Json::Null);
    proxy.apply_with(&good, std::slice::from_ref(&plugin)).unwrap();
    let mut streaming = plugin.clone();
    streaming.metadata.exports[0].needs_streaming_body = true;
    streaming.digest = "sha256:8".to_owned();
    let bytes = compiled(&Fixture::new("edge", "1.0.0", &[MiddlewareKind::L4Peek]), "sha256:7");
    let mut renamed = plugin.clone();
    renamed.metadata.exports[0].name = "other".to_owned();
    renamed.digest = "sha256:9".to_owned();
    let mut torn = plugin.clone();
    (torn.digest, torn.code) = ("sha256:6".to_owned(), vec![0; 100]);
    for (codes, reason) in [
        (vec![], "not in the registry"),
        (vec![streaming], "streaming"),
        (vec![renamed], "has no export"),
        (vec![bytes], "has no export"),
        (vec![torn], "\"all\""),
    ] {
        let error = proxy.apply_with(&good, &codes).unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    assert_eq!(ask(port, GET).status, 200);
}

#[test]
fn answers_are_changed_after_the_fetch() {
    let upstream = Upstream::echo();
    let two = support::two::TwoUpstream::start(None);
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let stamp = compiled(&Fixture::stamping("stamp", "1.0.0", "x-stamp", "yes"), "sha256:10");
    let uses = json!([{"use": "stamp:l7-response"}, {"use": "response_headers", "args": {"set": {"x-more": "1"}}}]);
    for (address, kind) in [(upstream.address(), "http_proxy"), (two.address(), "http2_proxy")] {
        let rules = chain(port, &address, &uses, kind);
        proxy.apply_with(&rules, std::slice::from_ref(&stamp)).unwrap();
        let mut client = connect(port);
        for _ in 0..3 {
            client.write_all(GET.as_bytes()).unwrap();
            let answer = read_answer(&mut client, false);
            assert_eq!(answer.status, 200);
            assert!(answer.has("x-stamp", "yes") && answer.has("x-more", "1"), "{answer:?}");
            assert!(!answer.body.is_empty());
        }
    }
    // The proxy's own answer is one as well.
    let fixed = json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")], "middleware_chain": uses,
        "terminate": {"type": "static", "status": 201, "text": "own"}}]);
    proxy.apply_with(&fixed, std::slice::from_ref(&stamp)).unwrap();
    let answer = ask(port, GET);
    assert!((answer.status, answer.text().as_str()) == (201, "own") && answer.has("x-stamp", "yes"), "{answer:?}");
    let pools = proxy.engine.pools();
    assert_eq!((pools[0].kind.as_str(), pools[0].export.as_str()), ("stateless", "l7-response"));
    assert!(pools[0].calls >= 7 && pools[0].traps == 0, "{pools:?}");
}

#[test]
fn a_plugin_that_fails_on_an_answer_is_answered_as_the_rule_says() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let mut fixture = Fixture::new("bad", "1.0.0", &[MiddlewareKind::L7Response]);
    fixture.handlers[0].1 = "unreachable".to_owned();
    let trapping = compiled(&fixture, "sha256:11");
    for (on_error, status) in [(Json::Null, 500), (json!({"response": {"status": 503}}), 503), (json!("close"), 0)] {
        let mut uses = json!([{"use": "bad:l7-response"}]);
        if !on_error.is_null() {
            uses[0]["on_error"] = on_error.clone();
        }
        let rules = chain(port, &upstream.address(), &uses, "http_proxy");
        proxy.apply_with(&rules, std::slice::from_ref(&trapping)).unwrap();
        assert_eq!(ask(port, GET).status, status, "{on_error}");
    }
    assert!(proxy.engine.pools()[0].traps > 0, "{:?}", proxy.engine.pools());
}

/// Writes an answer of the kind `continue` (0) or another.
fn decide(decision: u32) -> String {
    format!("(i32.store8 (i32.const {}) (i32.const {decision}))", RESULT + 4)
}

#[test]
fn a_stateful_plugin_keeps_what_it_knows_across_reloads() {
    let upstream = Upstream::echo();
    let (port, other) = (free_port(), free_port());
    let proxy = Proxy::start(&json!([]));
    let mut fixture = Fixture::new("count", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.metadata.exports[0].stateless = false;
    // Every third request is closed.
    fixture.handlers[0].1 = format!(
        "(i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
         (if (i32.eqz (i32.rem_u (i32.load (i32.const 16)) (i32.const 3))) (then {}) (else {}))
         i32.const {RESULT}",
        decide(2),
        decide(0),
    );
    let mut plugin = compiled(&fixture, "sha256:12");
    plugin.policy.instances = 1;
    let mut rules = rules(port, &upstream.address(), "count", &Json::Null);
    proxy.apply_with(&rules, std::slice::from_ref(&plugin)).unwrap();
    let mut statuses = vec![ask(port, GET).status, ask(port, GET).status];
    rules.as_array_mut().unwrap().push(json!({"name": "other", "listen": [format!("127.0.0.1:{other}")],
        "middleware_chain": [{"use": "count:l7-request", "args": {"k": 1}}],
        "terminate": {"type": "static", "status": 200}}));
    proxy.apply_with(&rules, std::slice::from_ref(&plugin)).unwrap();
    statuses.extend((0..4).map(|_| ask(port, GET).status));
    assert_eq!(statuses, [200, 200, 0, 200, 200, 0]);
    // Another call site, though written alike, counts by itself.
    assert_eq!([ask(other, GET).status, ask(other, GET).status, ask(other, GET).status], [200, 200, 0]);
    let pools = proxy.engine.pools();
    assert!(pools.iter().all(|p| p.kind == "stateful" && p.capacity == 1 && p.available == 1), "{pools:?}");
}

#[test]
fn a_plugin_reads_bodies_that_still_go_on_whole() {
    let upstream = Upstream::echo_body();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let mut fixture = Fixture::new("reads", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.metadata.exports[0].needs_body = true;
    // A body that begins with `b` is closed; without a body there must be an empty view.
    fixture.handlers[0].1 = format!(
        "(if (i32.eqz (local.get 8)) (then unreachable))
         (if (i32.and (i32.gt_u (local.get 10) (i32.const 0)) (i32.eq (i32.load8_u (local.get 9)) (i32.const 98)))
           (then {}) (else {})) i32.const {RESULT}",
        decide(2),
        decide(0),
    );
    let mut plugin = compiled(&fixture, "sha256:13");
    plugin.policy.limits.request_body = 1000;
    proxy.apply_with(&rules(port, &upstream.address(), "reads", &Json::Null), &[plugin]).unwrap();
    assert_eq!(ask(port, GET).status, 200);
    assert_eq!(ask(port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nbad").status, 0);
    let large = "g".repeat(300_000);
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{large}", large.len());
    let answer = ask(port, &request);
    assert!(answer.status == 200 && answer.text() == large, "{} of {}", answer.body.len(), large.len());
}

#[test]
fn connections_are_looked_at_by_their_first_bytes() {
    let upstream = Upstream::raw_echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let mut fixture = Fixture::new("gate", "1.0.0", &[MiddlewareKind::L4Peek, MiddlewareKind::L4Bytes]);
    let first = |byte: u8| format!("(i32.eq (i32.load8_u (local.get 2)) (i32.const {byte}))");
    fixture.handlers[0].1 =
        format!("(if {} (then {}) (else {})) i32.const {RESULT}", first(b'X'), decide(1), decide(0));
    fixture.handlers[1].1 =
        format!("(if {} (then {}) (else {})) i32.const {RESULT}", first(b'Y'), decide(2), decide(1));
    let plugin = compiled(&fixture, "sha256:14");
    let uses = json!([{"use": "gate:l4-peek"}, {"use": "gate:l4-bytes"}]);
    proxy.apply_with(&chain(port, &upstream.address(), &uses, "tcp_forward"), std::slice::from_ref(&plugin)).unwrap();
    for (text, passes) in [("hello", true), ("Xhello", false), ("Yhello", false)] {
        let mut client = connect(port);
        client.write_all(text.as_bytes()).unwrap();
        // The proxy may have closed it by now.
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut back = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client, &mut back);
        assert_eq!(!back.is_empty(), passes, "{text}");
    }
    support::until(|| proxy.engine.flows(5).into_iter().find(|f| f.error.contains("closed by a plugin")));
    // It has no place where HTTP is read.
    let error = proxy.apply_with(&chain(port, &upstream.address(), &uses, "http_proxy"), &[plugin]).unwrap_err();
    assert!(error.contains("l4-"), "{error}");
}

#[test]
fn a_plugin_that_may_fetch_is_called_apart() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), Proxy::start(&json!([])));
    let mut plugin = compiled(&Fixture::answering("edge", "1.0.0", 418, "apart"), "sha256:15");
    plugin.policy.http.allowed_hosts = vec!["api.example".to_owned()];
    let mut stamp = compiled(&Fixture::stamping("stamp", "1.0.0", "x-stamp", "yes"), "sha256:16");
    stamp.policy.http.allowed_hosts = vec!["api.example".to_owned()];
    let both = [plugin, stamp];
    proxy.apply_with(&rules(port, &upstream.address(), "edge", &Json::Null), &both).unwrap();
    for _ in 0..3 {
        let answer = ask(port, GET);
        assert_eq!((answer.status, answer.text().as_str()), (418, "apart"));
    }
    let uses = json!([{"use": "stamp:l7-response"}]);
    proxy.apply_with(&chain(port, &upstream.address(), &uses, "http_proxy"), &both).unwrap();
    assert!(ask(port, GET).has("x-stamp", "yes"));
}

#[test]
fn a_match_on_the_body_waits_for_all_of_it() {
    let upstream = Upstream::echo();
    let port = free_port();
    let _proxy = Proxy::start(&json!([
        {"name": "secret", "listen": [format!("127.0.0.1:{port}")], "match": {"http.body": {"contains": "secret"}},
            "max_body_bytes_request": 1000, "terminate": {"type": "static", "status": 403}},
        {"name": "rest", "listen": [format!("127.0.0.1:{port}")], "max_body_bytes_request": 1000,
            "terminate": {"type": "http_proxy", "upstream": upstream.address()}},
    ]));
    let post =
        |body: &str| ask(port, &format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(post("a secret inside").status, 403);
    let answer = post("nothing to see");
    assert!(answer.status == 200 && answer.text().ends_with("nothing to see"), "{answer:?}");
    assert_eq!(post(&"x".repeat(5000)).status, 413);
    assert_eq!(ask(port, GET).status, 200);
}

#[test]
fn a_plugin_calls_another_and_sees_its_failure_as_a_value() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let rules = rules(port, &upstream.address(), "edge", &Json::Null);
    let edge = |leaf: &Fixture, digest: &str| {
        let plugins = vec![compiled(leaf, digest)];
        let link = PluginLink { interface: LEAF.to_owned(), cardinality: Cardinality::ExactlyOne, plugins };
        PluginCode { links: vec![link], ..compiled(&Fixture::wanting("edge", "1.0.0"), "sha256:edge") }
    };
    proxy.apply_with(&rules, &[edge(&Fixture::offering("leaf", "1.0.0", 18), "sha256:1")]).unwrap();
    assert_eq!(ask(port, GET).status, 418);
    // Another version of the one that is called takes over.
    proxy.apply_with(&rules, &[edge(&Fixture::offering("leaf", "1.1.0", 9), "sha256:2")]).unwrap();
    assert_eq!(ask(port, GET).status, 409);
    // The first case of call-error: it trapped. The caller lives on and says so.
    proxy.apply_with(&rules, &[edge(&Fixture::offering_that("leaf", "1.2.0", "unreachable"), "sha256:3")]).unwrap();
    assert_eq!(ask(port, GET).status, 500);
    assert_eq!(ask(port, GET).status, 500);
    // One that implements a later version of the interface is called by its name in the earlier one.
    let mut later = Fixture::offering("leaf", "2.0.0", 18);
    for text in [&mut later.world, &mut later.functions, &mut later.packages[0]] {
        *text = text.replace("@1.0.0", "@1.3.0");
    }
    proxy.apply_with(&rules, &[edge(&later, "sha256:5")]).unwrap();
    assert_eq!(ask(port, GET).status, 418);
    proxy.apply_with(&rules, &[edge(&Fixture::offering_that("leaf", "1.2.0", "unreachable"), "sha256:3")]).unwrap();
    // What does not fit is refused, and the one before goes on.
    let mut none = edge(&Fixture::offering("leaf", "1.0.0", 0), "sha256:4");
    none.links[0].plugins.clear();
    let refused = proxy.apply_with(&rules, &[none]).unwrap_err();
    assert!(refused.contains("exactly one"), "{refused}");
    assert_eq!(ask(port, GET).status, 500);
}
