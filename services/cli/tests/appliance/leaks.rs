//! Many commands, in a row and at once: none is lost, nothing is left.

use std::collections::BTreeMap;

use rustix::process::Pid;

use crate::support::{Appliance, eventually, processes_with};

/// What could leak: descriptors and threads of the service, its mounts, its process tree.
fn held(service: Pid) -> BTreeMap<&'static str, usize> {
    let proc = format!("/proc/{}", service.as_raw_nonzero());
    let count = |dir: &str| std::fs::read_dir(format!("{proc}/{dir}")).unwrap().count();
    let mounts = std::fs::read_to_string(format!("{proc}/mountinfo")).unwrap().lines().count();
    BTreeMap::from([("descriptors", count("fd")), ("threads", count("task")), ("mounts", mounts)])
}

/// In the environment of every command of this test, and of no other process.
const MARK: &str = "LEAKED=4d1f";

fn resident_kib(service: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.as_raw_nonzero())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_in_a_row_and_two_hundred_at_once() {
    let shipote = Appliance::start();
    let service = shipote.service("workspaces");
    // what is made once: caches, the allocator's arenas, the history of 1,000 ended commands
    for _ in 0..50 {
        shipote.ok(&["run", "--env", MARK, "--", "true"]);
    }
    let all_gone = || shipote.json(&["workspace", "list", "--json"])["workspaces"].as_array().unwrap().is_empty();
    eventually("the first workspaces are gone", all_gone);
    let before = held(service);
    for _ in 0..950 {
        shipote.ok(&["run", "--env", MARK, "--", "true"]);
    }
    let resident = resident_kib(service);
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| assert_eq!(shipote.ok(&["run", "--env", MARK, "--", "echo", "x"]), "x\n"));
        }
    });
    assert_eq!(shipote.service("workspaces"), service, "the service was restarted");
    eventually("all workspaces are gone", all_gone);
    eventually("the service holds no more than before", || {
        let now = held(service);
        now.iter().all(|(what, count)| *count <= before[what])
    });
    eventually("no process of a workspace is left", || processes_with(MARK).is_empty());
    // the history was full before: 200 more commands must not make it grow for good
    let grown = resident_kib(service).saturating_sub(resident);
    assert!(grown < 8192, "200 commands left {grown} KiB behind");
    let all = shipote.json(&["ps", "--all", "--json"]);
    let ended = all["commands"].as_array().unwrap();
    assert_eq!(ended.len(), 1000, "the history is bounded");
    assert!(ended.iter().all(|c| c["exit_status"] == 0 && c["reason"] == "exited"));
}
