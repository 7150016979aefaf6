//! Canaries from the command line to the request: a share of the calls, the way back by itself, and what outlives a kill.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind::L7Request;

use crate::plugins::{ask, component, policy, route, until};
use crate::support::{Appliance, eventually, free_port, text};

fn add(shipote: &Appliance, version: &str, status: u16) {
    let file = component(shipote, &Fixture::answering("edge", version, status, version));
    shipote.ok(&["plugin", "add", "--no-activate", &file]);
}

/// A version whose handler runs `body`.
fn add_running(shipote: &Appliance, version: &str, body: &str) {
    let mut fixture = Fixture::new("edge", version, &[L7Request]);
    fixture.handlers[0].1 = body.to_owned();
    shipote.ok(&["plugin", "add", "--no-activate", &component(shipote, &fixture)]);
}

/// What `plugin show` says of the canary.
fn canary(shipote: &Appliance) -> Value {
    shipote.json(&["plugin", "show", "--json", "edge"])["canary"].clone()
}

fn records(shipote: &Appliance, action: &str) -> Vec<Value> {
    let state = shipote.path("state");
    let trail = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--json"]);
    trail.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|r| r["action"] == action).collect()
}

/// Whether both versions answer, each some of the requests.
fn both(port: u16, statuses: [u16; 2]) -> bool {
    let seen: Vec<u16> = (0..40).map(|_| ask(port, "/", "").0).collect();
    assert!(seen.iter().all(|status| statuses.contains(status)), "{seen:?}");
    statuses.iter().all(|status| seen.contains(status))
}

#[test]
fn a_canary_gets_a_share_is_promoted_or_aborted_and_outlives_a_kill() {
    let shipote = Appliance::start();
    let port = free_port();
    add(&shipote, "1.0.0", 418);
    add(&shipote, "1.1.0", 451);
    route(&shipote, port, "edge:l7-request", &json!({}));

    let words = ["plugin", "canary", "edge@1.1.0", "--share", "40%"];
    let plan = shipote.json(&[&words[..], &["--dry-run", "--json"]].concat());
    assert_eq!((plan["from"].as_str(), plan["to"].as_str()), (Some("1.0.0"), Some("1.0.0")), "{plan}");
    assert_eq!((plan["canary"].as_str(), plan["share"].as_u64()), (Some("1.1.0"), Some(4_000)), "{plan}");
    assert!(canary(&shipote).is_null() && (0..20).all(|_| ask(port, "/", "").0 == 418));

    shipote.ok(&words);
    eventually("both versions answer", || both(port, [418, 451]));
    assert!(shipote.ok(&["plugin", "ls"]).contains("canary 40 %"));
    let stats = shipote.json(&["plugin", "stats", "edge", "--json"]);
    let stats = stats["plugins"].as_array().unwrap();
    let shares: Vec<f64> = stats.iter().filter_map(|pool| pool["share"].as_f64()).collect();
    assert!(shares == [60.0, 40.0] && stats.iter().all(|pool| pool["calls"].as_u64() > Some(0)), "{stats:?}");

    // What is decided is on disk: either service may go at any moment.
    for service in ["plugins", "proxy"] {
        let before = shipote.service(service);
        kill_process(before, Signal::KILL).unwrap();
        eventually("it is back", || {
            shipote.run(&["health", "--json"]).status.success() && shipote.service(service) != before
        });
        assert_eq!(canary(&shipote)["version"], "1.1.0");
    }
    eventually("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    eventually("both versions answer", || both(port, [418, 451]));

    shipote.ok(&["plugin", "abort", "edge"]);
    eventually("the one at work answers alone", || (0..20).all(|_| ask(port, "/", "").0 == 418));
    shipote.ok(&["plugin", "canary", "edge@^1.1", "--share", "0.5%"]);
    shipote.ok(&["plugin", "promote", "edge"]);
    until(port, 451);
    assert!(canary(&shipote).is_null() && (0..20).all(|_| ask(port, "/", "").0 == 451));
    shipote.ok(&["plugin", "rollback", "edge"]);
    until(port, 418);

    let begun = records(&shipote, "plugin.canary");
    assert_eq!(begun.len(), 2, "a dry run is no change: {begun:?}");
    assert!(begun.iter().all(|r| r["object"] == "edge@1.1.0" && r["result"] == "ok"), "{begun:?}");
    let ended = records(&shipote, "plugin.canary-end");
    assert!(ended.len() == 1 && ended[0]["object"] == "edge@1.1.0", "{ended:?}");
}

#[test]
fn one_that_traps_goes_back_by_itself_without_a_failed_request() {
    let shipote = Appliance::start_with(|folder| policy(folder, "[plugins.edge.canary]\ncalls = 10\n"));
    let port = free_port();
    add(&shipote, "1.0.0", 418);
    add_running(&shipote, "2.0.0", "unreachable");
    route(&shipote, port, "edge:l7-request", &json!({}));
    let words = ["events", "--service", "plugins", "--json"];
    let mut events = shipote.shipote(&words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("listening"));
    shipote.ok(&["plugin", "canary", "edge@2.0.0", "--share", "50%"]);
    eventually("it has gone back", || {
        assert_eq!(ask(port, "/", "").0, 418);
        canary(&shipote).is_null()
    });
    let ended = records(&shipote, "plugin.canary-end");
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert!(ended[0].to_string().contains("1 of 1 calls failed"), "{ended:?}");
    assert!(shipote.log().contains("the canary edge 2.0.0 goes back"), "{}", shipote.log());
    // It is still there, and may be tried again.
    assert_eq!(shipote.json(&["plugin", "show", "--json", "edge@2.0.0"])["active"], false);
    shipote.ok(&["plugin", "canary", "edge@2.0.0", "--share", "50%"]);
    eventually("it has gone back again", || {
        assert_eq!(ask(port, "/", "").0, 418);
        records(&shipote, "plugin.canary-end").len() == 2
    });
    let told: Vec<Value> = lines
        .map(|line| serde_json::from_str::<Value>(&line).unwrap()["detail"].clone())
        .filter(|detail| detail["signal"] == "CanaryChanged")
        .take(2)
        .collect();
    events.kill().unwrap();
    events.wait().unwrap();
    assert_eq!(told[0]["arguments"], json!(["edge", "2.0.0", 5_000, ""]));
    let why = told[1]["arguments"][3].as_str().unwrap();
    assert!(told[1]["arguments"][2] == 0 && why.contains("1 of 1 calls failed") && why.contains("trapped"), "{told:?}");
}

#[test]
fn canaries_that_make_no_sense_are_refused_with_the_way_out() {
    let shipote = Appliance::start();
    add(&shipote, "1.0.0", 418);
    add(&shipote, "1.1.0", 451);
    shipote.ok(&["plugin", "add", &component(&shipote, &Fixture::offering("leaf", "1.0.0", 1))]);
    shipote.ok(&["plugin", "add", "--no-activate", &component(&shipote, &Fixture::offering("leaf", "1.1.0", 1))]);
    for (words, status, reason) in [
        (&["canary", "edge@1.0.0", "--share", "5%"][..], 1, "at work already"),
        (&["canary", "edge@1.1.0", "--share", "5%", "--dry-run", "--json"], 0, ""),
        (&["canary", "edge@1.0.0", "--share", "5%", "--dry-run"], 1, "at work already"),
        (&["canary", "edge@9.0.0", "--share", "5%"], 1, "plugin ls"),
        (&["canary", "leaf@1.1.0", "--share", "5%"], 1, "no export that rules could call"),
        (&["canary", "edge@1.1.0", "--share", "100%"], 2, "less than 100 %"),
        (&["canary", "edge@1.1.0", "--share", "some"], 2, "percentage"),
        (&["canary", "edge@1.1.0"], 2, "--share"),
        (&["promote", "edge"], 1, "it has none"),
        (&["abort", "edge"], 1, "it has none"),
        (&["promote", "edge", "--dry-run"], 1, "it has none"),
    ] {
        let words: Vec<&str> = std::iter::once("plugin").chain(words.iter().copied()).collect();
        let output = shipote.run(&words);
        let error = text(&output.stderr);
        assert!(output.status.code() == Some(status) && error.contains(reason), "{words:?}: {error}");
    }
    shipote.ok(&["plugin", "canary", "edge@1.1.0", "--share", "5%"]);
    let refused = shipote.run(&["plugin", "rm", "edge@1.1.0"]);
    assert!(text(&refused.stderr).contains("plugin abort edge"), "{}", text(&refused.stderr));
    shipote.ok(&["plugin", "rm", "--force", "edge@1.1.0"]);
    assert!(canary(&shipote).is_null());
}
