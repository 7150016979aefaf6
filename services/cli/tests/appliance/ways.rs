//! The way out of a machine that really boots: what its list says, through the proxy, and nothing else.

use std::io::Write as _;
use std::net::TcpListener;

use serde_json::Value;

use crate::egress::{page, redirect, restart};
use crate::support::{Appliance, eventually, image, text};

/// What a script of the guest's shell prints, on either stream.
fn guest(shipote: &Appliance, machine: &str, script: &str) -> String {
    let output = shipote.run(&["machine", "exec", "--timeout", "60", machine, "--", "sh", "-c", script]);
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// What a guest gets of a place that it asks the way out for by CONNECT: the answer, and the page.
fn tunnel(shipote: &Appliance, machine: &str, place: &str) -> String {
    let request = format!(r"CONNECT {place} HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n");
    guest(shipote, machine, &format!("printf '{request}' | nc -w 30 127.0.0.1 3128"))
}

/// The same with a whole address, as `http_proxy` has programs do it.
fn fetch(shipote: &Appliance, machine: &str, url: &str) -> String {
    guest(shipote, machine, &format!("http_proxy=http://127.0.0.1:3128 no_proxy= wget -Y on -q -O - {url} 2>&1"))
}

/// The same by SOCKS5, which asks for an address of IPv4.
fn socks(shipote: &Appliance, machine: &str, [a, b, c, d]: [u8; 4], port: u16) -> String {
    let [high, low] = port.to_be_bytes();
    let octal: String =
        [5, 1, 0, 5, 1, 0, 1, a, b, c, d, high, low].iter().map(|byte| format!("\\{byte:03o}")).collect();
    guest(shipote, machine, &format!(r"printf '{octal}GET / HTTP/1.0\r\n\r\n' | nc -w 30 127.0.0.1 3128 | tr '\0' 0"))
}

fn client(shipote: &Appliance, name: &str) -> Option<Value> {
    let listed = shipote.json(&["egress", "list", "--json"]);
    listed["clients"].as_array().unwrap().iter().find(|client| client["client"] == name).cloned()
}

#[test]
fn a_machine_reaches_what_its_list_says_and_nothing_else() {
    let shipote = Appliance::start_in(&image());
    let (port, other) = (page("the page"), page("secret"));
    let (named, address, more) =
        (format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("127.0.0.1:{other}"));
    let words = ["machine", "create", "m", "--memory", "128", "--egress", &named, "--egress", &address];
    shipote.ok(&words);
    shipote.ok(&["machine", "start", "m"]);
    eventually("the proxy serves it", || client(&shipote, "machine:m").is_some());

    // By all three protocols, by name and by address.
    for place in [&named, &address] {
        assert!(tunnel(&shipote, "m", place).ends_with("the page"), "{place}: {}", tunnel(&shipote, "m", place));
        assert_eq!(fetch(&shipote, "m", &format!("http://{place}/")), "the page");
    }
    assert!(socks(&shipote, "m", [127, 0, 0, 1], port).ends_with("the page"));
    let before = client(&shipote, "machine:m").unwrap();
    assert_eq!((before["allowed"].as_u64(), before["denied"].as_u64()), (Some(5), Some(0)), "{before}");

    // What is on no list is refused with the way out, counted and remembered.
    let refused = tunnel(&shipote, "m", &more);
    let wanted = format!("on the host: shipote egress allow machine:m {more}");
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains(&wanted), "{refused}");
    assert!(refused.contains("\r\nx-reason: machine:m may not go there"), "{refused}");
    assert!(!socks(&shipote, "m", [127, 0, 0, 1], other).contains("secret"));
    assert_eq!(client(&shipote, "machine:m").unwrap()["denied"], 2);
    assert!(shipote.ok(&["egress", "list", "--denials"]).contains("machine:m 127.0.0.1 is allowed, but not its port"));
    let pull = shipote.run(&["image", "pull", "m", &format!("{more}/image")]);
    assert!(
        !pull.status.success() && text(&pull.stderr).contains("shipote egress list --denials"),
        "{}",
        text(&pull.stderr)
    );

    // Names: those on the list, with addresses that could be reached.
    let ask = |name: &str| guest(&shipote, "m", &format!("nslookup -type=a {name}. 127.0.0.1"));
    let found = ask("localhost");
    assert!(found.lines().rev().any(|line| line.ends_with("127.0.0.1")) && !found.contains("NXDOMAIN"), "{found}");
    for name in ["example.org", "x.localhost", "metadata.google.internal"] {
        assert!(ask(name).contains("NXDOMAIN"), "{name}: {}", ask(name));
    }

    // Around the proxy there is nothing: no device, no route, and on the guest's loopback only itself.
    assert_eq!(guest(&shipote, "m", "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo\n");
    for raw in [&address, "192.0.2.1:80", "169.254.169.254:80"] {
        let said = guest(&shipote, "m", &format!("no_proxy='*' wget -Y off -T 10 -q -O - http://{raw}/ 2>&1; echo $?"));
        assert!(!said.contains("the page") && !said.ends_with("\n0\n") && said != "0\n", "{raw}: {said}");
    }

    // The list changes while it runs.
    shipote.ok(&["egress", "allow", "machine:m", &more]);
    eventually("it is let out", || tunnel(&shipote, "m", &more).ends_with("secret"));
    let said = shipote.json(&["egress", "deny", "machine:m", &more, "--json"]);
    assert_eq!(said["allow"], serde_json::json!([named, address]));
    eventually("it is not let out any more", || tunnel(&shipote, "m", &more).starts_with("HTTP/1.1 403"));
    for (words, wanted) in [
        (&["egress", "allow", "machine:none", "a.example"][..], "none of this name"),
        (&["egress", "allow", "machine:m", "http://a"], "is no host"),
        (&["egress", "deny", "machine:m", "a.example"], "is not on its list"),
        (&["egress", "set", "machine:m", "--allow", "*:*"], "shipote egress allow"),
        (&["egress", "remove", "machine:m"], "shipote egress allow"),
    ] {
        let output = shipote.run(words);
        assert!(
            !output.status.success() && text(&output.stderr).contains(wanted),
            "{words:?}: {}",
            text(&output.stderr)
        );
    }

    // What leads home, to the metadata of a cloud, or there by a redirection, is refused in every dress.
    shipote.ok(&["egress", "allow", "machine:m", "*:*"]);
    eventually("the list is another", || client(&shipote, "machine:m").unwrap()["allow"].to_string().contains("*:*"));
    for host in
        ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"]
    {
        let said = tunnel(&shipote, "m", &format!("{host}:{other}"));
        assert!(said.starts_with("HTTP/1.1 ") && !said.contains("200") && !said.contains("secret"), "{host}: {said}");
    }
    for place in ["169.254.169.254:80", "[fd00:ec2::254]:80", "[::ffff:a9fe:a9fe]:80", "10.0.0.1:80"] {
        let said = tunnel(&shipote, "m", place);
        assert!(said.starts_with("HTTP/1.1 403"), "{place}: {said}");
    }
    let moved = redirect(other);
    shipote.ok(&["egress", "allow", "machine:m", &format!("127.0.0.1:{moved}")]);
    eventually("the redirection is reached", || {
        tunnel(&shipote, "m", &format!("127.0.0.1:{moved}")).contains("302 Found")
    });
    let followed = fetch(&shipote, "m", &format!("http://127.0.0.1:{moved}/"));
    assert!(!followed.contains("secret") && followed.contains("403"), "{followed}");
    let denied = client(&shipote, "machine:m").unwrap()["denied"].as_u64().unwrap();
    assert!(denied >= 2 + 3 + 12, "every refusal was counted: {denied}");

    // What is open goes on while the machines service is killed and comes back.
    let slow = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = slow.local_addr().unwrap().to_string();
    shipote.ok(&["egress", "allow", "machine:m", &place]);
    eventually("it may go there", || client(&shipote, "machine:m").unwrap()["allow"].to_string().contains(&place));
    std::thread::scope(|scope| {
        let shipote = &shipote;
        let request = format!(r"CONNECT {place} HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n");
        let script = format!("printf '{request}' | nc -w 300 127.0.0.1 3128");
        let open = scope.spawn(move || text(&shipote.run(&["machine", "exec", "m", "--", "sh", "-c", &script]).stdout));
        let (mut stream, _) = slow.accept().unwrap();
        restart(shipote, "machines");
        // The proxy has asked the new one for its lists.
        eventually("it goes out again", || tunnel(shipote, "m", &address).ends_with("the page"));
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nstill there").unwrap();
        drop(stream);
        let said = open.join().unwrap();
        assert!(said.ends_with("still there"), "{said}");
    });

    // Either service may be killed; a machine that has ended is served no more, and keeps its list for its next life.
    for service in ["proxy", "machines"] {
        restart(&shipote, service);
        eventually("it goes out again", || tunnel(&shipote, "m", &address).ends_with("the page"));
    }
    shipote.ok(&["machine", "stop", "m"]);
    eventually("it is served no more", || client(&shipote, "machine:m").is_none());
    shipote.ok(&["egress", "deny", "machine:m", "*:*"]);
    let state = shipote.path("state").display().to_string();
    let audit = shipote.ok(&["audit", "--json", "--state", &state, "--action", "egress.change"]);
    let of_it = |line: &&str| line.contains("machine:m\"") && line.contains("\"ok\"");
    assert_eq!(audit.lines().filter(of_it).count(), 6, "{audit}");
}

#[test]
fn what_is_on_no_list_of_a_machine_waits_for_an_answer_where_its_spec_says_so() {
    let shipote = Appliance::start_in(&image());
    let address = format!("127.0.0.1:{}", page("the page"));
    shipote.ok(&["machine", "create", "asks", "--memory", "128", "--egress-ask"]);
    shipote.ok(&["machine", "create", "shut", "--memory", "128"]);
    shipote.ok(&["machine", "start", "asks"]);
    let ask = |answer: &[&str]| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| tunnel(&shipote, "asks", &address));
            let mut number = String::new();
            eventually("the connection waits", || {
                let pending = shipote.json(&["egress", "pending", "--json"]);
                let question = &pending["pending"][0];
                number = question["id"].to_string();
                question["client"] == "machine:asks" && question["entry"] == address.as_str()
            });
            shipote.ok(&[&["egress"], answer, &[&number]].concat());
            asking.join().unwrap()
        })
    };
    assert!(ask(&["deny"]).contains("said no"));
    assert!(ask(&["approve", "--once"]).ends_with("the page"));
    assert!(ask(&["approve"]).ends_with("the page"));
    assert!(tunnel(&shipote, "asks", &address).ends_with("the page"), "now it is on the list");

    // One that was started without a way out is given none while it runs.
    shipote.ok(&["machine", "stop", "asks"]);
    shipote.ok(&["machine", "start", "shut"]);
    assert!(client(&shipote, "machine:shut").is_none());
    assert!(tunnel(&shipote, "shut", &address).contains("nc: can't connect to remote host (127.0.0.1)"));
    let refused = shipote.run(&["egress", "allow", "machine:shut", &address]);
    assert!(text(&refused.stderr).contains("without a way out; stop it first"), "{}", text(&refused.stderr));
    shipote.ok(&["machine", "stop", "shut"]);
    shipote.ok(&["egress", "allow", "machine:shut", &address]);
    shipote.ok(&["machine", "start", "shut"]);
    eventually("it goes out", || tunnel(&shipote, "shut", &address).ends_with("the page"));
}

#[test]
fn where_there_is_no_proxy_a_machine_is_told_so() {
    let shipote = Appliance::start_services(&image(), "machines");
    let address = format!("127.0.0.1:{}", page("the page"));
    shipote.ok(&["machine", "create", "m", "--memory", "128", "--egress", &address]);
    shipote.ok(&["machine", "start", "m"]);
    let said = tunnel(&shipote, "m", &address);
    assert!(said.starts_with("HTTP/1.1 503") && said.contains("start shipote-proxy.service"), "{said}");
    assert!(!guest(&shipote, "m", "nslookup -type=a localhost. 127.0.0.1").contains("Address: 127.0.0.1\n\n"));
    let pull = shipote.run(&["image", "pull", "m", &format!("{address}/image")]);
    assert!(text(&pull.stderr).contains("the way out refuses: proxy server responded 503"), "{}", text(&pull.stderr));
}
