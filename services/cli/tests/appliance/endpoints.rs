//! What a workspace publishes is reached through the proxy by the workspace's name.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::{Appliance, eventually};

/// A server of one page, with nothing but perl: `ARGV` is the port and the page.
pub(crate) const SERVER: &str = r#"
use IO::Socket::INET;
my ($port, $page) = @ARGV;
my $listening = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 64, ReuseAddr => 1) or die $!;
while (my $client = $listening->accept) {
    while (<$client>) { last if /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($page) . "\r\nConnection: close\r\n\r\n$page";
    close $client;
}
"#;

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

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
    let folder = appliance.config().join("proxy/rules");
    std::fs::create_dir_all(&folder).unwrap();
    let rules = json!({"rules": [{
        "name": "web",
        "listen": [format!("127.0.0.1:{listen}")],
        "terminate": {"type": "http_proxy", "upstream": upstream},
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
    assert!(unknown.0 == 502 || unknown.0 == 503, "no such workspace yet: {unknown:?}");

    // the name is what counts: a workspace that is made anew is reached as the one before
    for page in ["first", "second"] {
        appliance.ok(&["workspace", "create", "web", "--publish", "8080"]);
        appliance.ok(&["run", "-w", "web", "--detach", "--", "perl", "-e", SERVER, "8080", page]);
        eventually("the page is served", || get(listen) == Some((200, page.to_owned())));
        for _ in 0..20 {
            assert_eq!(get(listen), Some((200, page.to_owned())));
        }
        appliance.ok(&["workspace", "stop", "web"]);
        let gone = get(listen).unwrap();
        assert!(gone.0 == 502 || gone.0 == 503, "the workspace is gone: {gone:?}");
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
    assert!(status == 502 || status == 503, "{status} {body}");
    assert!(!body.contains("secret"), "{body}");
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
