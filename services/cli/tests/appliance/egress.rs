//! The way out of a workspace: what its list says, through the proxy, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Stdio;

use rustix::process::{Signal, kill_process};

use crate::support::{Appliance, eventually, text};

/// A server on this host that answers every request with this.
fn serve(answer: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            while lines.next().is_some_and(|line| !line.is_empty()) {}
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

pub(crate) fn page(body: &str) -> u16 {
    serve(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()))
}

/// A server that sends everybody on to this port of the host.
pub(crate) fn redirect(port: u16) -> u16 {
    serve(format!(
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ))
}

/// What curl gets in a workspace, by the way that `http_proxy` names: the body, and whether it succeeded. This host is
/// a host like any other to it.
fn curl(shipote: &Appliance, workspace: &str, words: &[&str]) -> (bool, String) {
    let mut all = vec!["run", "-w", workspace, "--", "curl", "-sS", "--max-time", "30", "--noproxy", ""];
    all.extend(words);
    let output = shipote.run(&all);
    (output.status.success(), format!("{}{}", text(&output.stdout), text(&output.stderr)))
}

/// Kills a service, and waits until the next instance answers.
pub(crate) fn restart(shipote: &Appliance, service: &str) {
    let before = shipote.service(service);
    kill_process(before, Signal::KILL).unwrap();
    eventually("the next instance is there", || {
        let status = shipote.json(&["status", "--json"]);
        let running = |s: &serde_json::Value| s["name"] == service && s["state"] == "running";
        let pid = i64::from(before.as_raw_nonzero().get());
        let all = status["services"].as_array().unwrap();
        let asked = match service {
            "proxy" => &["egress", "list"][..],
            "machines" => &["machine", "ls"],
            _ => &["ps"],
        };
        all.iter().any(|s| running(s) && s["pid"].as_i64() != Some(pid)) && shipote.run(asked).status.success()
    });
}

#[test]
fn a_workspace_reaches_what_its_list_says_and_nothing_else() {
    let shipote = Appliance::start();
    let (port, other) = (page("the page"), page("secret"));
    let (named, address) = (format!("localhost:{port}"), format!("127.0.0.1:{port}"));
    shipote.ok(&["workspace", "create", "web", "--egress", &named, "--egress", &address]);
    shipote.ok(&["workspace", "create", "shut"]);
    shipote.ok(&["workspace", "create", "alone", "--egress", "nobody.example"]);
    let url = format!("http://{named}/");
    for words in [vec![url.as_str()], vec!["-p", &url], vec!["-x", "socks5h://127.0.0.1:3128", &url]] {
        assert_eq!(curl(&shipote, "web", &words), (true, "the page".to_owned()), "{words:?}");
    }
    // what a workspace was not given, and what is another's
    let refused = curl(&shipote, "web", &["http://example.com/"]).1;
    let wanted = "shipote egress allow workspace:web example.com:80";
    assert!(refused.contains("not on the list") && refused.contains(wanted), "{refused}");
    assert!(curl(&shipote, "alone", &[&url]).1.contains("workspace:alone may not go there"));
    assert!(!curl(&shipote, "shut", &["-x", "http://127.0.0.1:3128", &url]).0, "one without a way out has no door");
    // around the proxy there is nothing
    for raw in [format!("http://127.0.0.1:{port}/"), "http://192.0.2.1/".to_owned(), "http://[2001:db8::1]/".to_owned()]
    {
        let (reached, said) = curl(&shipote, "web", &["--noproxy", "*", &raw]);
        assert!(!reached && !said.contains("the page"), "{raw}: {said}");
    }
    let listed = shipote.json(&["egress", "list", "--json"]);
    let clients = listed["clients"].as_array().unwrap();
    let web = clients.iter().find(|c| c["client"] == "workspace:web").unwrap();
    assert_eq!((web["allowed"].as_u64(), web["denied"].as_u64()), (Some(3), Some(1)), "{web}");
    assert!(clients.iter().all(|c| c["client"] != "workspace:shut"), "{listed}");
    // the list changes while it runs, and the denials outlive it
    let more = format!("127.0.0.1:{other}");
    assert!(!curl(&shipote, "web", &[&format!("http://{more}/")]).1.contains("secret"));
    shipote.ok(&["egress", "allow", "workspace:web", &more]);
    eventually("it is let out", || curl(&shipote, "web", &[&format!("http://{more}/")]).1.contains("secret"));
    shipote.ok(&["egress", "deny", "workspace:web", &named, &more]);
    eventually("it is not let out any more", || {
        curl(&shipote, "web", &[&format!("http://{more}/")]).1.contains("may not")
    });
    shipote.ok(&["workspace", "stop", "web"]);
    eventually("it is served no more", || !shipote.ok(&["egress", "list"]).contains("workspace:web"));
    assert!(shipote.ok(&["egress", "list", "--denials"]).contains("workspace:web example.com is not on the list"));
    let state = shipote.path("state");
    let audit = shipote.ok(&["audit", "--state", state.to_str().unwrap(), "--object", "workspace:web"]);
    assert_eq!(audit.matches("egress.change").count(), 2, "{audit}");
}

/// A query for the addresses of a name, asked of the name server of `resolv.conf`: code, and the addresses.
const QUERY: &str = r#"
use IO::Socket::INET;
open(my $conf, "<", "/etc/resolv.conf") or die; my ($server) = <$conf> =~ /nameserver (\S+)/ or die;
my $udp = IO::Socket::INET->new(PeerAddr => $server, PeerPort => 53, Proto => "udp") or die $!;
for my $name (@ARGV) {
    $udp->send(pack("n6", 7, 0x0100, 1, 0, 0, 0) . join("", map { pack("C/a", $_) } split(/\./, $name)) . "\0" . pack("n2", 1, 1));
    $udp->recv(my $reply, 512);
    my ($id, $flags, $q, $answers) = unpack("n4", $reply);
    print "$name ", $flags & 15, " ", $answers ? join(".", unpack("C4", substr($reply, -4))) : "-", "\n";
}
"#;

#[test]
fn only_listed_names_exist_and_only_addresses_that_could_be_reached_are_told() {
    let shipote = Appliance::start();
    shipote.ok(&["workspace", "create", "told", "--egress", "localhost:80", "--egress", "127.0.0.1:80"]);
    shipote.ok(&["workspace", "create", "tricked", "--egress", "localhost:*"]);
    let ask = |workspace: &str| {
        shipote.ok(&["run", "-w", workspace, "--", "perl", "-e", QUERY, "localhost", "example.com", "x.localhost"])
    };
    assert_eq!(ask("told"), "localhost 0 127.0.0.1\nexample.com 3 -\nx.localhost 3 -\n");
    assert_eq!(
        ask("tricked"),
        "localhost 0 -\nexample.com 3 -\nx.localhost 3 -\n",
        "a name that leads home has no address"
    );
    assert!(shipote.ok(&["egress", "list", "--denials"]).contains("example.com is not on the list"));
}

#[test]
fn what_leads_home_is_refused_in_every_dress() {
    let shipote = Appliance::start();
    let secret = page("secret");
    let moved = redirect(secret);
    let listed = format!("127.0.0.1:{moved}");
    // every name by every port, but of this host one address and port alone
    shipote.ok(&["workspace", "create", "sly", "--egress", "*:*", "--egress", &listed]);
    let own = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = own.connect("192.0.2.1:9").ok().and_then(|()| own.local_addr().ok()).map(|a| a.ip().to_string());
    let mut hosts: Vec<String> = [
        "localhost",
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
    ]
    .map(ToOwned::to_owned)
    .into();
    hosts.extend(own);
    for host in &hosts {
        for words in [vec![], vec!["-p"], vec!["-x", "socks5h://127.0.0.1:3128"], vec!["-x", "socks5://127.0.0.1:3128"]]
        {
            let url = format!("http://{host}:{secret}/");
            let said = curl(&shipote, "sly", &[words.clone(), vec!["-g", &url]].concat()).1;
            assert!(!said.contains("secret"), "{url} {words:?}: {said}");
        }
    }
    let followed = curl(&shipote, "sly", &["-L", &format!("http://{listed}/")]).1;
    assert!(followed.contains("loopback"), "a redirection leads nowhere else: {followed}");
    assert!(curl(&shipote, "sly", &["http://169.254.169.254/latest/meta-data/"]).1.contains("metadata"));
}

#[test]
fn the_way_out_outlives_either_service() {
    let shipote = Appliance::start();
    let (port, other) = (page("the page"), page("other"));
    let (address, more) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{other}"));
    shipote.ok(&["workspace", "create", "web", "--egress", &address]);
    shipote.ok(&["egress", "allow", "workspace:web", &more]);
    let reaches = || {
        for (host, body) in [(&address, "the page"), (&more, "other")] {
            let (done, said) =
                curl(&shipote, "web", &["--retry", "5", "--retry-all-errors", &format!("http://{host}/")]);
            assert!(done && said.ends_with(body), "{host}: {said}");
        }
    };
    reaches();
    for _ in 0..2 {
        for service in ["proxy", "workspaces"] {
            restart(&shipote, service);
            reaches();
        }
    }
    assert!(curl(&shipote, "web", &["http://example.com/"]).1.contains("may not go there"));
}

#[test]
fn a_socket_that_was_given_out_is_there_again_after_the_proxy_was_killed() {
    let shipote = Appliance::start();
    let port = page("the page");
    let (host, listen) = (format!("127.0.0.1:{port}"), "127.0.0.1:0");
    for entry in ["a.example", host.as_str()] {
        shipote.ok(&["egress", "set", "session:ci", "--allow", entry, "--user", "4242", "--listen", listen]);
    }
    shipote.ok(&["egress", "set", "session:gone", "--allow", "b.example"]);
    shipote.ok(&["egress", "remove", "session:gone"]);
    let clients = || shipote.json(&["egress", "list", "--json"])["clients"].clone();
    let before = clients();
    restart(&shipote, "proxy");
    let after = clients();
    assert_eq!(after.as_array().unwrap().len(), 1, "{after}");
    for key in ["client", "allow", "socket"] {
        assert_eq!(before[0][key], after[0][key], "{key}");
    }
    let proxy = format!("http://{}", after[0]["listen"].as_str().unwrap());
    let curl = std::process::Command::new("curl")
        .args(["-sS", "--noproxy", "", "--max-time", "30", "-x", &proxy, &format!("http://{host}/")])
        .output();
    assert_eq!(text(&curl.unwrap().stdout), "the page");
}

#[test]
fn what_is_on_no_list_waits_for_an_answer_where_the_spec_says_so() {
    let shipote = Appliance::start();
    let port = page("the page");
    let address = format!("127.0.0.1:{port}");
    let url = format!("http://{address}/");
    shipote.ok(&["workspace", "create", "asks", "--egress-ask"]);
    let mut told = shipote.shipote(&["egress", "pending", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut told_lines = BufReader::new(told.stdout.take().unwrap()).lines();
    let ask = |answer: &[&str]| {
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| curl(&shipote, "asks", &[&url]).1);
            let mut number = String::new();
            eventually("the connection waits", || {
                let pending = shipote.json(&["egress", "pending", "--json"]);
                let question = &pending["pending"][0];
                number = question["id"].to_string();
                question["client"] == "workspace:asks" && question["entry"] == address.as_str()
            });
            shipote.ok(&[&["egress"], answer, &[&number]].concat());
            (number, asking.join().unwrap())
        })
    };
    let (number, said) = ask(&["deny"]);
    assert!(said.contains("said no"), "{said}");
    assert_eq!(told_lines.next().unwrap().unwrap(), format!("{number} workspace:asks {address}"));
    assert_eq!(ask(&["approve", "--once"]).1, "the page");
    assert_eq!(ask(&["approve"]).1, "the page");
    // now it is on the list
    assert_eq!(curl(&shipote, "asks", &[&url]).1, "the page");
    assert!(shipote.ok(&["workspace", "show", "asks"]).contains(&address));
    assert_eq!(shipote.json(&["egress", "pending", "--json"])["pending"].as_array().unwrap().len(), 0);
    let late = shipote.run(&["egress", "approve", "4711"]);
    assert!(!late.status.success() && text(&late.stderr).contains("no connection waits"));
    told.kill().unwrap();
    told.wait().unwrap();
}

#[test]
fn a_run_goes_out_by_its_own_list_and_is_told_what_it_was_refused() {
    let shipote = Appliance::start();
    let port = page("the page");
    let address = format!("127.0.0.1:{port}");
    let script = format!("curl -sS --noproxy '' http://{address}/; curl -sS -o /dev/null http://example.com/");
    let output = shipote.run(&["run", "--egress", &address, "--explain", "--", "sh", "-c", &script]);
    assert_eq!(text(&output.stdout), "the page", "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("on its way out it was refused: example.com is not on the list"), "{said}");
}
