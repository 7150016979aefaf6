//! The kinds of permission of a workspace, over both doors.

use std::os::unix::fs::PermissionsExt;

use shipote_workspace_protocol::spec::{Filesystem, Networking, WorkspaceSpec};
use shipote_workspace_protocol::{Request, Response};

use crate::socket::Client;
use crate::support::{Appliance, text};

/// What a command prints with these permissions: by the bus and by the socket.
fn both(shipote: &Appliance, permissions: &str, change: impl FnOnce(&mut WorkspaceSpec), script: &str) -> [String; 2] {
    let spec = format!("[permissions]\n{permissions}\n");
    let file = shipote.path("spec.toml");
    std::fs::write(&file, spec).unwrap();
    let output = shipote.run(&["run", "-f", file.to_str().unwrap(), "--", "sh", "-c", script]);
    let by_bus = text(&output.stdout);
    assert!(output.status.success(), "{permissions}: {}", text(&output.stderr));
    let mut spec = WorkspaceSpec { label: "permissions".to_owned(), ..WorkspaceSpec::default() };
    change(&mut spec);
    let mut client = Client::connect(shipote);
    let Response::WorkspaceCreated { id, .. } = client.ask(&Request::WorkspaceCreate { spec }) else {
        panic!("{permissions} is refused by the socket")
    };
    let (command, _) = client.run(id, &["sh", "-c", script]);
    client.ended(id, command);
    let by_socket = client.log(id, command, 0, "stdout");
    assert!(matches!(client.ask(&Request::WorkspaceStop { id, grace_ms: 0 }), Response::WorkspaceStopped { .. }));
    [by_bus, by_socket]
}

#[test]
fn each_kind_holds_over_both_doors() {
    let shipote = Appliance::start();
    let folder = ["/var/tmp", "/opt", "/srv"].iter().find_map(|p| tempfile::tempdir_in(p).ok()).unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "host").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();

    let touch = format!("cat {0}; echo new 2>/dev/null > {0}; true", file.display());
    let none = both(&shipote, "", |_| {}, &format!("{touch} 2>/dev/null"));
    assert_eq!(none, [String::new(), String::new()]);
    let read = |s: &mut WorkspaceSpec| s.permissions.filesystem = Filesystem::ReadOnly;
    assert_eq!(both(&shipote, "filesystem = 'read-only'", read, &touch), ["host", "host"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "host");
    let write = |s: &mut WorkspaceSpec| s.permissions.filesystem = Filesystem::ReadWrite;
    assert_eq!(both(&shipote, "filesystem = 'read-write'", write, &touch), ["host", "new\n"]);
    // the service's own folders are in no view of the host
    let own = format!("ls -A {} 2>/dev/null | head -n 3; true", shipote.path("state/workspaces").display());
    assert_eq!(both(&shipote, "filesystem = 'read-write'", write, &own), ["", ""]);

    let connect = format!(
        "perl -e 'use Socket; socket(S,PF_INET,SOCK_STREAM,0); \
         print connect(S,sockaddr_in({port},inet_aton(\"127.0.0.1\"))) ? 1 : 0'"
    );
    let loopback = |s: &mut WorkspaceSpec| s.permissions.networking = Networking::Loopback;
    assert_eq!(both(&shipote, "networking = 'loopback'", loopback, &connect), ["0", "0"]);
    let full = |s: &mut WorkspaceSpec| s.permissions.networking = Networking::Full;
    assert_eq!(both(&shipote, "networking = 'full'", full, &connect), ["1", "1"]);

    let own = std::process::id();
    let look = format!("test -e /proc/{own}/comm && cat /proc/{own}/comm; true");
    assert_eq!(both(&shipote, "", |_| {}, &look), ["", ""]);
    let name = std::fs::read_to_string(format!("/proc/{own}/comm")).unwrap();
    let processes = |s: &mut WorkspaceSpec| s.permissions.processes = true;
    assert_eq!(both(&shipote, "processes = true", processes, &look), [name.as_str(), name.as_str()]);

    let socket = folder.path().join("socket");
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let path = socket.display().to_string();
    let connect = format!(
        "perl -e 'use Socket; socket(S,PF_UNIX,SOCK_STREAM,0); print connect(S,pack_sockaddr_un(\"{path}\")) ? 1 : 0'"
    );
    assert_eq!(both(&shipote, "", |_| {}, &connect), ["0", "0"]);
    let allow = |s: &mut WorkspaceSpec| s.permissions.ipc.allow = vec![path.clone()];
    assert_eq!(both(&shipote, &format!("ipc.allow = ['{path}']"), allow, &connect), ["1", "1"]);
}

#[test]
fn what_is_shared_with_the_host_is_reported() {
    let shipote = Appliance::start();
    let file = shipote.path("spec.toml");
    std::fs::write(&file, "[permissions]\nnetworking = 'full'\nprocesses = true\n").unwrap();
    let made = shipote.json(&["workspace", "create", "open", "-f", file.to_str().unwrap(), "--json"]);
    for name in ["network-namespace", "own-proc"] {
        let found = made["isolation"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap();
        assert_eq!(found["state"], "missing", "{found}");
    }
}

#[test]
fn a_run_is_explained_and_goes_on_as_ever() {
    let shipote = Appliance::start();
    let script = "echo out; cat /root/secret; echo x > /usr/new; mount -t tmpfs none /tmp; exit 3";
    let output = shipote.run(&["run", "--explain", "--", "sh", "-c", script]);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((output.status.code(), out.as_str()), (Some(3), "out\n"), "{err}");
    for (why, object) in [("absent", "/root/secret"), ("read-only", "/usr/new"), ("system-call", "mount")] {
        assert!(err.lines().any(|line| line.starts_with(why) && line.contains(object)), "{why} {object} in\n{err}");
    }
    let output = shipote.run(&["run", "--explain", "--json", "--", "sh", "-c", "exec 2>&-; echo x > /usr/new"]);
    let object: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
    let told = &object["refusals"].as_array().unwrap()[0];
    assert_eq!((told["object"].as_str(), told["error"].as_str()), (Some("/usr/new"), Some("EROFS")), "{object}");
    assert!(object["exit_status"].as_i64().unwrap() != 0);
    let quiet = shipote.run(&["run", "--explain", "--", "true"]);
    assert!(text(&quiet.stderr).contains("refused nothing"), "{}", text(&quiet.stderr));
    // a workspace that explains, and one that does not
    let file = shipote.path("explain.toml");
    std::fs::write(&file, "explain = true\n").unwrap();
    shipote.ok(&["workspace", "create", "told", "-f", file.to_str().unwrap()]);
    shipote.ok(&["run", "-w", "told", "--explain", "--", "sh", "-c", "cat /root/secret 2>/dev/null; true"]);
    let listed = shipote.json(&["ps", "--all", "--json"]);
    let id = listed["commands"].as_array().unwrap().iter().find(|c| c["workspace"] == "told").unwrap()["id"].clone();
    let told = shipote.json(&["explain", id.as_str().unwrap(), "--json"]);
    assert_eq!(told["refusals"][0]["object"], "/root/secret", "{told}");
    shipote.ok(&["workspace", "create", "silent"]);
    let refused = shipote.run(&["run", "-w", "silent", "--explain", "--", "true"]);
    assert!(text(&refused.stderr).contains("explain = true"), "{}", text(&refused.stderr));
}

#[test]
fn what_a_workspace_leaves_is_as_its_spec_says() {
    let mut shipote = Appliance::start();
    let file = shipote.path("spec.toml");
    let life = |shipote: &Appliance, policy: &str, script: &str| {
        std::fs::write(&file, format!("on_exit = '{policy}'\n")).unwrap();
        shipote.ok(&["workspace", "create", policy, "-f", file.to_str().unwrap()]);
        let out = shipote.ok(&["run", "-w", policy, "--", "sh", "-c", script]);
        shipote.ok(&["workspace", "stop", policy]);
        out
    };
    let leave = "mkdir d && echo left > d/file && chmod 700 d && ln -s file d/link && stat -c %u:%g . d d/file | uniq";
    let look = "cat d/link 2>/dev/null; true";
    for (policy, again) in [("reap", ""), ("keep", ""), ("snapshot", "left\n")] {
        assert_eq!(life(&shipote, policy, leave), "1000:1000\n", "{policy}");
        assert_eq!(life(&shipote, policy, look), again, "{policy}");
    }
    // across a restart of everything; and a crash loses nothing that was written
    shipote.stop();
    shipote.restart();
    assert_eq!(life(&shipote, "snapshot", &format!("{look}; echo more > d/file")), "left\n");
    std::fs::write(&file, "on_exit = 'snapshot'\n").unwrap();
    let made = shipote.json(&["workspace", "create", "snapshot", "-f", file.to_str().unwrap(), "--json"]);
    let weak = made["isolation"].as_array().unwrap().iter().find(|m| m["name"] == "scratch-limit").unwrap();
    assert_eq!(weak["state"], "degraded", "{weak}");
    shipote.ok(&["run", "-w", "snapshot", "--", "sh", "-c", "echo last > d/file"]);
    rustix::process::kill_process(shipote.service("workspaces"), rustix::process::Signal::KILL).unwrap();
    shipote.stop();
    shipote.restart();
    assert_eq!(life(&shipote, "snapshot", look), "last\n");
    // what was kept lies there for whoever looks after the machine
    let kept = std::fs::read_dir(shipote.path("state/workspaces/kept")).unwrap().next().unwrap().unwrap().path();
    let names = std::fs::read_dir(kept).unwrap().flatten().filter(|e| e.path().join("d/file").exists()).count();
    assert_eq!(names, 2, "one of each");
    // one that is made for a command has no name to come back under
    let refused = shipote.run(&["run", "-f", file.to_str().unwrap(), "--", "true"]);
    assert!(text(&refused.stderr).contains("on_exit"), "{}", text(&refused.stderr));
}

#[test]
fn what_a_workspace_keeps_is_bounded() {
    let shipote = Appliance::start();
    let file = shipote.path("spec.toml");
    std::fs::write(&file, "on_exit = 'snapshot'\nscratch_bytes = 2097152\n").unwrap();
    let create = ["workspace", "create", "full", "-f", file.to_str().unwrap(), "--json"];
    let made = shipote.json(&create);
    let weak = made["isolation"].as_array().unwrap().iter().find(|m| m["name"] == "scratch-limit").unwrap();
    // as root, too, whose service may not look at its files: they are of an id of the workspace's own
    assert!(weak["reason"].as_str().unwrap().contains("more than 2097152 bytes"), "{weak}");
    shipote.ok(&["run", "-w", "full", "--", "sh", "-c", "head -c 1000000 /dev/urandom > fits"]);
    // a disk filler is ended, and says why
    let filler = "mkdir -p a/b; while :; do head -c 1000000 /dev/urandom >> a/b/more; sleep 0.1; done";
    let ended = shipote.run(&["run", "-w", "full", "--json", "--", "sh", "-c", filler]);
    let result: serde_json::Value = serde_json::from_str(&text(&ended.stdout)).unwrap();
    assert_eq!(result["reason"], "quota", "{result}");
    let told = result["message"].as_str().unwrap();
    assert!(told.contains("more than 2097152 bytes") && told.contains("scratch_bytes"), "{told}");
    shipote.ok(&["workspace", "stop", "full"]);
    let refused = shipote.run(&create[..5]);
    let told = text(&refused.stderr);
    assert!(refused.status.code() == Some(1) && told.contains("on_exit") && told.contains("remove some of"), "{told}");
    std::fs::write(&file, "on_exit = 'snapshot'\nscratch_bytes = 1073741824\n").unwrap();
    shipote.ok(&create[..5]);
    assert_eq!(shipote.ok(&["run", "-w", "full", "--", "stat", "-c", "%s", "fits"]), "1000000\n");
}

#[test]
fn an_overlay_is_kept_with_the_rest_and_the_host_stays_as_it_is() {
    let shipote = Appliance::start();
    let place = ["/var/tmp", "/opt", "/srv"].iter().find_map(|p| tempfile::tempdir_in(p).ok()).unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let source = place.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "host").unwrap();
    if rustix::process::geteuid().is_root() {
        for path in [source.join("file"), source.clone()] {
            std::os::unix::fs::chown(path, Some(4242), Some(4242)).unwrap();
        }
    }
    let spec = |on_exit: &str| {
        let file = shipote.path(on_exit);
        let grant = format!("[[paths]]\npath = '{}'\ntarget = '/source'\naccess = 'overlay'\n", source.display());
        std::fs::write(&file, format!("on_exit = '{on_exit}'\n{grant}")).unwrap();
        file.display().to_string()
    };
    for (on_exit, again) in [("reap", "host"), ("snapshot", "changed")] {
        let file = spec(on_exit);
        shipote.ok(&["workspace", "create", on_exit, "-f", &file]);
        shipote.ok(&["run", "-w", on_exit, "--", "sh", "-c", "printf changed > /source/file; echo x > /work/y"]);
        assert_eq!(shipote.ok(&["run", "-w", on_exit, "--", "cat", "/source/file"]), "changed");
        shipote.ok(&["workspace", "stop", on_exit]);
        assert_eq!(std::fs::read_to_string(source.join("file")).unwrap(), "host");
        shipote.ok(&["workspace", "create", on_exit, "-f", &file]);
        assert_eq!(shipote.ok(&["run", "-w", on_exit, "--", "cat", "/source/file"]), again);
    }
}
