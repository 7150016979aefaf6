//! `shipote events` and `shipote doctor`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::Appliance;

#[test]
fn events_tell_what_comes_changes_and_goes() {
    let appliance = Appliance::start();
    let mut following = appliance.shipote(&["events", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut all = Vec::new();
    let mut next = || {
        all.push(serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap());
        all.last().unwrap().clone()
    };
    assert_eq!(next()["event"], "listening");

    assert!(appliance.shipote(&["workspace", "create", "seen"]).status().unwrap().success());
    let added = loop {
        let event = next();
        if event["event"] == "added" {
            break event;
        }
    };
    assert_eq!(added["service"], "workspaces");
    assert_eq!(added["detail"]["Name"], "seen", "{added}");

    // all that has become of an object is told at once
    let run = ["run", "-w", "seen", "--", "sh", "-c", "exit 3"];
    assert_eq!(appliance.shipote(&run).status().unwrap().code(), Some(3));
    let changed = loop {
        let event = next();
        if event["event"] == "changed" && event["object"].as_str().unwrap().contains("/command/") {
            break event;
        }
    };
    let told = &changed["detail"];
    let how = (&told["State"], &told["ExitStatus"], &told["Reason"]);
    assert_eq!(how, (&"ended".into(), &3.into(), &"exited".into()), "{changed}");
    assert!(told["Pid"].is_i64(), "{changed}");

    assert!(appliance.shipote(&["workspace", "stop", "seen"]).status().unwrap().success());
    let removed = loop {
        let event = next();
        if event["event"] == "removed" && event["object"] == added["object"] {
            break event;
        }
    };
    assert!(removed["time"].as_str().unwrap().contains('T'), "{removed}");

    // a service that dies and one that comes are told, too
    rustix::process::kill_process(appliance.service("workspaces"), rustix::process::Signal::KILL).unwrap();
    for wanted in ["stopped", "started"] {
        while next()["event"] != wanted {}
    }
    let once = all.iter().filter(|event| event["event"] == "added" && event["object"] == added["object"]).count();
    assert_eq!(once, 1, "each thing is told once, by whom it is: {all:?}");
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn events_leave_after_as_many_as_were_asked_for() {
    let appliance = Appliance::start();
    let mut following = appliance.shipote(&["events", "--json", "-n", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("listening"));
    assert!(appliance.shipote(&["run", "--", "true"]).status().unwrap().success());
    assert_eq!(lines.map_while(Result::ok).count(), 1);
    assert!(following.wait().unwrap().success());
}

#[test]
fn doctor_looks_at_the_host_and_every_service() {
    let appliance = Appliance::start();
    let output = appliance.shipote(&["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let state = |subject: &str| {
        let all = report["findings"].as_array().unwrap();
        all.iter().find(|f| f["subject"] == subject).unwrap_or_else(|| panic!("{subject}: {report}"))["state"].clone()
    };
    for service in ["workspaces", "machines", "proxy", "plugins"] {
        assert_ne!(state(service), "failed", "{report}");
    }
    assert_ne!(state("kernel"), "failed", "{report}");
    // of what this appliance was told, not of where one would be by default
    let found = |report: &Value, folder: &Path| {
        let all = report["findings"].as_array().unwrap();
        all.iter().any(|f| f["subject"] == "disk" && f["found"].as_str().unwrap().ends_with(folder.to_str().unwrap()))
    };
    assert!(found(&report, &appliance.path("state")), "{report}");
    let named = appliance.run(&["doctor", "--json", "--state", "/no/such"]);
    assert!(found(&serde_json::from_slice(&named.stdout).unwrap(), Path::new("/no/such")));
    appliance.ok(&["run", "--", "true"]);
    if !Path::new("/run/systemd/journal/socket").exists() {
        assert!(appliance.ok(&["audit", "--action", "command.run"]).contains("true"), "the folder is found");
    }
    assert_eq!(output.status.success(), report["state"] != "failed");
    for finding in report["findings"].as_array().unwrap() {
        assert!(finding["state"] == "ok" || finding["remedy"] != "", "{finding}");
    }
}

#[test]
fn doctor_does_not_miss_what_was_left_out() {
    let appliance = Appliance::start_only("plugins");
    let output = appliance.shipote(&["doctor", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    for service in ["workspaces", "machines", "proxy"] {
        let finding = findings.iter().find(|f| f["subject"] == service).unwrap();
        assert_eq!(finding["state"], "ok", "{finding}");
        assert_eq!(finding["found"], "left out: this appliance was told to run others");
    }
    let plugins = findings.iter().find(|f| f["subject"] == "plugins").unwrap();
    assert!(plugins["found"].as_str().unwrap().contains("pid"), "the one that runs is asked: {plugins}");
    assert!(!findings.iter().any(|f| f["subject"] == "isolation"), "{report}");
}

#[test]
fn doctor_works_where_nothing_runs() {
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_shipote"))
        .args(["doctor", "--json"])
        .env("SHIPOTE_BUS_ADDRESS", format!("unix:path={}", folder.path().join("no-bus").display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert!(findings.iter().any(|f| f["subject"] == "bus" && f["state"] == "failed"), "{report}");
    assert!(findings.iter().any(|f| f["subject"] == "kernel"), "{report}");
}

#[test]
fn a_reader_that_goes_away_has_what_it_wanted() {
    let appliance = Appliance::start_only("plugins");
    for words in [&["completions", "bash"][..], &["status"], &["plugin", "ls"]] {
        let (gone, theirs) = std::io::pipe().unwrap();
        drop(gone);
        let output = appliance.shipote(words).stdout(theirs).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("panic"), "{words:?}: {}: {said}", output.status);
    }
}
