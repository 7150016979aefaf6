//! Workspaces that are made before anybody asks for them: who asks gets one of their own all the same.

use std::collections::HashSet;
use std::time::SystemTime;

use ulid::Ulid;

use crate::support::{Appliance, eventually};

/// The workspace's id is its name: when it was made is part of it.
fn begun_at(shipote: &Appliance, words: &[&str]) -> (Ulid, SystemTime) {
    let asked = SystemTime::now();
    let name = shipote.ok(&[&["run"], words, &["--", "hostname"]].concat());
    let id = name.trim_end().strip_prefix("run-").unwrap_or_else(|| panic!("{name:?}"));
    (Ulid::from_string(&id.to_ascii_uppercase()).unwrap(), asked)
}

/// Whether a command got a workspace that was there before it asked.
fn is_ahead(shipote: &Appliance, words: &[&str]) -> bool {
    let (id, asked) = begun_at(shipote, words);
    id.datetime() + std::time::Duration::from_millis(1) < asked
}

#[test]
fn the_next_command_gets_the_workspace_made_ahead_and_no_other_gets_it() {
    let shipote = Appliance::start();
    assert!(!is_ahead(&shipote, &[]), "there was one before the first command");
    let mut seen = HashSet::new();
    eventually("a command gets a workspace made ahead", || {
        let (id, asked) = begun_at(&shipote, &[]);
        assert!(seen.insert(id), "two commands had the workspace {id}");
        id.datetime() + std::time::Duration::from_millis(1) < asked
    });
    // many at once: two of them get one
    let all = std::sync::Mutex::new(seen);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let (id, _) = begun_at(&shipote, &[]);
                assert!(all.lock().unwrap().insert(id), "two commands had the workspace {id}");
            });
        }
    });
}

#[test]
fn workspaces_made_ahead_are_in_no_list_and_end_with_the_service() {
    let mut shipote = Appliance::start();
    eventually("one is made ahead", || is_ahead(&shipote, &[]));
    eventually("none is listed", || {
        shipote.json(&["workspace", "list", "--json"])["workspaces"].as_array().unwrap().is_empty()
    });
    let service = shipote.service("workspaces").as_raw_nonzero().get();
    let keepers = || {
        let spawners: Vec<i32> = children(service).into_iter().filter(|pid| name(*pid) == "shipote-spawn").collect();
        spawners.into_iter().flat_map(children).filter(|pid| name(*pid) == "shipote-keeper").collect::<Vec<_>>()
    };
    eventually("two stand", || keepers().len() == 2);
    let kept = keepers();
    shipote.stop();
    eventually("they have ended", || kept.iter().all(|pid| name(*pid) != "shipote-keeper"));
}

#[test]
fn a_workspace_that_is_asked_for_otherwise_is_not_the_one_made_ahead() {
    let shipote = Appliance::start();
    let loopback = shipote.path("loopback.toml");
    std::fs::write(&loopback, "[permissions]\nnetworking = \"loopback\"\n").unwrap();
    let loopback = loopback.to_str().unwrap();
    let other = ["--file", loopback];
    eventually("one is made ahead", || is_ahead(&shipote, &[]));
    assert!(!is_ahead(&shipote, &other), "a workspace without a network was given for one with a loopback");
    eventually("one with a loopback is made ahead", || is_ahead(&shipote, &other));
    assert!(!is_ahead(&shipote, &[]), "a workspace with a loopback was given for one without a network");
}

fn name(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
