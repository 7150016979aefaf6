//! Messages whose parts come one after the other.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use support::{Upstream, connect, proxy_to, read_answer};

/// Reads once, with room for more than comes.
fn piece(client: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let n = client.read(&mut bytes).unwrap();
    String::from_utf8(bytes[..n].to_vec()).unwrap()
}

#[test]
fn head_and_body_that_come_one_after_the_other_go_out_as_one() {
    let upstream = Upstream::in_two(|| std::thread::park_timeout(Duration::from_millis(1)));
    let (_proxy, port) = proxy_to(&upstream);
    // A busy machine may part them; it does not do so every time.
    let whole = (0..50).any(|_| {
        let mut client = connect(port);
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        piece(&mut client).ends_with("body")
    });
    assert!(whole, "each of fifty answers came as two pieces");
}

#[test]
fn a_request_whose_body_follows_its_head_takes_a_connection_that_is_there() {
    let upstream = Upstream::echo();
    let (_proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    client.set_nodelay(true).unwrap();
    for _ in 0..50 {
        write!(client, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").unwrap();
        std::thread::park_timeout(Duration::from_millis(1));
        client.write_all(b"body").unwrap();
        assert!(read_answer(&mut client, false).text().ends_with("body"));
    }
    // A busy machine may part them; it does not do so every time.
    let connections = upstream.accepted.load(Relaxed);
    assert!(connections < 50, "{connections}");
}

#[test]
fn a_head_does_not_wait_for_a_body_that_takes_long() {
    let (seen, told) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let upstream = Upstream::in_two(move || told.lock().unwrap().recv().unwrap());
    let (_proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let head = piece(&mut client);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    seen.send(()).unwrap();
    assert_eq!(piece(&mut client), "body");
}
