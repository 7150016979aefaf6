//! What workspaces use is seen, kept, and compared with their limits; and nothing wakes up where nothing lives.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Pid;
use serde_json::Value;
use shipote_workspace_protocol::spec::{QuotaAction, WorkspaceId, WorkspaceSpec};
use shipote_workspace_protocol::{Request, Response};

use crate::socket::Client;
use crate::support::{Appliance, eventually, text};

fn stats(shipote: &Appliance, name: &str) -> Value {
    shipote.json(&["workspace", "stats", name, "--json"])["stats"][0].clone()
}

#[test]
fn a_living_command_is_seen_in_the_figures_and_in_the_history() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    // it holds some memory and uses some processor time
    let script = "x=$(head -c 4M /dev/zero | tr '\\0' a); while :; do :; done";
    shipote.ok(&["run", "-w", "w", "--detach", "--", "sh", "-c", script]);
    eventually("memory and processor time are counted", || {
        let now = stats(&shipote, "w");
        now["memory_bytes"].as_u64().is_some_and(|b| b > 4 << 20) && now["cpu_usec"].as_u64().is_some_and(|n| n > 0)
    });
    eventually("there is a history with a rate", || {
        let history = shipote.json(&["workspace", "stats", "w", "--history", "--json"]);
        let samples = history["samples"].as_array().unwrap();
        samples.len() >= 2 && samples.last().is_some_and(|s| s["cpu_percent"].as_f64().is_some_and(|p| p > 0.0))
    });
    let now = stats(&shipote, "w");
    assert_eq!((now["name"].as_str(), now["commands_alive"].as_u64()), (Some("w"), Some(1)));
    assert!(now["memory_peak_bytes"].as_u64() >= now["memory_bytes"].as_u64(), "{now}");
    assert!(["cgroup", "proc"].contains(&now["source"].as_str().unwrap()), "{now}");
    let table = shipote.ok(&["workspace", "stats"]);
    assert!(table.contains("WORKSPACE") && table.lines().count() == 2, "{table}");
    shipote.ok(&["workspace", "stop", "w", "--grace", "0"]);
    let gone = shipote.run(&["workspace", "stats", "w"]);
    assert!(!gone.status.success());
    eventually("its history is gone with it", || {
        let kept = std::fs::read_dir(shipote.path("state/workspaces/history"));
        kept.is_ok_and(|mut entries| entries.next().is_none())
    });
}

#[test]
fn all_processes_together_are_held_to_the_quota() {
    let shipote = Appliance::start();
    let spec = shipote.path("spec.toml");
    std::fs::write(&spec, "quota_enforce = { mem = \"kill\" }\n[soma.cgroup]\nmemory_max = '40M'\n").unwrap();
    shipote.ok(&["workspace", "create", "w", "-f", spec.to_str().unwrap()]);
    let quota = shipote.json(&["workspace", "quota", "w", "--json"]);
    assert_eq!(
        (quota["memory_limit_bytes"].as_u64(), quota["memory_action"].as_str()),
        (Some(41_943_040), Some("kill"))
    );
    // each is below the limit, all are above
    let script = "x=$(head -c 6M /dev/zero | tr '\\0' a); echo held; sleep 1000";
    for _ in 0..8 {
        shipote.ok(&["run", "-w", "w", "--detach", "--", "sh", "-c", script]);
    }
    eventually("they are ended for it", || {
        let all = shipote.json(&["ps", "-w", "w", "--all", "--json"]);
        let reasons = all["commands"].as_array().unwrap().iter().filter_map(|c| c["reason"].as_str());
        let held = |reason: &str| ["quota", "out-of-memory"].contains(&reason);
        reasons.filter(|reason| held(reason)).count() > 0
    });
    shipote.ok(&["run", "-w", "w", "--", "true"]);
}

#[test]
fn a_limit_of_one_command_is_held() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let script = "x=$(head -c 200M /dev/zero | tr '\\0' a); echo ${#x}";
    let output = shipote.run(&["run", "-w", "w", "--memory", "48M", "--", "sh", "-c", script]);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(shipote.ok(&["run", "-w", "w", "--", "echo", "works"]).trim(), "works");
    let affinity =
        shipote.ok(&["run", "-w", "w", "--cpu-affinity", "0", "--", "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(affinity.split_whitespace().last(), Some("0"), "{affinity}");
}

/// Times that a process was woken up, over all its threads.
fn wakes(pid: Pid) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
    let count = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or_default()
    };
    tasks.filter_map(Result::ok).map(status).map(count).sum()
}

#[test]
fn an_idle_service_is_not_woken_up() {
    let shipote = Appliance::start();
    shipote.ok(&["run", "--", "true"]);
    let pid = shipote.service("workspaces");
    // the sampler's last look, and threads of the pool that nobody needs any more
    eventually("it is quiet", || {
        let before = wakes(pid);
        std::thread::park_timeout(Duration::from_secs(4));
        // a watchdog is answered twice in its interval, which is 30 s here
        wakes(pid).saturating_sub(before) <= 4
    });
}

#[test]
fn while_something_lives_nothing_but_the_sampler_wakes_the_service() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    shipote.ok(&["run", "-w", "w", "--detach", "--", "sleep", "1000"]);
    let pid = shipote.service("workspaces");
    let samples = || {
        let history = shipote.json(&["workspace", "stats", "w", "--history", "--json"]);
        history["samples"].as_array().unwrap().last().and_then(|sample| sample["uptime_ms"].as_u64()).unwrap_or(0)
    };
    eventually("it is sampled", || samples() > 0);
    eventually("that is all that wakes it", || {
        let before = wakes(pid);
        std::thread::park_timeout(Duration::from_secs(10));
        // five samples, each taken by a thread of the pool that is woken and tells the one that asked, and a watchdog;
        // whatever polls as often as ten times a second would be a hundred
        wakes(pid).saturating_sub(before) <= 50
    });
    let earlier = samples();
    eventually("and it is sampled on", || samples() > earlier);
}

#[test]
fn the_socket_gives_the_same_history_and_takes_limits() {
    let shipote = Appliance::start();
    let mut client = Client::connect(&shipote);
    let mut spec = WorkspaceSpec { label: "w".to_owned(), ..WorkspaceSpec::default() };
    spec.soma.cgroup.cpu_weight = Some(50);
    spec.soma.rlimits.nproc = Some(40);
    spec.quota_enforce.nproc = QuotaAction::Log;
    let Response::WorkspaceCreated { id: workspace, .. } = client.ask(&Request::WorkspaceCreate { spec }) else {
        panic!("not created")
    };
    let Response::WorkspaceQuota { info } = client.ask(&Request::WorkspaceQuota { workspace }) else { panic!() };
    assert_eq!((info.nproc_limit, info.mem_limit, info.breaches.len()), (Some(40), None, 0));
    let history = |client: &mut Client, tail| match client.ask(&Request::WorkspaceStatsHistory { workspace, tail }) {
        Response::WorkspaceStatsHistory { samples } => samples,
        other => panic!("{other:?}"),
    };
    eventually("there are two samples", || history(&mut client, 0).len() >= 2);
    let samples = history(&mut client, 0);
    assert!(samples.windows(2).all(|pair| pair[0].uptime_ms < pair[1].uptime_ms), "{samples:?}");
    assert_eq!(history(&mut client, 1).len(), 1);
    let summary = client.ask(&Request::WorkspaceFullSummary { workspace });
    let Response::WorkspaceFullSummary { stats, quota, .. } = summary else { panic!("{summary:?}") };
    assert_eq!((stats.commands_alive, quota.nproc_limit), (0, Some(40)));
    let nowhere = WorkspaceId(ulid::Ulid::from_bytes([7; 16]));
    let refused = client.refused(&Request::WorkspaceStatsHistory { workspace: nowhere, tail: 0 });
    assert!(refused.contains("does not exist"), "{refused}");
}

#[test]
fn scrapers_find_the_figures_on_a_socket() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let path = shipote.path("run/workspaces/admin.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let ask = |target: &str| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // one that never asks is in nobody's way
    let _silent = UnixStream::connect(&path).unwrap();
    let page = ask("/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("# EOF\n"), "{page}");
    assert!(page.contains("shipote_workspaces_living 1\n"), "{page}");
    assert!(page.contains("shipote_workspace_commands{workspace=\"w\"} 0\n"), "{page}");
    assert!(ask("/health").ends_with("\r\n\r\nok\n"));
    assert!(ask("/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn the_view_is_printed_for_those_without_a_terminal() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let view = shipote.ok(&["top", "--once"]);
    assert!(view.starts_with("1 workspace,") && view.lines().any(|line| line.starts_with("w ")), "{view}");
    let figures = shipote.json(&["top", "--json"]);
    assert_eq!(figures["workspaces"][0]["name"], "w");
    let refused = shipote.run(&["top"]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("--once"), "{refused:?}");
}

#[test]
fn a_service_that_is_away_is_named_in_the_view_in_words() {
    let shipote = Appliance::start_only("workspaces");
    let figures = shipote.json(&["top", "--json"]);
    let notes = figures["notes"].to_string();
    for asked in ["machines: ask the machines service: ", "ways out: ask the proxy: "] {
        assert!(notes.contains(asked) && !notes.contains("FDO"), "{notes}");
    }
}

#[test]
fn the_view_is_drawn_on_a_terminal_follows_what_changes_and_leaves_it_as_it_was() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "QQQQ"]);
    let line = format!("stty rows 30 cols 100; exec {} top --interval 0.2", env!("CARGO_BIN_EXE_shipote"));
    let mut child = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("SHIPOTE_BUS_ADDRESS", shipote.address())
        .env("TERM", "xterm-256color")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let screen = Arc::new(Mutex::new(Vec::new()));
    let (mut out, shown) = (child.stdout.take().unwrap(), Arc::clone(&screen));
    let reader = std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut piece) {
            shown.lock().unwrap().extend_from_slice(&piece[..count]);
        }
    });
    let shows = |what: &str| text(&screen.lock().unwrap()).contains(what);
    eventually("the workspace is shown", || shows("QQQQ"));
    assert!(shows("\x1b[?1049h"), "a screen of its own");
    shipote.ok(&["workspace", "create", "ZZZZ"]);
    eventually("the new one is shown, too", || shows("ZZZZ"));
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"nq").unwrap();
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    assert!(shows("\x1b[?1049l"), "the screen that was there");
}
