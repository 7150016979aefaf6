//! Canaries: another version on a share of the calls, until it fails. And fuel, by which it can fail.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use serde_json::{Value as Json, json};
use shipote_bus::proxy::PoolInfo;
use shipote_plugin_abi::fixtures::{Fixture, RESULT};
use shipote_plugin_abi::metadata::MiddlewareKind::{L4Peek, L7Request, L7Response};
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::{CanaryFailed, PluginCanary, PluginCode};
use support::plugin::{chain, compiled, patient, under};
use support::{Proxy, Upstream, ask, free_port, settings};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";

fn with(mut code: PluginCode, canary: PluginCode, share: u32) -> PluginCode {
    code.canary = Some(Box::new(PluginCanary {
        version: canary.metadata.version.clone(),
        digest: canary.digest.clone(),
        share,
        since: 1,
        rules: canary.policy.canary.clone(),
        code: Ok(canary),
    }));
    code
}

fn answering(version: &str, status: u16) -> PluginCode {
    compiled(&Fixture::answering("edge", version, status, version), &format!("sha256:{version}"))
}

/// A version whose handler runs `body`.
fn running(version: &str, body: &str, policy: Policy) -> PluginCode {
    let mut fixture = Fixture::new("edge", version, &[L7Request]);
    fixture.handlers[0].1 = body.to_owned();
    under(&fixture, &format!("sha256:{version}"), policy)
}

fn rules(port: u16) -> Json {
    chain(port, "127.0.0.1:1", &json!([{"use": "edge:l7-request"}]), "http_proxy")
}

/// One worker: its numbers follow each other.
fn proxy() -> Proxy {
    Proxy::start_with(shipote_proxy::Settings { workers: 1, ..settings() }, &json!([]))
}

fn told(proxy: &Proxy) -> Vec<CanaryFailed> {
    let mut receiver = proxy.engine.take_failed().unwrap();
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

fn pool<'a>(pools: &'a [PoolInfo], version: &str) -> &'a PoolInfo {
    pools.iter().find(|pool| pool.version == version).unwrap_or_else(|| panic!("{version}: {pools:?}"))
}

#[test]
fn a_canary_has_its_share_of_the_requests_and_no_more() {
    let (port, proxy) = (free_port(), proxy());
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), answering("1.1.0", 451), 2_500)]).unwrap();
    let count = |status: u16| (0..80).filter(|_| ask(port, GET).status == status).count();
    let canaries = count(451);
    assert!((19..=21).contains(&canaries), "{canaries} of 80 at 25 percent");
    let pools = proxy.engine.pools();
    assert_eq!((pool(&pools, "1.0.0").share, pool(&pools, "1.1.0").share), (7_500, 2_500));
    assert_eq!(pool(&pools, "1.1.0").calls as usize, canaries);
    assert!(pool(&pools, "1.1.0").p50_ns > 0 && pool(&pools, "1.1.0").p99_ns >= pool(&pools, "1.1.0").p50_ns);
    // Another share of the same trial, then its end: the version at work has all of them again.
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), answering("1.1.0", 451), 9_900)]).unwrap();
    assert!(count(451) > 75);
    proxy.apply_with(&rules(port), &[answering("1.0.0", 418)]).unwrap();
    assert_eq!(count(418), 80);
    assert_eq!(told(&proxy), []);
}

#[test]
fn one_that_traps_goes_back_by_itself_and_costs_no_request() {
    let (port, proxy) = (free_port(), proxy());
    for (version, body, policy) in [
        ("2.0.0", "unreachable", patient()),
        ("2.1.0", "(loop (br 0)) unreachable", Policy::default()),
        ("2.2.0", "(loop (br 0)) unreachable", Policy { fuel: 10_000, ..patient() }),
        // A status that no answer may have.
        ("2.3.0", &answer(99), patient()),
    ] {
        let code = with(answering("1.0.0", 418), running(version, body, policy), 5_000);
        proxy.apply_with(&rules(port), std::slice::from_ref(&code)).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(port, GET).status, 418, "{version}");
        }
        let pools = proxy.engine.pools();
        let canary = pool(&pools, version);
        assert_eq!((canary.calls, canary.share), (2, 0), "one in a hundred may fail, the second is one too many");
        assert_eq!(canary.traps + canary.timeouts + canary.out_of_fuel, 2, "{canary:?}");
        // Rules that are loaded again do not give it another chance, even at another share.
        let mut again = code;
        again.canary.as_mut().unwrap().share = 6_000;
        proxy.apply_with(&rules(port), &[again]).unwrap();
        assert_eq!(ask(port, GET).status, 418);
        assert_eq!(pool(&proxy.engine.pools(), version).calls, 2);
    }
    let told = told(&proxy);
    let reasons: Vec<&str> = told.iter().map(|failed| failed.reason.as_str()).collect();
    assert_eq!(reasons.len(), 4, "each is told once: {reasons:?}");
    for (reason, part) in reasons.iter().zip(["trapped", "took more than 10 ms", "10000 units of fuel", "status"]) {
        assert!(reason.contains("2 of 2 calls failed") && reason.contains(part), "{reason}");
    }
}

/// A body that answers with `status`.
fn answer(status: u16) -> String {
    format!(
        "(i32.store8 (i32.const {}) (i32.const 1)) (i32.store16 (i32.const {}) (i32.const {status})) i32.const {RESULT}",
        RESULT + 4,
        RESULT + 8
    )
}

#[test]
fn one_that_is_slow_goes_back_by_itself() {
    let (port, proxy) = (free_port(), proxy());
    let mut policy = patient();
    policy.canary.calls = 10;
    // Twenty million rounds: slower than the other one by far, on any machine.
    let slow = format!(
        "(i32.store (i32.const 32) (i32.const 20000000))
         (loop (i32.store (i32.const 32) (i32.sub (i32.load (i32.const 32)) (i32.const 1)))
           (br_if 0 (i32.load (i32.const 32)))) {}",
        answer(451)
    );
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), running("2.0.0", &slow, policy), 5_000)]).unwrap();
    let mut statuses: Vec<u16> = (0..40).map(|_| ask(port, GET).status).collect();
    assert!(statuses.split_off(30).iter().all(|status| *status == 418), "{statuses:?}");
    let told = told(&proxy);
    assert!(told.len() == 1 && told[0].reason.contains("95 of 100 calls took up to"), "{told:?}");
}

#[test]
fn one_that_cannot_be_had_or_does_not_fit_fails_at_once_and_the_rules_are_served() {
    let (port, proxy) = (free_port(), proxy());
    let mut none = with(answering("1.0.0", 418), answering("1.1.0", 451), 5_000);
    none.canary.as_mut().unwrap().code = Err("it is not signed".to_owned());
    proxy.apply_with(&rules(port), &[none]).unwrap();
    let mut torn = answering("1.2.0", 451);
    torn.code = vec![0; 100];
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), torn, 5_000)]).unwrap();
    // It has the export, but as another kind of handler.
    let mut other = Fixture::new("edge", "1.3.0", &[L7Response]);
    other.metadata.exports[0].name = "l7-request".to_owned();
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), compiled(&other, "sha256:1.3.0"), 5_000)]).unwrap();
    assert!((0..10).all(|_| ask(port, GET).status == 418));
    let told = told(&proxy);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].reason.contains("not signed") && told[2].reason.contains("is a l7-response"), "{told:?}");
}

#[test]
fn answers_and_connections_have_canaries_too() {
    let upstream = Upstream::echo();
    let (port, proxy) = (free_port(), proxy());
    let stamp = |version: &str| compiled(&Fixture::stamping("edge", version, "x-version", version), version);
    let mut broken = Fixture::new("edge", "3.0.0", &[L7Response]);
    broken.handlers[0].1 = "unreachable".to_owned();
    let uses = json!([{"use": "edge:l7-response"}]);
    let rules = chain(port, &upstream.address(), &uses, "http_proxy");
    proxy.apply_with(&rules, &[with(stamp("1.0.0"), stamp("2.0.0"), 5_000)]).unwrap();
    let stamped = |version: &str| (0..20).filter(|_| ask(port, GET).has("x-version", version)).count();
    assert_eq!((stamped("1.0.0"), stamped("2.0.0")), (10, 10));
    proxy.apply_with(&rules, &[with(stamp("1.0.0"), compiled(&broken, "sha256:3"), 5_000)]).unwrap();
    assert_eq!(stamped("1.0.0"), 20, "an answer that the canary broke on goes to the version at work");

    let raw = Upstream::raw_echo();
    let (port, gate) = (free_port(), |version: &str| Fixture::new("gate", version, &[L4Peek]));
    let mut broken = gate("2.0.0");
    broken.handlers[0].1 = "unreachable".to_owned();
    let code = with(compiled(&gate("1.0.0"), "sha256:4"), compiled(&broken, "sha256:5"), 5_000);
    let rules = chain(port, &raw.address(), &json!([{"use": "gate:l4-peek"}]), "tcp_forward");
    proxy.apply_with(&rules, &[code]).unwrap();
    for _ in 0..6 {
        let mut client = support::connect(port);
        std::io::Write::write_all(&mut client, b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut back = Vec::new();
        let _ = std::io::Read::read_to_end(&mut client, &mut back);
        assert!(!back.is_empty());
    }
    assert_eq!(told(&proxy).len(), 2);
}

#[test]
fn a_promoted_canary_goes_on_with_what_it_knows() {
    let (port, proxy) = (free_port(), proxy());
    let counting = || {
        let mut fixture = Fixture::new("edge", "2.0.0", &[L7Request]);
        fixture.metadata.exports[0].stateless = false;
        // Answers with 200 and the number of its calls.
        fixture.handlers[0].1 = format!(
            "(i32.store (i32.const 32) (i32.add (i32.load (i32.const 32)) (i32.const 1)))
             (i32.store8 (i32.const {}) (i32.const 1))
             (i32.store16 (i32.const {}) (i32.add (i32.const 200) (i32.load (i32.const 32)))) i32.const {RESULT}",
            RESULT + 4,
            RESULT + 8
        );
        under(&fixture, "sha256:2", Policy { instances: 1, ..patient() })
    };
    proxy.apply_with(&rules(port), &[with(answering("1.0.0", 418), counting(), 5_000)]).unwrap();
    let canary = (0..10).map(|_| ask(port, GET).status).filter(|status| *status != 418).max().unwrap();
    assert_eq!(canary, 205);
    proxy.apply_with(&rules(port), &[counting()]).unwrap();
    assert_eq!(ask(port, GET).status, 206);
}

#[test]
fn fuel_is_counted_and_runs_out() {
    let (port, proxy) = (free_port(), proxy());
    let policy = |fuel| Policy { fuel, ..patient() };
    proxy.apply_with(&rules(port), &[running("1.0.0", &answer(418), policy(5_000))]).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(port, GET).status, 418, "each call has its own");
    }
    let pools = proxy.engine.pools();
    let (used, calls) = (pool(&pools, "1.0.0").fuel, pool(&pools, "1.0.0").calls);
    assert!(calls == 3 && (3..15_000).contains(&used), "{used}");
    proxy.apply_with(&rules(port), &[running("1.1.0", "(loop (br 0)) unreachable", policy(5_000))]).unwrap();
    assert_eq!([ask(port, GET).status, ask(port, GET).status], [500, 500], "the next instance runs out as well");
    let pools = proxy.engine.pools();
    let pool = pool(&pools, "1.1.0");
    assert_eq!((pool.out_of_fuel, pool.traps, pool.timeouts), (2, 0, 0));
    assert!(pool.fuel >= 9_000, "{pool:?}");
    // Code that does not count cannot be run where it has to.
    let mut plain = running("1.2.0", &answer(418), policy(0));
    plain.policy.fuel = 100;
    assert!(proxy.apply_with(&rules(port), &[plain]).is_err());
}
