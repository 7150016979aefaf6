//! What idle connections cost; alone in its process, whose memory is measured.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::Write;
use std::net::TcpStream;

use serde_json::json;
use support::{Proxy, connect, free_port, read_answer};

#[test]
fn thousands_of_idle_connections_cost_little() {
    let port = free_port();
    let proxy = Proxy::start(&json!([{"name": "fixed", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "static", "status": 200, "text": "ok"}}]));
    // As many as the limit on open files lets both ends have in this one process.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(20_000);
    let count = usize::try_from((limit.saturating_sub(500) / 2).min(10_000)).unwrap();
    let resident = || {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let mut clients: Vec<TcpStream> = Vec::with_capacity(count);
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let ask_on = |clients: &mut Vec<TcpStream>| {
        let mut client = connect(port);
        client.write_all(get).unwrap();
        let answer = read_answer(&mut client, false);
        assert_eq!(answer.status, 200, "connection {} of {count}: {answer:?}", clients.len());
        clients.push(client);
    };
    (0..count / 10).for_each(|_| ask_on(&mut clients));
    let before = resident();
    (count / 10..count).for_each(|_| ask_on(&mut clients));
    let each = resident().saturating_sub(before) / (count - count / 10);
    assert_eq!(proxy.engine.open(), count as u64);
    // Futures of a build without optimisation are larger than those that ship.
    let most = if cfg!(debug_assertions) { 16 << 10 } else { 8 << 10 };
    println!("{each} bytes for each of {count} idle connections");
    assert!(each <= most, "{each} bytes for each of {count} idle connections");
    // All of them still work.
    for client in clients.iter_mut().step_by(97) {
        client.write_all(get).unwrap();
        assert_eq!(read_answer(client, false).status, 200);
    }
}
