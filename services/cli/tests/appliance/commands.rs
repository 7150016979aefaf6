//! Commands and workspaces, through the command line.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Appliance, eventually, text};

#[test]
fn a_command_gets_the_callers_descriptors_and_gives_its_status() {
    let shipote = Appliance::start();
    assert_eq!(shipote.ok(&["run", "--", "echo", "hello"]), "hello\n");
    assert_eq!(text(&shipote.fed(&["run", "--", "tr", "a-z", "A-Z"], b"quiet").stdout), "QUIET");
    let output = shipote.run(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("out\n".into(), "err\n".into()));
    assert_eq!(output.status.code(), Some(3));
    let table: &[(&[&str], i32)] = &[
        (&["run", "--", "sh", "-c", "kill -9 $$"], 137),
        (&["run", "--", "no-such-program"], 127),
        (&["run", "--", "/etc/passwd"], 126),
        (&["run", "--cwd", "/nowhere", "--", "true"], 125),
        (&["run", "-w", "nobody", "--", "true"], 125),
        (&["run", "--timeout", "0.2", "--", "sleep", "60"], 124),
        (&["run", "--timeout", "200ms", "--", "sleep", "60"], 124),
        (&["run", "--timeout", "soon", "--", "true"], 2),
        (&["run"], 2),
        (&["run", "--no-such-option", "--", "true"], 2),
    ];
    for (words, status) in table {
        let output = shipote.run(words);
        assert_eq!(output.status.code(), Some(*status), "{words:?}: {}", text(&output.stderr));
        if *status >= 124 && *status <= 127 {
            let line = text(&output.stderr);
            assert!(line.starts_with("shipote: ") && line.trim_end().lines().count() == 1, "{words:?}: {line}");
        }
    }
}

#[test]
fn the_environment_is_what_was_asked_for_and_nothing_else() {
    let shipote = Appliance::start();
    let output = shipote.shipote(&["run", "--env", "A=b c", "--cwd", "/tmp", "--", "sh", "-c", "env; pwd"]);
    let output = { output }.env("SECRET", "leaks").output().unwrap();
    let out = text(&output.stdout);
    assert!(out.contains("A=b c\n") && out.ends_with("/tmp\n") && out.contains("HOME=/work\n"), "{out}");
    assert!(!out.contains("SECRET") && !out.contains("SHIPOTE_BUS_ADDRESS"), "{out}");
}

#[test]
fn signals_reach_the_command() {
    let shipote = Appliance::start();
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done";
    let mut child = shipote.shipote(&["run", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::INT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("caught\n", Some(7)));
}

#[test]
fn a_terminal_is_the_workspaces_own() {
    let shipote = Appliance::start();
    let output = shipote.fed(&["run", "-t", "--", "sh", "-c", "tty; stty size; read x; echo got $x"], b"word\n");
    let out = text(&output.stdout);
    assert!(out.contains("/dev/pts/0") && out.contains("24 80") && out.contains("got word"), "{out}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn what_is_detached_goes_on_and_is_logged() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    let script = "echo one; echo two >&2; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo three";
    let id = shipote.ok(&["run", "-w", "demo", "--detach", "--", "sh", "-c", script]).trim().to_owned();
    eventually("the first output is kept", || shipote.ok(&["logs", &id]).lines().count() == 2);
    assert_eq!(shipote.ok(&["logs", "--stream", "stderr", &id]), "two\n");
    let running = shipote.json(&["ps", "--json"]);
    assert_eq!(running["commands"][0]["state"], "running", "{running}");
    let follower = shipote.shipote(&["logs", "-f", &id]).stdout(Stdio::piped()).spawn().unwrap();
    shipote.ok(&["run", "-w", "demo", "--", "touch", "/tmp/go"]);
    let followed = text(&follower.wait_with_output().unwrap().stdout);
    assert!(followed.contains("one\n") && followed.ends_with("three\n"), "{followed}");
    assert_eq!(shipote.ok(&["logs", "--tail", "6", &id[20..]]), "three\n");
    let ended = shipote.json(&["ps", "--all", "--json"]);
    assert_eq!(ended["commands"][0]["exit_status"], 0, "{ended}");
    let sleeper = shipote.ok(&["run", "--detach", "--", "sleep", "600"]).trim().to_owned();
    shipote.ok(&["kill", "--signal", "KILL", &sleeper]);
    eventually("the killed one has ended", || {
        let all = shipote.json(&["ps", "--all", "--json"]);
        let all = all["commands"].as_array().unwrap().clone();
        all.iter().any(|c| c["id"] == sleeper.as_str() && c["exit_status"] == 137 && c["reason"] == "signalled")
    });
}

#[test]
fn a_workspace_lives_from_create_to_stop() {
    let shipote = Appliance::start();
    let spec = shipote.path("spec.toml");
    let granted = shipote.path("granted");
    std::fs::create_dir(&granted).unwrap();
    std::fs::write(granted.join("file"), "data").unwrap();
    std::fs::write(
        &spec,
        format!(
            "[soma.rlimits]\nnofile = 77\n[[paths]]\npath = \"{}\"\ntarget = \"/data\"\n[env]\nKIND = \"test\"\n",
            granted.display()
        ),
    )
    .unwrap();
    // the workspace's user is nobody the folder knows
    for path in [shipote.path(""), granted.clone()] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let created = shipote.json(&["workspace", "create", "demo", "-f", spec.to_str().unwrap(), "--json"]);
    assert_eq!(created["name"], "demo");
    let script = "cat /data/file; echo; ulimit -n; echo $KIND; hostname; echo x > /data/new && echo written";
    let output = shipote.run(&["run", "-w", "demo", "--", "sh", "-c", script]);
    assert_eq!(text(&output.stdout), "data\n77\ntest\ndemo\n", "{}", text(&output.stderr));
    shipote.ok(&["run", "-w", "demo", "--", "sh", "-c", "echo kept > /tmp/file"]);
    assert_eq!(shipote.ok(&["run", "-w", "demo", "--", "cat", "/tmp/file"]), "kept\n");
    let list = shipote.json(&["workspace", "list", "--json"]);
    assert_eq!((&list["workspaces"][0]["name"], &list["workspaces"][0]["state"]), (&"demo".into(), &"running".into()));
    let shown = shipote.json(&["workspace", "show", "demo", "--json"]);
    assert!(shown["spec"].as_str().unwrap().contains("nofile = 77"), "{shown}");
    assert_eq!(shown["isolation"], created["isolation"]);
    shipote.ok(&["run", "-w", "demo", "-d", "--", "sleep", "600"]);
    let stopped = shipote.json(&["workspace", "stop", "demo", "--grace", "0", "--json"]);
    assert!(stopped["reaped"].as_u64().unwrap() >= 1, "{stopped}");
    assert_eq!(shipote.json(&["workspace", "list", "--json"])["workspaces"], serde_json::json!([]));
    // the name is free again
    shipote.ok(&["workspace", "create", "demo"]);
}

#[test]
fn a_workspace_ends_with_its_time() {
    let shipote = Appliance::start();
    let spec = shipote.path("spec.toml");
    std::fs::write(&spec, "ttl = 300\n").unwrap();
    shipote.ok(&["workspace", "create", "short", "-f", spec.to_str().unwrap()]);
    let output = shipote.run(&["run", "-w", "short", "--", "sleep", "600"]);
    assert!([125, 143, 137].contains(&output.status.code().unwrap()), "{}", output.status);
    eventually("it is gone", || shipote.json(&["workspace", "list", "--json"])["workspaces"] == serde_json::json!([]));
}

#[test]
fn every_change_is_on_record() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "demo"]);
    shipote.run(&["workspace", "create", "demo"]);
    shipote.ok(&["run", "-w", "demo", "--", "true"]);
    shipote.ok(&["workspace", "stop", "demo"]);
    let state = shipote.path("state");
    let words = ["audit", "--state", state.to_str().unwrap(), "--json"];
    let records: Vec<serde_json::Value> =
        shipote.ok(&words).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let uid = rustix::process::getuid().as_raw();
    let seen: Vec<(String, String, bool)> = records
        .iter()
        .filter(|r| r["action"].as_str().unwrap().starts_with("workspace.") || r["action"] == "command.run")
        .inspect(|r| assert_eq!((&r["uid"], &r["door"]), (&uid.into(), &"bus".into())))
        .map(|r| (r["action"].as_str().unwrap().into(), r["object"].as_str().unwrap().into(), r["result"] == "ok"))
        .collect();
    let want = [
        ("workspace.create", "demo", true),
        ("workspace.create", "demo", false),
        ("command.run", "true", true),
        ("workspace.stop", "demo", true),
    ];
    assert_eq!(seen, want.map(|(a, o, ok)| (a.to_owned(), o.to_owned(), ok)));
}

#[test]
fn health_and_status_tell_of_every_service() {
    let shipote = Appliance::start();
    let health = shipote.json(&["health", "--json"]);
    let services = health["services"].as_array().unwrap();
    assert_eq!(services.len(), 4);
    for service in services {
        assert_eq!(service["health"]["state"], "running", "{service}");
    }
    let status = shipote.json(&["status", "--json"]);
    assert_eq!(status["bus_address"], shipote.address());
    for service in status["services"].as_array().unwrap() {
        assert_eq!(service["state"], "running", "{service}");
        assert!(service["pid"].as_i64().unwrap() > 1 && !service["confinement"].is_null(), "{service}");
    }
    let mechanisms = shipote.json(&["capabilities", "--json"]);
    let names: Vec<&str> =
        mechanisms["mechanisms"].as_array().unwrap().iter().filter_map(|m| m["name"].as_str()).collect();
    for name in ["user-namespace", "landlock", "seccomp", "pivoted-root", "no-new-privileges"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
}

#[test]
fn files_are_discerned() {
    let shipote = Appliance::start();
    let file = shipote.path("data.json");
    std::fs::write(&file, "{\"a\": [1, 2]}").unwrap();
    let found = shipote.json(&["discern", file.to_str().unwrap(), "--json"]);
    assert_eq!((&found["type"], &found["lens"]), (&"Primitive { name: \"json\" }".into(), &"tree".into()), "{found}");
    let elf = shipote.json(&["discern", "/proc/self/exe", "--json"]);
    assert_eq!(elf["type"], "Primitive { name: \"elf\" }");
}
