//! The workspaces service may be killed at any moment: what it started goes on, the next instance takes it over, and
//! exit statuses and logs are whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Appliance, eventually, processes_with, text};

/// A folder that every workspace of the test sees, to tell commands when to go on.
fn shared(shipote: &Appliance) -> PathBuf {
    let folder = shipote.path("shared");
    fs::create_dir_all(&folder).unwrap();
    // commands are other users on the host
    for path in [shipote.path(""), folder.clone()] {
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    folder
}

fn workspace(shipote: &Appliance, name: &str, folder: &Path) {
    let spec = shipote.path(&format!("{name}.toml"));
    let text = format!("[[paths]]\npath = {:?}\naccess = \"read\"\n", folder.display().to_string());
    fs::write(&spec, text).unwrap();
    shipote.ok(&["workspace", "create", name, "-f", spec.to_str().unwrap()]);
}

/// Kills the service, and waits until the next instance answers.
fn kill(shipote: &Appliance) {
    let before = shipote.service("workspaces");
    kill_process(before, Signal::KILL).unwrap();
    answers(shipote, before);
}

fn answers(shipote: &Appliance, before: Pid) {
    eventually("the next instance answers", || {
        let status = shipote.json(&["status", "--json"]);
        let all = status["services"].as_array().unwrap().clone();
        let state = |s: &Value| s["name"] == "workspaces" && s["state"] == "running";
        let pid = |s: &Value| s["pid"].as_i64() != Some(i64::from(before.as_raw_nonzero().get()));
        all.iter().any(|s| state(s) && pid(s)) && shipote.run(&["ps", "--json"]).status.success()
    });
}

fn commands(shipote: &Appliance) -> BTreeMap<String, Value> {
    let all = shipote.json(&["ps", "--all", "--json"]);
    let all = all["commands"].as_array().unwrap().clone();
    all.into_iter().map(|c| (c["id"].as_str().unwrap().to_owned(), c)).collect()
}

fn wait_for(shipote: &Appliance, id: &str) -> Value {
    let mut found = Value::Null;
    eventually(&format!("command {id} ends"), || {
        found = commands(shipote).remove(id).unwrap_or_else(|| panic!("{id} is forgotten"));
        found["state"] == "ended"
    });
    found
}

fn spawn(shipote: &Appliance, words: &[&str]) -> Child {
    shipote.shipote(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn fifty_commands_and_five_pipelines_outlive_their_service() {
    let shipote = Appliance::start();
    let folder = shared(&shipote);
    workspace(&shipote, "many", &folder);
    // each says something, waits, says more and ends as its number tells
    let script = "echo begun $0; echo err $0 >&2; while [ ! -e $1 ]; do sleep 0.05; done; \
         i=0; while [ $i -lt 2000 ]; do echo line $i of $0; i=$((i+1)); done; exit $(($0 % 7))";
    let go = folder.join("go").display().to_string();
    let ids: Vec<String> = (0..50)
        .map(|n| {
            shipote.ok(&["run", "-w", "many", "-d", "--", "sh", "-c", script, &n.to_string(), &go]).trim().to_owned()
        })
        .collect();
    let spec = shipote.path("pipeline.toml");
    fs::write(
        &spec,
        "label='p'\n[[nodes]]\nlabel='make'\ncommand=['sh','-c','while [ ! -e ${GO} ]; do sleep 0.05; done; seq 100000']\n\
         [[nodes]]\nlabel='a'\ncommand=['sha256sum']\n[[nodes]]\nlabel='b'\ncommand=['sha256sum']\n\
         [[edges]]\nfrom='make'\nto='a'\n[[edges]]\nfrom='make'\nto='b'\n",
    )
    .unwrap();
    let variable = format!("GO={go}");
    let pipelines: Vec<Child> = (0..5)
        .map(|n| {
            let mut words = vec!["pipeline", "run", "-w", "many", "--var", &variable];
            // with flows and without
            if n % 2 == 0 {
                words.push("--tap");
            }
            words.push(spec.to_str().unwrap());
            spawn(&shipote, &words)
        })
        .collect();
    eventually("all run", || {
        let running = shipote.json(&["ps", "--json"])["commands"].as_array().unwrap().clone();
        running.iter().filter(|c| c["state"] == "running").count() == 50 + 5 * 3
    });
    let before = commands(&shipote);
    kill(&shipote);
    let after = commands(&shipote);
    assert_eq!(after.len(), before.len());
    for (id, command) in &before {
        for what in ["pid", "state", "label", "started", "workspace"] {
            assert_eq!(after[id][what], command[what], "{what} of {id}");
        }
    }
    // a second time, in the middle of all that they write
    fs::write(folder.join("go"), "").unwrap();
    kill(&shipote);
    let expected_sum = {
        let lines: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        let mut child = std::process::Command::new("sha256sum");
        let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        text(&child.wait_with_output().unwrap().stdout).repeat(2)
    };
    for run in pipelines {
        let output = run.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), expected_sum, "{}", text(&output.stderr));
    }
    for (n, id) in ids.iter().enumerate() {
        let ended = wait_for(&shipote, id);
        assert_eq!((&ended["exit_status"], &ended["reason"]), (&(n % 7).into(), &"exited".into()), "{ended}");
        let lines: String = (0..2000).map(|i| format!("line {i} of {n}\n")).collect();
        assert!(shipote.ok(&["logs", "--stream", "stdout", id]) == format!("begun {n}\n{lines}"), "the log of {n}");
        assert_eq!(shipote.ok(&["logs", "--stream", "stderr", id]), format!("err {n}\n"));
    }
    shipote.ok(&["workspace", "stop", "many"]);
}

#[test]
fn killed_at_any_moment_not_a_byte_is_lost_or_doubled() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let writer = "i=0; while [ $i -lt 20000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; exit 3";
    let id = shipote.ok(&["run", "-w", "w", "-d", "--", "sh", "-c", writer]).trim().to_owned();
    let spec = shipote.path("pipeline.toml");
    fs::write(
        &spec,
        "label='p'\n[[nodes]]\nlabel='a'\ncommand=['sh','-c','i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done']\n\
         [[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n",
    )
    .unwrap();
    let pipeline = spawn(&shipote, &["pipeline", "run", "-w", "w", "--tap", spec.to_str().unwrap()]);
    let mut kills = 0;
    // whatever moment it is that the next instance has come to by then
    while commands(&shipote)[&id]["state"] != "ended" || kills < 3 {
        kill(&shipote);
        kills += 1;
        std::thread::park_timeout(std::time::Duration::from_millis(37 * (kills % 11)));
    }
    let ended = wait_for(&shipote, &id);
    assert_eq!(ended["exit_status"], 3, "{ended}");
    for stream in ["out", "err"] {
        let want: String = (0..20000).map(|i| format!("{stream} {i}\n")).collect();
        let got = shipote.ok(&["logs", "--stream", &format!("std{stream}"), &id]);
        assert!(got == want, "std{stream} after {kills} kills: {} of {} bytes", got.len(), want.len());
    }
    let output = pipeline.wait_with_output().unwrap();
    let want: String = (0..20000).map(|i| format!("{i}\n")).collect();
    assert!(text(&output.stdout) == want, "{} of {} bytes", output.stdout.len(), want.len());
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn whoever_waits_in_the_foreground_gets_the_exit_status() {
    let shipote = Appliance::start();
    let mut run = spawn(&shipote, &["run", "--", "sh", "-c", "echo begun; read line; echo $line; exit 42"]);
    let mut stdout = run.stdout.take().unwrap();
    let mut begun = [0; 6];
    stdout.read_exact(&mut begun).unwrap();
    kill(&shipote);
    run.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), run.wait().unwrap().code()), ("hello\n", Some(42)));
    // and the workspace that was made for it is gone with it
    eventually("its workspace is gone", || {
        shipote.json(&["workspace", "list", "--json"])["workspaces"].as_array().unwrap().is_empty()
    });
}

#[test]
fn subscribers_of_a_flow_do_not_notice() {
    let shipote = Appliance::start();
    let spec = shipote.path("pipeline.toml");
    fs::write(
        &spec,
        "label='p'\n[[nodes]]\nlabel='in'\ncommand=['cat']\n[[nodes]]\nlabel='out'\ncommand=['cat']\n[[edges]]\nfrom='in'\nto='out'\n",
    )
    .unwrap();
    let mut run = spawn(&shipote, &["pipeline", "run", "--tap", spec.to_str().unwrap()]);
    let (mut input, mut output) = (run.stdin.take().unwrap(), run.stdout.take().unwrap());
    let mut line = [0; 6];
    input.write_all(b"early\n").unwrap();
    output.read_exact(&mut line).unwrap();
    let flow = |shipote: &Appliance| shipote.json(&["flow", "list", "--json"])["flows"][0].clone();
    let socket = flow(&shipote)["socket"].as_str().unwrap().to_owned();
    let mut first = UnixStream::connect(&socket).unwrap();
    first.read_exact(&mut line).unwrap();
    kill(&shipote);
    assert_eq!((&flow(&shipote)["bytes_total"], &flow(&shipote)["socket"]), (&6.into(), &socket.as_str().into()));
    input.write_all(b"later\n").unwrap();
    first.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"later\n");
    // who comes now gets the replay of before
    let mut second = UnixStream::connect(&socket).unwrap();
    drop(input);
    let mut all = String::new();
    second.read_to_string(&mut all).unwrap();
    assert_eq!(all, "early\nlater\n");
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert_eq!(run.wait().unwrap().code(), Some(0));
    assert_eq!(flow(&shipote)["bytes_total"], 12);
}

#[test]
fn timers_go_on() {
    let shipote = Appliance::start();
    let spec = shipote.path("ttl.toml");
    fs::write(&spec, "ttl = 6000\n").unwrap();
    shipote.ok(&["workspace", "create", "brief", "-f", spec.to_str().unwrap()]);
    shipote.ok(&["workspace", "create", "w"]);
    let limited = spawn(&shipote, &["run", "-w", "w", "--timeout", "5", "--", "sleep", "8181"]);
    eventually("it runs", || commands(&shipote).values().any(|c| c["state"] == "running"));
    kill(&shipote);
    let list = |shipote: &Appliance| shipote.ok(&["workspace", "list"]);
    assert_eq!(limited.wait_with_output().unwrap().status.code(), Some(124));
    eventually("its time is over", || !list(&shipote).contains("brief"));
    assert!(list(&shipote).contains("w"));
}

#[test]
fn a_restart_in_order_keeps_what_runs_and_a_stop_ends_it() {
    let mut shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let id =
        shipote.ok(&["run", "-w", "w", "-d", "--", "sh", "-c", "trap 'echo bye; exit 5' TERM; sleep 9191.625 & wait"]);
    let id = id.trim();
    let before = shipote.service("workspaces");
    kill_process(before, Signal::TERM).unwrap();
    answers(&shipote, before);
    assert_eq!(commands(&shipote)[id]["state"], "running");
    let folder = shipote.path("run").display().to_string();
    shipote.stop();
    assert!(processes_with("9191.625").is_empty() && processes_with(&folder).is_empty());
    // the next appliance knows what became of it: nobody was there to hear its last word
    shipote.restart();
    let ended = commands(&shipote).remove(id).unwrap();
    assert_eq!((&ended["state"], &ended["reason"]), (&"ended".into(), &"lost".into()), "{ended}");
    assert!(shipote.ok(&["workspace", "list"]).is_empty());
}

#[test]
fn a_torn_journal_is_recovered_with_a_warning() {
    let mut shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "w"]);
    let id = shipote.ok(&["run", "-w", "w", "-d", "--", "true"]).trim().to_owned();
    wait_for(&shipote, &id);
    // twice, so that there is a previous one that knows of it
    kill(&shipote);
    kill(&shipote);
    shipote.stop();
    let journal = shipote.path("state/workspaces/journal");
    let bytes = fs::read(&journal).unwrap();
    fs::write(&journal, &bytes[..20]).unwrap();
    shipote.restart();
    assert_eq!(commands(&shipote)[&id]["exit_status"], 0);
    assert!(shipote.log().contains("recovered from"), "{}", shipote.log());
}

#[test]
fn a_command_is_restarted_until_it_works_also_by_the_next_instance() {
    let shipote = Appliance::start();
    let folder = shared(&shipote);
    workspace(&shipote, "w", &folder);
    let script = "echo try; [ -e $0 ] || exit 1";
    let go = folder.join("go").display().to_string();
    let words = ["run", "-w", "w", "-d", "--restart", "on-failure", "--", "sh", "-c", script, &go];
    let id = shipote.ok(&words).trim().to_owned();
    eventually("it was tried again", || commands(&shipote)[&id]["restarts"].as_u64() > Some(0));
    kill(&shipote);
    fs::write(&go, "").unwrap();
    let ended = wait_for(&shipote, &id);
    assert_eq!(ended["exit_status"], 0, "{ended}");
    let tries = ended["restarts"].as_u64().unwrap() + 1;
    assert_eq!(shipote.ok(&["logs", &id]), "try\n".repeat(usize::try_from(tries).unwrap()));
    // and one that never works is given up, in the foreground as well
    let output = shipote.run(&["run", "--restart", "on-failure:2", "--", "sh", "-c", "echo x; exit 7"]);
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("x\nx\nx\n", Some(7)));
}

#[test]
fn a_pipeline_is_restarted_as_a_whole() {
    let shipote = Appliance::start();
    let spec = shipote.path("pipeline.toml");
    fs::write(
        &spec,
        "label='p'\n[restart]\ninitial_ms=10\nlimit=2\n[[nodes]]\nlabel='a'\ncommand=['sh','-c','echo x; exit 4']\n\
         [[nodes]]\nlabel='b'\ncommand=['cat']\n[[edges]]\nfrom='a'\nto='b'\n",
    )
    .unwrap();
    for words in [&["pipeline", "run"][..], &["pipeline", "run", "--tap"]] {
        let output = shipote.run(&[words, &[spec.to_str().unwrap()]].concat());
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("x\nx\nx\n", Some(4)), "{words:?}");
    }
}

#[test]
fn logs_are_followed_across_a_restart_and_read_from_any_offset() {
    let shipote = Appliance::start();
    let folder = shared(&shipote);
    workspace(&shipote, "w", &folder);
    let go = folder.join("go").display().to_string();
    let script = "printf 'one\\n\\377'; printf err >&2; while [ ! -e $0 ]; do sleep 0.05; done; echo two";
    let id = shipote.ok(&["run", "-w", "w", "-d", "--", "sh", "-c", script, &go]).trim().to_owned();
    let mut follow = spawn(&shipote, &["logs", "-f", "--stream", "stdout", &id]);
    let mut begun = [0; 5];
    follow.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"one\n\xff");
    kill(&shipote);
    fs::write(&go, "").unwrap();
    let rest = follow.wait_with_output().unwrap();
    assert_eq!((text(&rest.stdout).as_str(), rest.status.code()), ("two\n", Some(0)), "{}", text(&rest.stderr));
    wait_for(&shipote, &id);
    assert_eq!(shipote.ok(&["logs", "--since-offset", "5,1", "--stream", "stdout", &id]), "two\n");
    assert_eq!(shipote.ok(&["logs", "--since-offset", "0,1", "--stream", "stderr", &id]), "rr");
    assert_eq!(shipote.ok(&["logs", "--tail", "4", "--stream", "stdout", &id]), "two\n");
    let mut bytes = 0;
    for line in shipote.ok(&["logs", "--json", &id]).lines() {
        let chunk: Value = serde_json::from_str(line).unwrap();
        assert!(chunk["data"].is_string() != chunk["base64"].is_string(), "{chunk}");
        bytes += chunk["data"].as_str().map_or(0, str::len);
    }
    assert!(bytes >= 3, "what is text is shown as text");
}
