//! Any part may be killed at any moment: nothing is orphaned, nothing is half-written, and
//! it comes back.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Appliance, eventually, processes_with, text};

fn marked(marker: &str) -> bool {
    !processes_with(marker).is_empty()
}

#[test]
fn a_stopped_appliance_leaves_no_orphan_and_tells_who_waits() {
    let mut shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    shipote.ok(&["run", "-w", "demo", "-d", "--", "sh", "-c", "trap '' TERM; sleep 5151"]);
    let waiting =
        shipote.shipote(&["run", "--", "sleep", "5152"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("both run", || marked("5151") && marked("5152"));
    shipote.stop();
    assert!(!marked("5151") && !marked("5152"));
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("went away"), "{}", text(&output.stderr));
}

#[test]
fn each_service_and_the_bus_may_be_killed() {
    let shipote = Appliance::start();
    for name in ["workspaces", "machines", "proxy", "plugins"] {
        let before = shipote.service(name);
        kill_process(before, Signal::KILL).unwrap();
        eventually(&format!("{name} is back"), || {
            let output = shipote.run(&["health", "--json"]);
            output.status.success() && shipote.service(name) != before
        });
    }
    assert_eq!(shipote.ok(&["run", "--", "echo", "fine"]), "fine\n");
}

#[test]
fn a_killed_appliance_leaves_no_process_and_starts_again() {
    let mut shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    shipote.ok(&["run", "-w", "demo", "-d", "--", "sh", "-c", "sleep 6161 & sleep 6161"]);
    assert!(marked("6161"));
    let folder = shipote.path("run").display().to_string();
    kill_process(Pid::from_raw(i32::try_from(shipote.up.id()).unwrap()).unwrap(), Signal::KILL).unwrap();
    shipote.up.wait().unwrap();
    eventually("no process is left", || !marked("6161") && processes_with(&folder).is_empty());
    shipote.restart();
    assert_eq!(shipote.ok(&["run", "--", "echo", "again"]), "again\n");
    // what was on record before the kill is still there, and whole
    let state = shipote.path("state");
    let audit = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--json"]);
    let actions: Vec<serde_json::Value> = audit.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(actions.iter().any(|r| r["action"] == "workspace.create" && r["object"] == "demo"), "{audit}");
}

#[test]
fn killed_amid_many_starts_nothing_is_orphaned() {
    let mut shipote = Appliance::start();
    let folder = shipote.path("run").display().to_string();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            // each ends one way or the other; none may hang
            scope.spawn(|| shipote.run(&["run", "--", "sh", "-c", "sleep 0.2; : 7171"]));
        }
        kill_process(shipote.service("workspaces"), Signal::KILL).unwrap();
    });
    shipote.stop();
    eventually("no process is left", || !marked("7171") && processes_with(&folder).is_empty());
}
