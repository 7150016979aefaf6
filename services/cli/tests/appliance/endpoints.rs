//! What workspaces and machines publish is reached through the proxy by their names.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::{Appliance, eventually, free_port, image};

/// A server of one page, the demo's: its arguments are the port and the page.
pub(crate) const SERVER: &str = include_str!("../../../xtask/demo/web.pl");

/// Status and body of the answer to a request.
pub(crate) fn get(port: u16) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

pub(crate) fn rules(appliance: &Appliance, listen: u16, upstream: &str) {
    rule(appliance, listen, &json!({"type": "http_proxy", "upstream": upstream}));
}

/// One rule for all that comes to a port.
pub(crate) fn rule(appliance: &Appliance, listen: u16, terminate: &serde_json::Value) {
    let folder = appliance.config().join("proxy/rules");
    std::fs::create_dir_all(&folder).unwrap();
    let rules = json!({"rules": [{
        "name": "web",
        "listen": [format!("127.0.0.1:{listen}")],
        "terminate": terminate,
    }]});
    std::fs::write(folder.join("web.json"), rules.to_string()).unwrap();
}

#[test]
fn a_published_port_is_reached_by_name_and_follows_the_workspace() {
    let appliance = Appliance::start();
    let listen = free_port();
    rules(&appliance, listen, "workspace:web:8080");
    appliance.ok(&["proxy", "reload"]);

    let unknown = get(listen).unwrap();
    assert!(unknown.0 == 503 && unknown.1.contains("does not exist"), "no such workspace yet: {unknown:?}");

    // the name is what counts: a workspace that is made anew is reached as the one before
    for page in ["first", "second"] {
        appliance.ok(&["workspace", "create", "web", "--publish", "8080"]);
        appliance.ok(&["run", "-w", "web", "--detach", "--", "perl", "-e", SERVER, "8080", page]);
        eventually("the page is served", || get(listen) == Some((200, page.to_owned())));
        for _ in 0..20 {
            assert_eq!(get(listen), Some((200, page.to_owned())));
        }
        appliance.ok(&["workspace", "stop", "web"]);
        assert_eq!(get(listen).unwrap().0, 503, "the workspace is gone");
    }
}

#[test]
fn what_is_not_published_is_not_reached() {
    let appliance = Appliance::start();
    let listen = free_port();
    rules(&appliance, listen, "workspace:web:8081");
    appliance.ok(&["proxy", "reload"]);
    appliance.ok(&["workspace", "create", "web", "--publish", "8080"]);
    appliance.ok(&["run", "-w", "web", "--detach", "--", "perl", "-e", SERVER, "8081", "secret"]);
    eventually("the server listens", || {
        let table = appliance.run(&["run", "-w", "web", "--", "cat", "/proc/net/tcp"]);
        String::from_utf8_lossy(&table.stdout).contains(":1F91 ")
    });
    let (status, body) = get(listen).unwrap();
    assert!(status == 503 && body.contains("does not publish port 8081"), "{status} {body}");
    // what is published and has no server is another thing: the way is there, and it is bad
    rules(&appliance, listen, "workspace:web:8080");
    appliance.ok(&["proxy", "reload"]);
    assert_eq!(get(listen).unwrap().0, 502);
}

#[test]
fn publishing_needs_a_network_and_ports() {
    let appliance = Appliance::start();
    for (spec, wanted) in [
        ("publish = [8080]\n", "loopback"),
        ("publish = [0]\n[permissions]\nnetworking = \"loopback\"\n", "publish[0]"),
        ("publish = [80, 80]\n[permissions]\nnetworking = \"loopback\"\n", "publish[1]"),
    ] {
        let file = appliance.path("spec.toml");
        std::fs::write(&file, spec).unwrap();
        let refused = appliance.run(&["workspace", "create", "odd", "-f", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(wanted), "{spec}: {said}");
    }
}

/// A machine that serves a page of its name, asleep after a second without a request.
fn web_machine(appliance: &Appliance, name: &str, then: &str) {
    let serve = format!("mkdir -p /www; echo {name} > /www/index.html; exec busybox httpd -f -p 8080 -h /www");
    let mut words = vec!["machine", "create", name, "--memory", "128", "--publish", "8080"];
    words.extend(["--idle", "1", "--idle-then", then, "--", "sh", "-c", &serve]);
    appliance.ok(&words);
    appliance.ok(&["machine", "start", name]);
}

fn machine(appliance: &Appliance, name: &str) -> serde_json::Value {
    let all = appliance.json(&["machine", "ls", "--json"]);
    all["machines"].as_array().unwrap().iter().find(|m| m["name"] == name).cloned().unwrap()
}

fn sleeps(appliance: &Appliance, name: &str) {
    eventually("the machine sleeps", || machine(appliance, name)["state"] == "sleeping");
}

#[test]
fn machines_are_reached_by_name_sleep_and_are_woken_by_requests() {
    let appliance = Appliance::start_in(&image());
    let listen = free_port();
    let upstreams = ["machine:one:8080", "machine:two:8080"];
    let health = json!({"path": "/", "interval": "500ms"});
    rule(&appliance, listen, &json!({"type": "http_proxy", "upstreams": upstreams, "health_check": health}));
    appliance.ok(&["proxy", "reload"]);
    assert!(get(listen).is_some_and(|(status, body)| status == 503 && body.contains("there is none of this name")));

    // several balance, whatever becomes of one
    web_machine(&appliance, "one", "pause");
    eventually("one answers", || get(listen) == Some((200, "one\n".to_owned())));
    web_machine(&appliance, "two", "stop");
    let mut seen = std::collections::BTreeSet::new();
    eventually("both answer", || {
        seen.insert(get(listen).unwrap());
        seen.len() == 2
    });
    assert!(seen.iter().all(|(status, _)| *status == 200), "{seen:?}");

    // looking whether they are well keeps neither awake
    for name in ["one", "two"] {
        sleeps(&appliance, name);
        assert!(name == "one" || machine(&appliance, name)["memory_given_back"].as_u64() > Some(0));
    }
    // which of the two a request goes to is its worker's choice, so there are as many as it takes
    let mut woken = std::collections::BTreeSet::new();
    eventually("requests have woken both", || {
        let (status, name) = get(listen).unwrap();
        assert_eq!(status, 200, "held until it is awake: {name}");
        woken.insert(name);
        woken.len() == 2
    });
    for name in ["one", "two"] {
        let woken = machine(&appliance, name);
        assert!(woken["sleeps"].as_u64() >= Some(1) && woken["wake_usec"].as_u64() > Some(0), "{woken}");
    }

    // a command wakes one too, and its service may be killed while they sleep
    for name in ["one", "two"] {
        sleeps(&appliance, name);
    }
    let before = appliance.service("machines");
    rustix::process::kill_process(before, rustix::process::Signal::KILL).unwrap();
    eventually("the next instance answers", || {
        appliance.run(&["machine", "ls"]).status.success() && appliance.service("machines") != before
    });
    for name in ["one", "two"] {
        sleeps(&appliance, name);
        assert_eq!(appliance.ok(&["machine", "exec", name, "--", "hostname"]).trim(), name);
    }
    // it is on record, as nobody's doing
    let state = appliance.path("state");
    let audit = appliance.ok(&["audit", "--state", state.to_str().unwrap(), "--object", "one"]);
    assert!(audit.matches("machine.pause").count() >= 2 && audit.contains("machine.resume"), "{audit}");

    // what a user stops wakes for nobody
    appliance.ok(&["machine", "stop", "two"]);
    eventually("all requests go to the other one", || (0..4).all(|_| get(listen) == Some((200, "one\n".to_owned()))));
}

#[test]
fn a_machine_that_cannot_be_woken_is_an_answer_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(image()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let appliance = Appliance::start_in(folder.path());
    let listen = free_port();
    rules(&appliance, listen, "machine:web:8080");
    appliance.ok(&["proxy", "reload"]);
    web_machine(&appliance, "web", "stop");
    sleeps(&appliance, "web");
    std::fs::rename(folder.path().join("vmlinux"), folder.path().join("away")).unwrap();
    let (status, body) = get(listen).unwrap();
    assert!(status == 503 && body.contains("wake machine web") && body.contains("vmlinux"), "{status} {body}");
    let state = appliance.path("state");
    let audit = appliance.ok(&["audit", "--state", state.to_str().unwrap(), "--object", "web"]);
    assert!(audit.contains("vmlinux is missing"), "{audit}");
    // and the next request tries again
    std::fs::rename(folder.path().join("away"), folder.path().join("vmlinux")).unwrap();
    assert_eq!(get(listen), Some((200, "web\n".to_owned())));
}
