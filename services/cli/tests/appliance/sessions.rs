//! Sessions: made from templates, used, written down, gone on from.

use std::path::Path;
use std::process::Command;

use crate::support::{Appliance, eventually, image, text};

/// An appliance with one template.
fn appliance() -> Appliance {
    let shipote = Appliance::start();
    let folder = shipote.config().join("sessions");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("greeter.toml"),
        "publish = [80]\n[env]\nGREETING = 'hello'\n[permissions]\nnetworking = 'loopback'\n",
    )
    .unwrap();
    shipote
}

/// `shipote session …` with the appliance's configuration folder.
fn session(shipote: &Appliance, words: &[&str]) -> std::process::Output {
    let config = shipote.path("xdg");
    shipote.shipote(&[&["session"], words].concat()).env("XDG_CONFIG_HOME", config).output().unwrap()
}

fn ok(shipote: &Appliance, words: &[&str]) -> String {
    let output = session(shipote, words);
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Whether there is no session.
fn none(shipote: &Appliance) -> bool {
    let list: serde_json::Value = serde_json::from_str(&ok(shipote, &["ls", "--json"])).unwrap();
    list == serde_json::json!({"sessions": [], "machines": []})
}

#[test]
fn a_session_is_made_from_a_template_with_what_the_command_line_adds() {
    let shipote = appliance();
    ok(&shipote, &["create", "box", "--template", "greeter", "--publish", "8080", "--env", "MORE=1", "--ttl", "1h"]);
    assert_eq!(ok(&shipote, &["exec", "box", "--", "sh", "-c", "echo $GREETING $MORE"]), "hello 1\n");
    assert_eq!(session(&shipote, &["exec", "box", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let show: serde_json::Value = serde_json::from_str(&ok(&shipote, &["show", "box", "--json"])).unwrap();
    assert_eq!(show["endpoints"], serde_json::json!(["workspace:box:80", "workspace:box:8080"]), "{show}");
    assert!(show["spec"].as_str().unwrap().contains("ttl = 3600000"), "{show}");
    let list: serde_json::Value = serde_json::from_str(&ok(&shipote, &["ls", "--json"])).unwrap();
    assert_eq!(list["sessions"][0]["labels"]["session"], "greeter");
    ok(&shipote, &["rm", "box"]);
    assert!(none(&shipote));
}

#[test]
fn files_and_folders_go_in_and_out() {
    let shipote = appliance();
    ok(&shipote, &["create", "box"]);
    let here = |name: &str| shipote.path(name).display().to_string();
    // more than a pipe holds, and no text
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(here("in"), &bytes).unwrap();
    ok(&shipote, &["cp", &here("in"), "box:/work/deep/er/file"]);
    ok(&shipote, &["cp", "box:/work/deep/er/file", &here("out")]);
    assert_eq!(std::fs::read(here("out")).unwrap(), bytes);
    std::fs::create_dir_all(here("folder/sub")).unwrap();
    std::fs::write(here("folder/sub/a"), "a").unwrap();
    ok(&shipote, &["cp", "-r", &here("folder"), "box:/work/folder"]);
    // what leads out of the folder stays in it
    ok(&shipote, &["exec", "box", "--", "ln", "-s", "/etc/passwd", "/work/folder/link"]);
    ok(&shipote, &["cp", "-r", "box:/work/folder", &here("again")]);
    assert_eq!(std::fs::read_to_string(here("again/sub/a")).unwrap(), "a");
    assert!(std::fs::symlink_metadata(here("again/link")).unwrap().is_symlink());
    for (words, says) in [
        (["cp", &here("nothing"), "box:/work/x"], "No such file"),
        (["cp", &here("folder"), "box:/work/x"], "copy it with -r"),
        (["cp", "box:/work/nothing", &here("x")], "ended with status 1"),
        (["cp", "other:/work/a", &here("x")], "does not exist"),
        (["cp", &here("in"), &here("x")], "NAME:PATH"),
    ] {
        let output = session(&shipote, &words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text(&output.stderr).contains(says), "{words:?}: {}", text(&output.stderr));
        assert!(!Path::new(&here("x")).exists(), "nothing half is left");
    }
}

#[test]
fn a_snapshot_goes_on_under_its_own_name_and_under_others() {
    let shipote = appliance();
    ok(&shipote, &["create", "box", "--template", "greeter"]);
    ok(&shipote, &["exec", "box", "--", "sh", "-c", "echo kept > /work/a; mkdir /work/b; chmod 750 /work/b"]);
    let file = shipote.path("box.tar").display().to_string();
    ok(&shipote, &["snapshot", "box", &file]);
    ok(&shipote, &["rm", "box"]);
    ok(&shipote, &["resume", &file]);
    let look = "cat /work/a; stat -c %a /work/b; echo $GREETING";
    assert_eq!(ok(&shipote, &["exec", "box", "--", "sh", "-c", look]), "kept\n750\nhello\n");
    // put where templates are, it is one
    std::fs::copy(&file, shipote.config().join("sessions/warm.tar")).unwrap();
    ok(&shipote, &["create", "second", "--template", "warm"]);
    assert_eq!(ok(&shipote, &["exec", "second", "--", "cat", "/work/a"]), "kept\n");
    let cut = shipote.path("cut.tar");
    let bytes = std::fs::read(&file).unwrap();
    // in the middle of a file, and between two of them
    let content = bytes.windows(4).position(|window| window == b"kept").unwrap();
    for at in [content + 2, content - 512, content + 512] {
        std::fs::write(&cut, &bytes[..at]).unwrap();
        let output = session(&shipote, &["create", "third", "-f", cut.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{at}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains("its end is missing"), "{}", text(&output.stderr));
        assert!(!shipote.ok(&["workspace", "list", "--json"]).contains("third"), "half a session is none");
    }
}

#[test]
fn what_is_no_session_or_template_is_said() {
    let shipote = appliance();
    shipote.ok(&["workspace", "create", "plain"]);
    let odd = shipote.path("odd.toml");
    std::fs::write(&odd, "pubilsh = [80]\n").unwrap();
    for (words, says) in [
        (&["create", "a", "--template", "greter"][..], "there are greeter"),
        (&["create", "a", "--template", "../x"], "is no name"),
        (&["create", "a", "-f", odd.to_str().unwrap()], "publish"),
        (&["show", "plain"], "is a workspace that is none"),
        (&["rm", "nothing"], "does not exist"),
        (&["resume", "/etc/hostname"], "/etc/hostname"),
    ] {
        let output = session(&shipote, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text(&output.stderr).contains(says), "{words:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_examples_of_the_documentation_run_as_they_stand() {
    let shipote = appliance();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let programs = Path::new(env!("CARGO_BIN_EXE_shipote")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    for name in ["session_dbus.py", "session_cli.py"] {
        let output = Command::new("/usr/bin/python3")
            .arg(examples.join(name))
            .arg("box")
            .env("SHIPOTE_BUS_ADDRESS", shipote.address())
            .env("PATH", &path)
            .output()
            .unwrap();
        assert_eq!(text(&output.stdout), "0 hello 6\n1\n", "{name}: {}", text(&output.stderr));
        assert!(none(&shipote));
    }
}

#[test]
fn a_session_in_a_machine_is_used_like_any_other() {
    let shipote = Appliance::start_in(&image());
    let folder = shipote.config().join("sessions");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("vm.toml"), "machine = true\nmemory_mib = 128\n").unwrap();
    ok(&shipote, &["create", "box", "--template", "vm", "--publish", "8080", "--idle", "2", "--ttl", "1h"]);
    let show: serde_json::Value = serde_json::from_str(&ok(&shipote, &["show", "box", "--json"])).unwrap();
    assert_eq!(show["endpoints"], serde_json::json!(["machine:box:8080"]), "{show}");
    assert!(show["labels"]["session"] == "vm" && show["expires_unix"].as_u64() > Some(0), "{show}");
    let hello = ["exec", "box", "-e", "WHO=you", "--", "sh", "-c", "echo hello $WHO of $(hostname)"];
    assert_eq!(ok(&shipote, &hello), "hello you of box\n");
    assert_eq!(session(&shipote, &["exec", "box", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    let here = |name: &str| shipote.path(name).display().to_string();
    std::fs::write(here("in"), "bytes").unwrap();
    ok(&shipote, &["cp", &here("in"), "box:/root/file"]);
    // it sleeps, and the next command wakes it
    let state = || {
        serde_json::from_str::<serde_json::Value>(&ok(&shipote, &["show", "box", "--json"])).unwrap()["state"].clone()
    };
    eventually("it sleeps", || state() == "sleeping");
    ok(&shipote, &["cp", "box:/root/file", &here("out")]);
    assert_eq!(std::fs::read_to_string(here("out")).unwrap(), "bytes");
    for (words, says) in [
        (&["exec", "box", "--detach", "--", "true"][..], "--detach is for sessions that are workspaces"),
        (&["create", "b", "--template", "vm", "--env", "A=1"], "session exec"),
        (&["cp", "-r", "/etc", "box:/root/etc"], "box is a machine"),
    ] {
        let output = session(&shipote, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text(&output.stderr).contains(says), "{words:?}: {}", text(&output.stderr));
    }
    ok(&shipote, &["rm", "box"]);
    assert!(none(&shipote));
    // one whose time is over goes by itself, with the machine
    ok(&shipote, &["create", "brief", "--template", "vm", "--ttl", "20s"]);
    eventually("it is gone", || none(&shipote));
    let state = shipote.path("state");
    let audit = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--object", "brief"]);
    assert!(audit.contains("machine.delete"), "{audit}");
}

#[test]
fn a_living_session_publishes_more_and_less() {
    let appliance = Appliance::start();
    let listen = crate::support::free_port();
    crate::endpoints::rules(&appliance, listen, "workspace:box:8081");
    appliance.ok(&["proxy", "reload"]);
    appliance.ok(&["session", "create", "box", "--publish", "8080"]);
    appliance.ok(&["run", "-w", "box", "--detach", "--", "perl", "-e", crate::endpoints::SERVER, "8081", "late"]);
    let get = || crate::endpoints::get(listen);
    assert!(get().is_some_and(|(status, body)| status == 503 && body.contains("does not publish port 8081")));
    let said = appliance.json(&["session", "publish", "box", "8081", "--json"]);
    assert_eq!(said["publish"], serde_json::json!(["8080", "8081"]));
    eventually("it is reached", || get() == Some((200, "late".to_owned())));
    assert!(appliance.ok(&["session", "show", "box"]).contains("workspace:box:8081"));
    assert!(appliance.ok(&["session", "publish", "box", "--remove", "8081"]).ends_with("workspace:box:8080\n"));
    eventually("it is reached no more", || get().is_some_and(|(status, _)| status == 503));
    appliance.ok(&["session", "create", "shut"]);
    appliance.ok(&["workspace", "create", "plain", "--publish", "80"]);
    for (name, ports, wanted) in [
        ("shut", "80", "permissions.networking"),
        ("none", "80", "none"),
        ("plain", "80", "plain"),
        ("box", "much", "it is no port"),
        ("box", "0", "is 0"),
    ] {
        let refused = appliance.run(&["session", "publish", name, ports]);
        assert!(
            !refused.status.success() && text(&refused.stderr).contains(wanted),
            "{name}: {}",
            text(&refused.stderr)
        );
    }
    assert_eq!(appliance.run(&["session", "publish", "box"]).status.code(), Some(2));
    let state = appliance.path("state").display().to_string();
    let audit = appliance.ok(&["audit", "--state", &state, "--object", "box"]);
    assert!(audit.contains("workspace.publish") && audit.contains("workspace.unpublish"), "{audit}");
}
