//! Programs in workspaces answer requests by CGI (RFC 3875).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Appliance, eventually, free_port};

/// What it does is the path's first segment.
const PROGRAM: &str = r#"
$| = 1;
my ($what) = $ENV{PATH_INFO} =~ m{^/(\w*)};
if ($what eq "env") { print "Content-Type: text/plain\n\n"; print "$_=$ENV{$_}\n" for sort keys %ENV }
elsif ($what eq "body") { my ($n, $piece) = 0; $n += length $piece while read(STDIN, $piece, 65536); print "Content-Type: text/plain\n\n$n" }
elsif ($what eq "echo") { print "Content-Type: text/plain\n\n"; while (sysread(STDIN, my $piece, 4096)) { print $piece } }
elsif ($what eq "deaf") { close STDIN; print "Content-Type: text/plain\n\nno need" }
elsif ($what eq "missing") { print "Status: 404 Not Found\r\nX-Custom: a\r\nX-CGI-Secret: b\r\nConnection: keep-alive\r\n\r\nnone" }
elsif ($what eq "away") { print "Location: https://other.example/\n\n" }
elsif ($what eq "local") { print "Location: /app/env?from=local\n\n" }
elsif ($what eq "loop") { print "Location: /app/loop\n\n" }
elsif ($what eq "fixed") { print "Location: /fixed\n\n" }
elsif ($what eq "fails") { print STDERR "out of luck\nreally\n"; exit 3 }
elsif ($what eq "junk") { print "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" }
elsif ($what eq "split") { print "Content-Type: text/plain\nX-A: b\rSet-Cookie: c\n\nhi" }
elsif ($what eq "short") { print "Content-Type: text/plain\nContent-Length: 10\n\nhi" }
elsif ($what eq "slow") { sleep 600 }
elsif ($what eq "killed") { print "Content-Type: text/plain\n\nhalf of"; kill 9, $$ }
elsif ($what eq "big") { print "Content-Type: text/plain\n\n"; print "x" x 65536 for 1..256 }
elsif ($what eq "chatty") { print STDERR "y" x 65536 for 1..64; print "Content-Type: text/plain\n\ndone" }
elsif ($what eq "hold") { print "Content-Type: text/plain\n\nhere, "; sleep 1 while !-e "/work/go"; print "went" }
"#;

struct Site {
    appliance: Appliance,
    port: u16,
}

impl Site {
    /// A workspace `app` that serves perl, and a rule that has it answer below `/app`.
    fn start(more: &Value) -> Self {
        let appliance = Appliance::start();
        appliance.ok(&["workspace", "create", "app", "--serve", "/usr/bin/perl"]);
        let site = Self { port: free_port(), appliance };
        site.rule(more);
        site
    }

    fn rule(&self, more: &Value) {
        let mut terminate = json!({"type": "cgi", "workspace": "app", "command": ["/usr/bin/perl", "-e", PROGRAM],
            "script_name": "/app", "env": {"COLOUR": "green"}, "time_limit": "60s",
            "timeouts": {"connect": "60s"}});
        terminate.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let listen = [format!("127.0.0.1:{}", self.port)];
        let rules = json!({"rules": [
            {"name": "app", "listen": listen, "match": {"http.uri.path": {"prefix": "/app"}}, "terminate": terminate},
            {"name": "fixed", "listen": listen, "match": {"http.uri.path": {"equals": "/fixed"}},
                "terminate": {"type": "static", "status": 200, "text": "fixed"}},
        ]});
        let folder = self.appliance.config().join("proxy/rules");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("cgi.json"), rules.to_string()).unwrap();
        self.appliance.ok(&["proxy", "reload"]);
    }

    /// All that comes back, and whether it ended as an answer ends.
    fn send(&self, request: &[u8]) -> (String, bool) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = Vec::new();
        std::thread::scope(|scope| {
            let mut sender = stream.try_clone().unwrap();
            scope.spawn(move || {
                // a proxy that has answered may not read on
                let _ = sender.write_all(request);
            });
            let _ = stream.read_to_end(&mut answer);
        });
        let whole = answer.ends_with(b"\r\n0\r\n\r\n");
        (String::from_utf8_lossy(&answer).into_owned(), whole)
    }

    /// Status, head and body of the answer to a request of HTTP/1.0, whose body ends with the connection.
    fn get(&self, path: &str) -> (u16, String, String) {
        self.ask(&format!("GET {path} HTTP/1.0\r\nHost: web.example\r\n\r\n"), b"")
    }

    fn ask(&self, head: &str, body: &[u8]) -> (u16, String, String) {
        let (answer, _) = self.send(&[head.as_bytes(), body].concat());
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    /// The flow log has a request for this path with such an error: it is written once the answer is out.
    fn logged(&self, path: &str, reason: &str) {
        eventually(&format!("a request for {path} is logged with {reason:?}"), || {
            let text = self.appliance.ok(&["proxy", "tail", "-n", "200", "--json"]);
            let mut flows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            flows.any(|f| f["path"] == path && f["error"].as_str().unwrap().contains(reason))
        });
    }
}

#[test]
fn a_program_answers_and_is_told_the_request() {
    let site = Site::start(&json!({}));
    let head = "GET /app/env/a%20b?x=1 HTTP/1.1\r\nHost: web.example:81\r\nX-Thing: one\r\nAuthorization: secret\r\n\
                Proxy: evil\r\nConnection: close\r\n\r\n";
    let (status, _, body) = site.ask(head, b"");
    assert_eq!(status, 200, "{body}");
    for want in [
        "GATEWAY_INTERFACE=CGI/1.1",
        "REQUEST_METHOD=GET",
        "SCRIPT_NAME=/app",
        "PATH_INFO=/env/a b",
        "QUERY_STRING=x=1",
        "SERVER_NAME=web.example",
        "SERVER_PROTOCOL=HTTP/1.1",
        "REMOTE_ADDR=127.0.0.1",
        "HTTP_X_THING=one",
        "COLOUR=green",
    ] {
        assert!(body.contains(&format!("{want}\n")), "{want}: {body}");
    }
    assert!(!body.contains("secret") && !body.contains("evil"), "{body}");
    let (status, head, body) = site.get("/app/missing");
    assert_eq!((status, body.as_str()), (404, "none"));
    assert!(head.contains("x-custom: a") && !head.contains("x-cgi-secret"), "{head}");
    // each run is one record
    let state = site.appliance.path("state");
    let audit = site.appliance.ok(&["audit", "--state", state.to_str().unwrap(), "--json"]);
    assert!(audit.matches("command.run").count() >= 2, "{audit}");
}

#[test]
fn bodies_stream_both_ways() {
    let site = Site::start(&json!({}));
    let large = vec![b'a'; 8 << 20];
    let length = large.len();
    let post = |path: &str, framing: &str| {
        format!("POST /app/{path} HTTP/1.1\r\nHost: a\r\n{framing}\r\nConnection: close\r\n\r\n")
    };
    let (status, _, body) = site.ask(&post("body", &format!("Content-Length: {length}")), &large);
    assert!(status == 200 && body.contains(&length.to_string()), "{status} {body}");
    // in chunks, the program is told the length all the same
    let chunked = post("body", "Transfer-Encoding: chunked");
    let (status, _, body) = site.ask(&chunked, b"5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n");
    assert!(status == 200 && body.contains("\r\n8\r\n"), "{status} {body}");
    // but not one that does not say it and does not fit into memory
    let pieces: Vec<u8> = (0..32).flat_map(|_| [b"10000\r\n".as_slice(), &[b'a'; 65536], b"\r\n"].concat()).collect();
    assert_eq!(site.ask(&chunked, &pieces).0, 411);
    let (status, _, body) = site.ask(&post("echo", "Content-Length: 100000"), &vec![b'z'; 100_000]);
    assert_eq!((status, body.matches('z').count()), (200, 100_000));
    let (status, _, body) = site.get("/app/big");
    assert_eq!((status, body.len()), (200, 16 << 20));
    let (status, _, body) = site.ask(&post("deaf", "Content-Length: 100000"), &vec![b'b'; 100_000]);
    assert!(status == 200 && body.contains("no need"), "a program need not read: {status} {body}");
}

#[test]
fn programs_redirect() {
    let site = Site::start(&json!({}));
    let (status, head, _) = site.get("/app/away");
    assert!(status == 302 && head.contains("location: https://other.example/"), "{status} {head}");
    let (status, _, body) = site.get("/app/local");
    assert!(status == 200 && body.contains("QUERY_STRING=from=local\n"), "{status} {body}");
    assert_eq!(site.get("/app/fixed").2, "fixed", "other rules answer, too");
    assert_eq!(site.get("/app/loop").0, 502);
    site.logged("/app/loop", "without end");
}

#[test]
fn what_is_no_answer_is_a_502_with_its_reason() {
    let site = Site::start(&json!({}));
    for (path, reason) in [
        ("/app/fails", "status 3 (exited) and wrote no answer; it said: out of luck"),
        ("/app/junk", "header lines"),
        ("/app/split", "header lines"),
        ("/app/nothing", "status 0 (exited) and wrote no answer"),
    ] {
        let (status, _, body) = site.get(path);
        assert!(status == 502 && body.starts_with("502 Bad Gateway\nthe program"), "{path}: {body}");
        // What it wrote is for who runs it.
        assert!(!body.contains("out of luck"), "{path}: {body}");
        site.logged(path, reason);
    }
    assert_eq!(site.get("/app/a%2Fb").0, 400);
    assert_eq!(site.get("/apple").0, 404);
    assert_eq!(site.get("/app/chatty").2, "done", "who says much on the side is not held up");
}

#[test]
fn half_an_answer_does_not_look_whole() {
    let site = Site::start(&json!({}));
    let get =
        |what: &str| site.send(format!("GET /app/{what} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
    let (answer, whole) = get("missing");
    assert!(whole && answer.contains("none"), "{answer}");
    let (answer, whole) = get("killed");
    assert!(!whole && answer.contains("half of"), "{answer}");
    let (answer, _) = get("short");
    assert!(answer.contains("content-length: 10") || answer.contains("Content-Length: 10"), "{answer}");
    site.logged("/app/short", "too early");
}

#[test]
fn a_program_has_so_much_time_and_so_many_runs_at_once() {
    let site = Site::start(&json!({"time_limit": "2s", "at_once": 1}));
    let (status, _, body) = site.get("/app/slow");
    assert_eq!(status, 502, "{body}");
    site.logged("/app/slow", "timeout");
    site.rule(&json!({"timeouts": {"response": "1s"}}));
    assert_eq!(site.get("/app/slow").0, 504);
    site.rule(&json!({"at_once": 1}));
    let mut held = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    held.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    held.write_all(b"GET /app/hold HTTP/1.0\r\nHost: a\r\n\r\n").unwrap();
    let mut begun = [0; 12];
    held.read_exact(&mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    assert_eq!(site.get("/app/env").0, 503, "one runs already");
    site.logged("/app/env", "at_once");
    site.appliance.ok(&["run", "-w", "app", "--", "touch", "/work/go"]);
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("here, went"), "{rest}");
    eventually("the next one has its turn", || site.get("/app/env").0 == 200);
}

#[test]
fn only_what_a_workspace_serves_is_run() {
    let site = Site::start(&json!({"command": ["/bin/sh", "-c", "echo Content-Type: a; echo; echo in"]}));
    assert_eq!(site.get("/app").0, 502);
    site.logged("/app", "does not serve \"/bin/sh\"");
    site.rule(&json!({"workspace": "other"}));
    assert_eq!(site.get("/app/env").0, 502);
    site.logged("/app/env", "other");
    // the workspace comes back: nothing has to be reloaded
    site.appliance.ok(&["workspace", "create", "other", "--serve", "/usr/bin/perl"]);
    assert_eq!(site.get("/app/env").0, 200);
}
