//! Workspaces that nobody needs sleep, and whoever needs one wakes it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::endpoints::{SERVER, get, rule, rules};
use crate::support::{Appliance, eventually, free_port};

fn of(shipote: &Appliance, name: &str) -> Value {
    let all = shipote.json(&["workspace", "list", "--json"]);
    all["workspaces"].as_array().unwrap().iter().find(|w| w["name"] == name).cloned().unwrap_or(Value::Null)
}

fn sleeps(shipote: &Appliance, name: &str) {
    eventually("it sleeps", || of(shipote, name)["state"] == "sleeping");
}

#[test]
fn an_idle_workspace_sleeps_and_a_request_wakes_it() {
    let shipote = Appliance::start();
    let listen = free_port();
    rules(&shipote, listen, "workspace:web:8080");
    shipote.ok(&["proxy", "reload"]);
    shipote.ok(&["workspace", "create", "web", "--publish", "8080", "--idle", "1"]);
    let command = shipote.ok(&["run", "-w", "web", "--detach", "--", "perl", "-e", SERVER, "8080", "page"]);
    eventually("the page is served", || get(listen) == Some((200, "page".to_owned())));
    for times in 1..=3 {
        sleeps(&shipote, "web");
        assert_eq!(of(&shipote, "web")["sleeps"].as_u64(), Some(times));
        assert_eq!(get(listen), Some((200, "page".to_owned())), "it is held until it is awake");
        let woken = of(&shipote, "web");
        assert!(woken["state"] == "running" && woken["wake_usec"].as_u64() > Some(0), "{woken}");
    }
    // the service may be killed meanwhile
    sleeps(&shipote, "web");
    let before = shipote.service("workspaces");
    kill_process(before, Signal::KILL).unwrap();
    eventually("the next instance answers", || {
        shipote.run(&["ps"]).status.success() && shipote.service("workspaces") != before
    });
    assert_eq!(of(&shipote, "web")["state"], "sleeping");
    eventually("the page is served", || get(listen) == Some((200, "page".to_owned())));
    // it is on record, as nobody's doing
    let state = shipote.path("state");
    let audit = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--object", "web"]);
    assert!(audit.matches("workspace.freeze").count() >= 4 && audit.contains("workspace.thaw"), "{audit}");
    // signals and its end wake it too
    sleeps(&shipote, "web");
    shipote.ok(&["kill", command.trim()]);
    eventually("the command ends", || !shipote.ok(&["ps"]).contains(&command.trim()[20..]));
    sleeps(&shipote, "web");
    shipote.ok(&["workspace", "stop", "web"]);
}

#[test]
fn whoever_waits_for_a_command_keeps_it_awake() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "busy", "--idle", "1s"]);
    sleeps(&shipote, "busy");
    assert_eq!(shipote.ok(&["run", "-w", "busy", "--", "sh", "-c", "sleep 4; echo done"]), "done\n");
    assert_eq!(of(&shipote, "busy")["sleeps"].as_u64(), Some(1), "not while the command ran");
    // one that works for itself is not idle
    shipote.ok(&["run", "-w", "busy", "--detach", "--", "sh", "-c", "while :; do :; done"]);
    let begun = std::time::Instant::now();
    while begun.elapsed().as_secs() < 5 {
        std::thread::park_timeout(std::time::Duration::from_millis(200));
        assert_eq!(of(&shipote, "busy")["state"], "running");
    }
}

#[test]
fn one_that_does_not_wake_is_an_answer_with_the_reason_and_no_hang() {
    let shipote = Appliance::start();
    let listen = free_port();
    let patience = json!({"wake": "2s"});
    rule(&shipote, listen, &json!({"type": "http_proxy", "upstream": "workspace:web:8080", "timeouts": patience}));
    shipote.ok(&["proxy", "reload"]);
    shipote.ok(&["workspace", "create", "web", "--publish", "8080", "--idle", "1"]);
    shipote.ok(&["run", "-w", "web", "--detach", "--", "perl", "-e", SERVER, "8080", "page"]);
    eventually("the page is served", || get(listen) == Some((200, "page".to_owned())));
    sleeps(&shipote, "web");
    // what would wake it stands still itself
    let keepers = keepers_of(&shipote);
    assert!(!keepers.is_empty());
    let all = |signal| keepers.iter().for_each(|pid| kill_process(*pid, signal).unwrap());
    all(Signal::STOP);
    let (status, body) = get(listen).unwrap();
    all(Signal::CONT);
    assert!(status == 503 && body.contains("workspace:web:8080") && body.contains("within 2s"), "{status} {body}");
    eventually("it is woken later", || get(listen) == Some((200, "page".to_owned())));
    // and one whose keeper is killed is gone, which is an answer as well
    sleeps(&shipote, "web");
    all(Signal::KILL);
    let (status, body) = get(listen).unwrap();
    assert_eq!(status, 503, "{body}");
}

/// The keepers of the appliance's workspaces: below the service, and PID 1 of a namespace each.
fn keepers_of(shipote: &Appliance) -> Vec<Pid> {
    let service = shipote.service("workspaces").as_raw_nonzero().get();
    let field = |pid: i32, key: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("").trim().to_owned()
    };
    let is_below = |pid: i32| {
        let parents = std::iter::successors(Some(pid), |pid| field(*pid, "PPid:").parse().ok().filter(|pid| *pid > 1));
        parents.skip(1).any(|pid| pid == service)
    };
    let is_first = |pid: i32| field(pid, "NSpid:").split_whitespace().skip(1).last() == Some("1");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| is_first(*pid) && is_below(*pid)).filter_map(Pid::from_raw).collect()
}
