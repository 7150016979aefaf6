//! What plugins keep and count in the proxy, and what they may import beside the ABI.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use serde_json::json;
use shipote_plugin_abi::fixtures::{Fixture, RESULT};
use shipote_plugin_abi::metadata::MiddlewareKind;
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;
use support::plugin::{chain, patient, under};
use support::{Proxy, Upstream, ask, free_port};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

/// Answers with the status that is on top of the stack after `body`.
fn answering(name: &str, version: &str, body: &str) -> Fixture {
    let mut fixture = Fixture::new(name, version, &[MiddlewareKind::L7Request]);
    fixture.handlers[0].1 = format!(
        "(i32.store8 (i32.const {}) (i32.const 1)) (i32.store16 (i32.const {}) {body}) i32.const {RESULT}",
        RESULT + 4,
        RESULT + 8,
    );
    fixture
}

/// Adds 1 to what it keeps under `n`; answers with 200 and the sum, or with 400 and the error's number.
fn counting(version: &str, state_bytes: u64) -> PluginCode {
    let body = "(block (result i32)
        (call $add (i32.const 900) (i32.const 1) (i64.const 1) (i32.const 512))
        (if (result i32) (i32.load8_u (i32.const 512))
          (then (i32.add (i32.const 400) (i32.load8_u (i32.const 520))))
          (else (i32.add (i32.const 200) (i32.wrap_i64 (i64.load (i32.const 520)))))))";
    let mut fixture = answering("count", version, body);
    fixture.imports = "(import \"shipote:state/store@0.1.0\" \"add\" (func $add (param i32 i32 i64 i32)))".to_owned();
    fixture.world = "import shipote:state/store@0.1.0;".to_owned();
    // The key: one byte that is text.
    fixture.handlers[0].1.insert_str(0, "(i32.store8 (i32.const 900) (i32.const 110)) ");
    under(&fixture, &format!("sha256:{version}"), Policy { state_bytes, ..patient() })
}

#[test]
fn values_outlive_instances_reloads_and_versions_and_the_policy_bounds_them() {
    let upstream = Upstream::echo();
    let (port, other) = (free_port(), free_port());
    let proxy = Proxy::start(&json!([]));
    let uses = json!([{"use": "count:l7-request"}]);
    let mut rules = chain(port, &upstream.address(), &uses, "http_proxy");
    let apply = |rules: &serde_json::Value, plugin: PluginCode| proxy.apply_with(rules, &[plugin]).unwrap();
    apply(&rules, counting("1.0.0", 1000));
    assert_eq!([ask(port, GET).status, ask(port, GET).status], [201, 202]);
    // Another version, and another place that calls it.
    let mut second = chain(other, &upstream.address(), &uses, "http_proxy");
    second[0]["name"] = json!("other");
    rules.as_array_mut().unwrap().push(second[0].clone());
    apply(&rules, counting("1.1.0", 1000));
    assert_eq!([ask(port, GET).status, ask(other, GET).status], [203, 204]);
    let text = shipote_proxy::metrics::render(&proxy.engine);
    assert!(text.contains("shipote_proxy_plugin_state_bytes{plugin=\"count\"} 73\n"), "{text}");
    // What is there may be changed under a policy that gives less; nothing may come to it.
    apply(&rules, counting("1.2.0", 1));
    assert_eq!(ask(port, GET).status, 205);
    // Gone with the last rule that used it, and then there is no room to begin with: `full` is the second error.
    proxy.apply_with(&json!([]), &[]).unwrap();
    apply(&rules, counting("1.2.0", 1));
    assert_eq!(ask(port, GET).status, 401);
}

#[test]
fn workers_count_together() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let uses = json!([{"use": "count:l7-request"}]);
    let rules = chain(port, &upstream.address(), &uses, "http_proxy");
    proxy.apply_with(&rules, &[counting("1.0.0", 1000)]).unwrap();
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let askers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| (0..10).map(|_| ask(port, GET).status).collect::<Vec<u16>>())).collect();
        askers.into_iter().flat_map(|asker| asker.join().unwrap_or_else(|_| Vec::new())).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, (201..=280).collect::<Vec<u16>>());
}

#[test]
fn what_plugins_measure_and_how_they_fare_is_among_the_metrics() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let mut fixture = Fixture::new("meter", "1.0.0", &[MiddlewareKind::L7Request]);
    let (name, bad) = (fixture.text("seen_total"), fixture.text("no label"));
    let (key, value) = (fixture.text("path"), fixture.text("/\"x\""));
    let mut label = |key: u32, length: u32| {
        let words = [key, length, value, 4];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        fixture.bytes(&bytes, 4)
    };
    let (good, odd) = (label(key, 4), label(bad, 8));
    fixture.imports = "(import \"vane:host/host@0.1.0\" \"metric-counter\" (func $count (param i32 i32 i64 i32 i32)))
        (import \"vane:host/host@0.1.0\" \"metric-gauge\" (func $gauge (param i32 i32 i64 i32 i32)))"
        .to_owned();
    fixture.handlers[0].1 = format!(
        "(call $count (i32.const {name}) (i32.const 10) (i64.const 2) (i32.const {good}) (i32.const 1))
         (call $count (i32.const {name}) (i32.const 10) (i64.const 2) (i32.const {odd}) (i32.const 1))
         (call $gauge (i32.const {name}) (i32.const 4) (i64.const -7) (i32.const 0) (i32.const 0)) i32.const {RESULT}"
    );
    let uses = json!([{"use": "meter:l7-request"}, {"use": "meter:l7-request", "args": {"again": true}}]);
    let plugin = under(&fixture, "sha256:1", patient());
    proxy.apply_with(&chain(port, &upstream.address(), &uses, "http_proxy"), &[plugin]).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(port, GET).status, 200);
    }
    let text = shipote_proxy::metrics::render(&proxy.engine);
    let of = "plugin=\"meter\",version=\"1.0.0\",export=\"l7-request\"";
    for line in [
        "# TYPE shipote_plugin_counter_seen counter",
        "shipote_plugin_counter_seen_total{plugin=\"meter\",path=\"/\\\"x\\\"\"} 12",
        "shipote_plugin_gauge_seen{plugin=\"meter\"} -7",
        "shipote_proxy_plugin_series_dropped_total{plugin=\"meter\"} 6",
        &format!("shipote_proxy_plugin_calls_total{{{of}}} 6"),
        &format!("shipote_proxy_plugin_traps_total{{{of}}} 0"),
    ] {
        assert!(text.lines().any(|known| known == line), "{line}\n{text}");
    }
    assert!(text.contains(&format!("shipote_proxy_plugin_call_seconds{{{of},quantile=\"0.99\"}} ")), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn one_that_talks_without_end_is_cut_short_and_counted() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let mut fixture = Fixture::new("talker", "1.0.0", &[MiddlewareKind::L7Request]);
    let text = fixture.text("again");
    fixture.imports = "(import \"vane:host/host@0.1.0\" \"log\" (func $log (param i32 i32 i32 i32 i32)))".to_owned();
    fixture.handlers[0].1 = format!(
        "(local $n i32) (loop $more
           (call $log (i32.const 2) (i32.const {text}) (i32.const 5) (i32.const 0) (i32.const 0))
           (br_if $more (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1000))))
         i32.const {RESULT}"
    );
    let uses = json!([{"use": "talker:l7-request"}]);
    let plugin = under(&fixture, "sha256:1", patient());
    proxy.apply_with(&chain(port, &upstream.address(), &uses, "http_proxy"), &[plugin]).unwrap();
    assert_eq!(ask(port, GET).status, 200);
    let text = shipote_proxy::metrics::render(&proxy.engine);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("shipote_proxy_plugin_messages_dropped_total{plugin=\"talker\"} "));
    let dropped: u64 = line.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    // A hundred a second are heard, and a busy machine may take some seconds for a thousand.
    assert!((1..=900).contains(&dropped), "{dropped}");
}

#[test]
fn one_that_allocates_without_end_has_what_its_policy_gives_and_ends() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let mut fixture = Fixture::new("greedy", "1.0.0", &[MiddlewareKind::L7Request]);
    fixture.pages = (2, 65_536);
    // Fails where it got more than its 4 MiB, and lets the request on where it did not.
    fixture.handlers[0].1 = format!(
        "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
         (if (i32.ne (memory.size) (i32.const 64)) (then unreachable)) i32.const {RESULT}"
    );
    let policy = Policy { memory_bytes: 4 << 20, ..patient() };
    let uses = json!([{"use": "greedy:l7-request"}]);
    let plugin = under(&fixture, "sha256:1", policy);
    proxy.apply_with(&chain(port, &upstream.address(), &uses, "http_proxy"), &[plugin]).unwrap();
    assert_eq!([ask(port, GET).status, ask(port, GET).status], [200, 200]);
}

#[test]
fn a_stub_that_the_policy_names_is_linked_and_traps_when_it_is_called() {
    let upstream = Upstream::echo();
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let policy = Policy { wasi_stubs: vec!["wasi:cli/fake@0.2.0".to_owned()], ..patient() };
    let uses = json!([{"use": "stub:l7-request"}]);
    let rules = chain(port, &upstream.address(), &uses, "http_proxy");
    for (condition, status) in [("(i32.const 0)", 200), ("(i32.const 1)", 500)] {
        let mut fixture = Fixture::new("stub", "1.0.0", &[MiddlewareKind::L7Request]);
        fixture.imports = "(import \"wasi:cli/fake@0.2.0\" \"now\" (func $now))".to_owned();
        fixture.world = "import wasi:cli/fake@0.2.0;".to_owned();
        fixture.handlers[0].1 = format!("(if {condition} (then (call $now))) i32.const {RESULT}");
        let digest = format!("sha256:{status}");
        proxy.apply_with(&rules, &[under(&fixture, &digest, policy.clone())]).unwrap();
        assert_eq!(ask(port, GET).status, status);
        // The registry refuses it without the policy; should it come all the same, it is not linked.
        let refused = proxy.apply_with(&rules, &[under(&fixture, "sha256:other", Policy::default())]).unwrap_err();
        assert!(refused.contains("wasi:cli/fake"), "{refused}");
    }
}
