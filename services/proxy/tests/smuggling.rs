//! What two parsers could read differently, sent to this proxy, nginx and haproxy in one run: what either of them refuses
//! is refused here, and what no rule of HTTP allows reaches no upstream.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use support::{Proxy, Upstream, connect, free_port, until};

/// Ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command, port: u16) -> Server {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let server = Server(child.unwrap_or_else(|e| panic!("start {name}, which the comparison is with: {e}")));
    until(|| TcpStream::connect(("127.0.0.1", port)).ok());
    server
}

fn nginx(dir: &Path, port: u16, upstream: &str) -> Server {
    let here = dir.display();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {here}/{kind};"))
        .concat();
    let text = format!(
        "daemon off; master_process off; pid {here}/nginx.pid; error_log {here}/error.log;\nevents {{}}\n\
         http {{ access_log off; {temp} server {{ listen 127.0.0.1:{port}; location / {{\n\
         proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text).unwrap();
    let program = if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
    start(Command::new(program).arg("-c").arg(file).arg("-e").arg(dir.join("early.log")), port)
}

fn haproxy(dir: &Path, port: u16, upstream: &str) -> Server {
    let text = format!(
        "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
         frontend f\n bind 127.0.0.1:{port}\n default_backend b\nbackend b\n server s {upstream}\n"
    );
    let file = dir.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    let program = if Path::new("/usr/sbin/haproxy").exists() { "/usr/sbin/haproxy" } else { "haproxy" };
    start(Command::new(program).arg("-db").arg("-f").arg(file), port)
}

/// What comes back within a moment of the head of an answer. The connection stays open until then: nginx takes the
/// end of a client's half for its going away.
fn say(port: u16, raw: &[u8]) -> String {
    let mut stream = connect(port);
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // Who refuses early may have closed already.
    let _ = stream.write_all(raw);
    let (mut back, mut buf) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut buf) {
        back.extend_from_slice(&buf[..n]);
        if back.windows(4).any(|w| w == b"\r\n\r\n") {
            stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        }
    }
    String::from_utf8_lossy(&back).into_owned()
}

fn refused(answer: &str) -> bool {
    let status = answer.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok());
    status.is_none_or(|s| s >= 400)
}

/// Name, and a request; `@` stands for the case's own path, so that an upstream can tell them apart. A request that
/// would be smuggled is for `/smuggled`.
const TABLE: &[(&str, &str)] = &[
    (
        "length and coding",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
    ),
    (
        "coding and length",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
    ),
    (
        "no length and coding",
        "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("the same length twice", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na"),
    ("a list of lengths", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\na"),
    ("a length with a sign", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na"),
    ("a negative length", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n"),
    ("a length in hexadecimal", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na"),
    ("an empty length", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n"),
    ("an endless length", "POST @ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\na"),
    ("another coding", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("identity", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
    ("chunked and identity", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    (
        "two codings",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    ("chunked twice", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("a vertical tab", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("quotes", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n"),
    ("chunks in HTTP/1.0", "POST @ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("a folded line", "GET @ HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
    ("a folded coding", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("a folded first line", "GET @ HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n"),
    ("bare line feeds", "GET @ HTTP/1.1\nHost: a\n\n"),
    ("a bare line feed in a head", "GET @ HTTP/1.1\r\nHost: a\r\nX: 1\nTransfer-Encoding: chunked\r\n\r\n"),
    ("a bare carriage return", "GET @ HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n"),
    ("a zero byte in a value", "GET @ HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"),
    ("a zero byte in a name", "GET @ HTTP/1.1\r\nHost: a\r\nX\0: b\r\n\r\n"),
    ("a line without a colon", "GET @ HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n"),
    ("a line without a name", "GET @ HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n"),
    ("a space in a name", "GET @ HTTP/1.1\r\nHost: a\r\nX Y: x\r\n\r\n"),
    (
        "a chunk size with a prefix",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
    ),
    ("a negative chunk", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n"),
    (
        "an endless chunk size",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n",
    ),
    (
        "a chunk that is too long",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    ),
    ("chunks with bare line feeds", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n0\n\n"),
    (
        "an extension with a line feed",
        "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x\ny\r\na\r\n0\r\n\r\n",
    ),
    ("a chunk without a size", "POST @ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n"),
    ("two hosts", "GET @ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    ("no host", "GET @ HTTP/1.1\r\n\r\n"),
    ("a host with a path", "GET @ HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    ("a host with a user", "GET @ HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    ("a host with a space", "GET @ HTTP/1.1\r\nHost: a b\r\n\r\n"),
    ("another host in the target", "GET http://b@ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a whole address of another kind", "GET ftp://a@ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a target that is none", "GET a@ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a control character in the target", "GET @\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("a space in the target", "GET @ b HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("another version", "GET @ HTTP/2.0\r\nHost: a\r\n\r\n"),
    ("a version that is none", "GET @ HTTP/1.x\r\nHost: a\r\n\r\n"),
    ("no version", "GET @\r\n"),
    ("a method that is none", "GE(T @ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("CONNECT", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    ("TRACE", "TRACE @ HTTP/1.1\r\nHost: a\r\n\r\n"),
];

#[test]
fn what_nginx_or_haproxy_refuses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let upstreams = [Upstream::echo(), Upstream::echo(), Upstream::echo()];
    let ports = [free_port(), free_port(), free_port()];
    let _proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{}", ports[0])],
        "terminate": {"type": "http_proxy", "upstream": upstreams[0].address()}}]));
    let _nginx = nginx(dir.path(), ports[1], &upstreams[1].address());
    let _haproxy = haproxy(dir.path(), ports[2], &upstreams[2].address());
    for port in ports {
        let whole = say(port, b"GET /whole HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(!refused(&whole), "the comparison is worth something only if requests pass: {whole}");
    }
    let mut laxer = Vec::new();
    let mut table = String::new();
    for (i, (name, request)) in TABLE.iter().enumerate() {
        let raw = request.replace('@', &format!("/case-{i}."));
        let [ours, nginx, haproxy] = ports.map(|port| say(port, raw.as_bytes()));
        let all = [refused(&ours), refused(&nginx), refused(&haproxy)];
        table.push_str(&format!("{name}: refused by us, nginx, haproxy: {all:?}\n"));
        if !all[0] && (all[1] || all[2]) {
            laxer.push(format!("{name}: {ours:?}; nginx: {nginx:?}; haproxy: {haproxy:?}"));
        }
        // What is wrong in a body shows when its head is out already.
        let in_body = raw.contains("Transfer-Encoding: chunked\r\n\r\n");
        let reached = upstreams[0].seen().contains(&format!("/case-{i}."));
        assert!(!reached || !all[0] || in_body, "{name}: refused, and sent on all the same");
    }
    println!("{table}");
    assert!(laxer.is_empty(), "{}", laxer.join("\n"));
}

#[test]
fn what_follows_a_request_is_never_taken_for_another_one() {
    let (upstream, port) = (Upstream::echo(), free_port());
    let _proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "http_proxy", "upstream": upstream.address(), "websocket": true}}]));
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let length = hidden.len();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (name, raw) in [
        ("a body", format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{hidden}")),
        ("a body of GET", format!("GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{hidden}")),
        (
            "an upgrade with a body",
            format!("POST /a HTTP/1.1\r\nHost: a\r\n{upgrade}Content-Length: {length}\r\n\r\n{hidden}"),
        ),
        (
            "a refused upgrade with a body",
            format!("GET /a HTTP/1.1\r\nHost: a\r\n{upgrade}Content-Length: {length}\r\n\r\n{hidden}"),
        ),
        (
            "a chunk",
            format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{hidden}\r\n0\r\n\r\n"
            ),
        ),
        ("an encoded line break", "GET /a%0d%0aGET%20/smuggled HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("an encoded header", "GET /a?x=%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        (
            "trailers",
            format!(
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: {length}\r\n\r\n"
            ),
        ),
    ] {
        say(port, raw.as_bytes());
        let seen = upstream.seen();
        assert!(!seen.lines().any(|l| l.starts_with("GET /smuggled") || l.starts_with("X-Evil")), "{name}: {seen}");
    }
    // A header that a client names for one hop does not take the proxy's own word away.
    let raw = "GET /b HTTP/1.1\r\nHost: a\r\nConnection: close, Host, X-Real-IP\r\nX-Real-IP: 1\r\n\r\n";
    say(port, raw.as_bytes());
    assert!(upstream.seen().contains("GET /b HTTP/1.1\r\nHost: a\r\n"), "{}", upstream.seen());
    // An upgrade before its answer: what follows belongs to nobody until the upstream has switched.
    let early = format!("GET /early HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n{hidden}");
    let answer = say(port, early.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200"), "the upstream did not switch: {answer}");
}
