//! Machines through the command line, as docs/machines.md shows it: each command, its JSON, its exit status, its refusals.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::endpoints::{get, rules};
use crate::support::{Appliance, eventually, free_port, image, text};

fn code(shipote: &Appliance, words: &[&str]) -> (Option<i32>, String) {
    let output = shipote.run(words);
    (output.status.code(), text(&output.stderr))
}

/// A frame of the agent's protocol, and the answer to it.
fn ask(stream: &mut UnixStream, request: &Value) -> Value {
    let body = request.to_string();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    serde_json::from_slice(&answer).unwrap()
}

#[test]
fn a_machine_is_defined_used_looked_at_and_removed() {
    let shipote = Appliance::start_in(&image());
    let file = shipote.path("file");
    std::fs::write(&file, "from the host\n").unwrap();
    let at = |name: &str| shipote.path(name).display().to_string();

    // Refused before anything is made, with the way out.
    for (words, status, what) in [
        (&["machine", "create", "No_Name"][..], 1, "1 to 48 of a-z, 0-9 and `-`, with no `-` at either end"),
        (&["machine", "create", "m", "--memory", "1"], 1, "give 96 to 65536"),
        (&["machine", "create", "m", "--memory", "much"], 2, "--memory"),
        (&["machine", "create", "m", "--memory", "1K"], 2, "whole MiB"),
        (&["machine", "create", "m", "--cpus", "9999"], 2, "1..=64"),
        (&["machine", "create", "m", "--publish", "0:80"], 1, "publish"),
        (&["machine", "create", "m", "--volume", "relative"], 1, "HOST:GUEST"),
        (&["machine", "create", "m", "--egress", "a b"], 1, "egress"),
        (&["machine", "create", "m", "--ssh-agent", "/nope"], 1, "ssh_agent = \"/nope\": this service finds no such"),
        (&["machine", "create", "m", "--ssh-agent", "/etc/passwd"], 1, "it is no socket"),
        (&["machine", "create", "m", "--from", "none"], 1, "snapshot ls"),
        (&["machine", "start", "m"], 1, "machine ls"),
        (&["machine", "exec", "m", "--", "true"], 125, "machine ls"),
        (&["machine", "rm", "m"], 1, "machine ls"),
        (&["machine", "stats", "m"], 1, "machine ls"),
        (&["image", "ls", "m"], 1, "machine ls"),
        (&["machine", "agent", "m"], 1, "machine ls"),
    ] {
        let (found, said) = code(&shipote, words);
        assert_eq!(found, Some(status), "{words:?}: {said}");
        assert!(said.contains(what), "{words:?}: {said}");
    }
    assert_eq!(shipote.json(&["machine", "ls", "--json"])["machines"], serde_json::json!([]));

    let serve = "mkdir -p /www; echo page > /www/index.html; exec busybox httpd -f -p 8080 -h /www";
    let agent = at("agent");
    let listener = UnixListener::bind(&agent).unwrap();
    let own = ["machine", "create", "m", "--memory", "160M", "--disk", "64MiB", "--ssh-agent", &agent, "--json"];
    let words = [&own[..], &["--", "sh", "-c", serve]].concat();
    let made = shipote.json(&words);
    assert_eq!((made["name"].as_str(), made["state"].as_str()), (Some("m"), Some("stopped")));
    assert!(code(&shipote, &["machine", "create", "m"]).1.contains("the name is taken"));

    // By a file as well, with options that say what is otherwise.
    std::fs::write(shipote.path("spec.toml"), "memory_mib = 200\npublish = ['80']\n[idle]\nafter_s = 9\n").unwrap();
    shipote.ok(&["machine", "create", "filed", "-f", &at("spec.toml"), "--publish", "81", "--cpus", "2"]);
    assert!(shipote.fed(&["machine", "create", "piped", "-f", "-"], b"memory_mib = 100").status.success());
    let listed = shipote.json(&["machine", "ls", "--json"]);
    let [filed, _, piped] = &listed["machines"].as_array().unwrap()[..] else { panic!("{listed}") };
    assert_eq!(
        (&filed["memory_mib"], &filed["cpus"], &filed["idle_s"]),
        (&200.into(), &2.into(), &9.into()),
        "{filed}"
    );
    assert_eq!((&filed["publish"], &piped["memory_mib"]), (&serde_json::json!(["81"]), &100.into()));
    for (text, what) in
        [("memory_mb = 1", "did you mean `memory_mib`?"), ("[", "spec.toml:1:"), ("cpus = 'two'", "cpus")]
    {
        std::fs::write(shipote.path("spec.toml"), text).unwrap();
        let (status, said) = code(&shipote, &["machine", "create", "odd", "-f", &at("spec.toml")]);
        assert!(status == Some(1) && said.contains(what) && said.lines().count() == 1, "{text}: {said}");
    }
    assert!(code(&shipote, &["machine", "create", "odd", "-f", &at("none")]).1.contains("/none"));
    shipote.ok(&["machine", "rm", "filed"]);
    shipote.ok(&["machine", "rm", "piped"]);
    // An agent that has gone since keeps no machine from starting, but is told of.
    drop(listener);
    std::fs::remove_file(&agent).unwrap();
    let started = shipote.run(&["machine", "start", "m", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&started.stdout).unwrap()["state"], "running");
    assert!(text(&started.stderr).contains("shipote: machine m: ssh_agent = "), "{}", text(&started.stderr));
    assert!(shipote.ok(&["machine", "stats", "m"]).contains("SSH_AUTH_SOCK"));
    let listed = shipote.json(&["machine", "ls", "--json"]);
    assert_eq!(listed["machines"][0]["disk_mib"], 64, "{listed}");
    assert!(shipote.ok(&["machine", "ls"]).contains("160 MiB, 1 cpu, 64 MiB disk"));

    // Commands: output, status, environment, folder, input, time.
    assert_eq!(shipote.ok(&["machine", "exec", "m", "--", "hostname"]), "m\n");
    let words = ["machine", "exec", "-e", "A=b c", "--cwd", "/tmp", "m", "--", "sh", "-c", "echo $A; pwd"];
    assert_eq!(shipote.ok(&words), "b c\n/tmp\n");
    assert_eq!(text(&shipote.fed(&["machine", "exec", "m", "--", "wc", "-c"], b"12345").stdout).trim(), "5");
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137)] {
        assert_eq!(code(&shipote, &["machine", "exec", "m", "--", "sh", "-c", script]).0, Some(status));
    }
    assert_eq!(code(&shipote, &["machine", "exec", "m", "--", "/none"]).0, Some(127));
    assert_eq!(code(&shipote, &["machine", "exec", "m", "--", "/etc/passwd"]).0, Some(126));
    assert_eq!(code(&shipote, &["machine", "exec", "--timeout", "0.3", "m", "--", "sleep", "100"]).0, Some(124));

    // Files, both ways.
    shipote.ok(&["machine", "cp", &at("file"), "m:/root/there"]);
    shipote.ok(&["machine", "cp", "m:/root/there", &at("back")]);
    assert_eq!(std::fs::read_to_string(shipote.path("back")).unwrap(), "from the host\n");
    assert!(code(&shipote, &["machine", "cp", "m:/none", &at("back")]).1.contains("/none"));
    assert!(code(&shipote, &["machine", "cp", &at("file"), &at("back")]).1.contains("NAME:/PATH"));

    // What it publishes, from now on and no more.
    let listen = free_port();
    rules(&shipote, listen, "machine:m:8080");
    shipote.ok(&["proxy", "reload"]);
    assert!(get(listen).is_some_and(|(status, body)| status == 503 && body.contains("does not publish port 8080")));
    assert_eq!(shipote.json(&["machine", "publish", "m", "8080", "--json"])["publish"], serde_json::json!(["8080"]));
    eventually("it is reached", || get(listen) == Some((200, "page\n".to_owned())));
    assert!(code(&shipote, &["machine", "publish", "m", "8081:8080"]).1.contains("stop it first"));
    assert_eq!(shipote.ok(&["machine", "publish", "m", "--remove", "8080"]), "m publishes nothing\n");
    eventually("it is reached no more", || get(listen).is_some_and(|(status, _)| status == 503));

    // Less of its memory, and all of it.
    for (size, status, what) in [
        ("much", 2, "or `all`"),
        ("0", 2, "without memory"),
        ("100M", 1, "give 101 MiB"),
        ("161M", 1, "to 160 MiB"),
        ("120000000", 1, "whole MiB"),
    ] {
        let (found, said) = code(&shipote, &["machine", "memory", "m", size]);
        assert!(found == Some(status) && said.contains(what), "{size}: {said}");
    }
    assert_eq!(shipote.ok(&["machine", "memory", "m", "128M"]), "m is to make do with 128 MiB\n");
    eventually("the guest does", || {
        let stats = shipote.json(&["machine", "stats", "m", "--json"]);
        stats["guest_memory_bytes"] == 128 << 20 && stats["guest_memory_target_bytes"] == 128 << 20
    });
    assert!(shipote.ok(&["machine", "stats", "m"]).contains("\nguest      128 MiB\n"));
    assert!(shipote.ok(&["machine", "ls"]).contains("128 of 160 MiB, 1 cpu, 64 MiB disk"));
    assert_eq!(shipote.json(&["machine", "memory", "m", "all", "--json"])["memory_target_bytes"], 160 << 20);
    let state = at("state");
    let audit = shipote.ok(&["audit", "--json", "--state", &state, "--action", "machine.change"]);
    let results = |what: &str| audit.lines().filter(|line| line.contains(what)).count();
    assert_eq!((results("\"ok\""), results("whole MiB")), (2, 3), "{audit}");

    // What it takes and how it is confined.
    let stats = shipote.json(&["machine", "stats", "m", "--json"]);
    assert!(stats["memory_bytes"].as_u64().unwrap() > 16 << 20 && stats["cpu_usec"].as_u64().unwrap() > 0, "{stats}");
    let confinement = stats["confinement"].as_array().unwrap();
    for name in ["landlock", "seccomp", "capabilities", "own-user", "cgroup"] {
        assert!(confinement.iter().any(|mechanism| mechanism[0] == name), "{name} in {stats}");
    }
    assert!(shipote.ok(&["machine", "stats", "m"]).contains("landlock"));
    shipote.ok(&["machine", "exec", "m", "--", "sh", "-c", "echo words > /dev/console"]);
    eventually("the console has what was written", || shipote.ok(&["machine", "logs", "m"]).contains("words"));

    // It stands still, and goes on.
    assert_eq!(shipote.json(&["machine", "pause", "m", "--json"])["state"], "paused");
    assert!(code(&shipote, &["machine", "cp", "m:/etc/passwd", &at("back")]).1.contains("paused"));
    assert_eq!(shipote.json(&["machine", "resume", "m", "--json"])["state"], "running");

    // A raw door, for any client of the protocol, and for nobody else.
    let mut door = shipote.shipote(&["machine", "agent", "m"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(door.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let socket = std::path::PathBuf::from(said["socket"].as_str().unwrap());
    let mode = std::os::unix::fs::PermissionsExt::mode(&socket.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut client = UnixStream::connect(&socket).unwrap();
    assert_eq!(ask(&mut client, &serde_json::json!({"method": "ping"}))["version"], 1);
    kill_process(Pid::from_raw(i32::try_from(door.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    door.wait().unwrap();
    assert!(!socket.exists());

    // A snapshot, and a machine that begins as it.
    let taken = shipote.json(&["machine", "snapshot", "m", "clean", "--json"]);
    assert_eq!((taken["consistency"].as_str(), taken["machine"].as_str()), (Some("synced"), Some("m")));
    assert_eq!(shipote.json(&["machine", "snapshot", "ls", "--json"])["snapshots"][0]["name"], "clean");
    shipote.ok(&["machine", "create", "second", "--from", "clean", "--memory", "128"]);
    let listed = shipote.json(&["machine", "ls", "--json"]);
    assert_eq!((&listed["machines"][1]["memory_mib"], &listed["machines"][1]["disk_mib"]), (&128.into(), &64.into()));
    shipote.ok(&["machine", "rm", "second"]);
    shipote.ok(&["machine", "snapshot", "rm", "clean"]);
    assert!(code(&shipote, &["machine", "snapshot", "rm", "clean"]).1.contains("snapshot ls"));

    // One that runs is not removed by accident.
    let (status, said) = code(&shipote, &["machine", "rm", "m"]);
    assert!(status == Some(1) && said.contains("stop it first"), "{said}");
    assert_eq!(shipote.json(&["machine", "stop", "m", "--json"])["state"], "stopped");
    assert!(code(&shipote, &["machine", "stop", "m"]).1.contains("it is stopped"));
    shipote.ok(&["machine", "start", "m"]);
    shipote.ok(&["machine", "rm", "--force", "m"]);
    assert_eq!(shipote.json(&["machine", "ls", "--json"])["machines"], serde_json::json!([]));

    // Each change is one record; what was refused is there with its reason.
    let records = |action: &str| -> Vec<Value> {
        let lines = shipote.ok(&["audit", "--json", "--state", &at("state"), "--action", action]);
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for (action, count) in [
        ("machine.start", 3),
        ("machine.pause", 1),
        ("machine.resume", 1),
        ("machine.snapshot", 1),
        ("machine.delete", 6),
    ] {
        let found = records(action);
        assert_eq!(found.len(), count, "{action}: {found:?}");
    }
}

#[test]
fn a_machine_that_is_made_for_one_command_runs_images_from_files_and_leaves_nothing() {
    let shipote = Appliance::start_in(&image());
    let root = shipote.path("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    // A static program is all that a root needs.
    let source = shipote.path("hello.c");
    std::fs::write(&source, "#include <unistd.h>\nint main(void) { return write(1, \"hello\\n\", 6) == 6 ? 3 : 1; }\n")
        .unwrap();
    let compiled = std::process::Command::new("cc")
        .args(["-static", "-o"])
        .args([&root.join("bin/hello"), &source])
        .status()
        .unwrap();
    assert!(compiled.success());
    let folder = root.display().to_string();
    let output = shipote.run(&["machine", "run", "--memory", "128", "--rootfs", &folder, "--", "/bin/hello"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(3), "hello\n".to_owned()),
        "{}",
        text(&output.stderr)
    );

    // An OCI layout that says what to run, as a folder; then the same one spoilt.
    let layout = shipote.path("layout");
    lay_out(&root, &layout);
    let folder = layout.display().to_string();
    let output = shipote.run(&["machine", "run", "--memory", "128", "--image", &folder]);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(3), "hello\n".to_owned()),
        "{}",
        text(&output.stderr)
    );
    let index = layout.join("index.json");
    std::fs::write(&index, std::fs::read_to_string(&index).unwrap().replace("sha256:", "sha256:0")).unwrap();
    let output = shipote.run(&["machine", "run", "--memory", "128", "--image", &folder]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("digest"), "{}", text(&output.stderr));
    assert_eq!(shipote.json(&["machine", "ls", "--json"])["machines"], serde_json::json!([]));
}

/// An image of one layer, as `skopeo copy dir:… oci:…` would lay it out, with the tools that every host has.
fn lay_out(root: &std::path::Path, layout: &std::path::Path) {
    let script = r#"
set -e; mkdir -p "$2/blobs/sha256"; cd "$2"
blob() { sum=$(sha256sum < "$1" | cut -c1-64); size=$(stat -c %s "$1"); mv "$1" "blobs/sha256/$sum"; }
tar -C "$1" -cf layer .; id=$(sha256sum < layer | cut -c1-64); gzip -n layer; blob layer.gz; layer="{\"digest\":\"sha256:$sum\",\"size\":$size}"
printf '{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/bin/hello"]},"rootfs":{"diff_ids":["sha256:%s"]}}' "$id" > config
blob config; printf '{"schemaVersion":2,"config":{"digest":"sha256:%s","size":%s},"layers":[%s]}' "$sum" "$size" "$layer" > manifest
blob manifest; printf '{"schemaVersion":2,"manifests":[{"digest":"sha256:%s","size":%s}]}' "$sum" "$size" > index.json
printf '{"imageLayoutVersion":"1.0.0"}' > oci-layout
"#;
    let status = std::process::Command::new("sh").args(["-c", script, "sh"]).args([root, layout]).status().unwrap();
    assert!(status.success());
}
