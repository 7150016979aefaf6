//! Upstreams that are looked after, retries, the PROXY protocol, and datagrams.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value as Json, json};
use support::{Proxy, Upstream, ask, connect, free_port, read_answer, until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn rule(port: u16, terminate: &Json) -> Json {
    json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")], "terminate": terminate}])
}

fn state(proxy: &Proxy, address: &str) -> bool {
    proxy.engine.upstreams().iter().any(|u| u.address == address && u.down)
}

#[test]
fn an_upstream_that_answers_badly_is_out_until_it_answers_well_and_the_last_one_stays() {
    let ill = Arc::new(AtomicBool::new(true));
    let (one, two) = (Upstream::moody(ill.clone(), "one"), Upstream::moody(Arc::default(), "two"));
    let port = free_port();
    let care = json!({"path": "/health", "interval": "20ms", "healthy": 1, "unhealthy": 2});
    let terminate = json!({"type": "http_proxy", "upstreams": [one.address(), two.address()], "health_check": care});
    let proxy = Proxy::start(&rule(port, &terminate));
    until(|| state(&proxy, &one.address()).then_some(()));
    for _ in 0..4 {
        assert_eq!(ask(port, GET).text(), "two");
    }
    // A rule that has only this one still asks it.
    let only = json!({"type": "http_proxy", "upstream": one.address(), "health_check": care});
    proxy.apply(&rule(port, &only)).unwrap();
    assert_eq!(ask(port, GET).status, 503, "its own answer, not the proxy's");
    ill.store(false, Relaxed);
    until(|| (!state(&proxy, &one.address())).then_some(()));
    proxy.apply(&rule(port, &terminate)).unwrap();
    let both: std::collections::BTreeSet<String> = (0..6).map(|_| ask(port, GET).text()).collect();
    assert_eq!(both.len(), 2);
}

#[test]
fn failures_of_requests_take_an_upstream_out_for_a_while() {
    let (bad, good) = (Upstream::moody(Arc::new(AtomicBool::new(true)), "bad"), Upstream::echo());
    let port = free_port();
    let terminate = json!({"type": "http_proxy", "upstreams": [bad.address(), good.address()],
        "passive_health": {"failures": 2, "for": "1h"}});
    let proxy = Proxy::start(&rule(port, &terminate));
    until(|| {
        ask(port, GET);
        state(&proxy, &bad.address()).then_some(())
    });
    for _ in 0..4 {
        assert_eq!(ask(port, GET).status, 200);
    }
}

#[test]
fn only_what_may_be_repeated_is_sent_to_another_upstream() {
    let (bad, good) = (Upstream::moody(Arc::new(AtomicBool::new(true)), "bad"), Upstream::echo());
    let port = free_port();
    let terminate = json!({"type": "http_proxy", "upstreams": [bad.address(), good.address()], "retries": 1});
    let _proxy = Proxy::start(&rule(port, &terminate));
    for _ in 0..6 {
        assert_eq!(ask(port, GET).status, 200);
        assert_eq!(ask(port, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").status, 200);
    }
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let posts: Vec<u16> = (0..8).map(|_| ask(port, post).status).collect();
    assert!(posts.contains(&503) && posts.contains(&200), "{posts:?}");
}

#[test]
fn a_hash_of_a_header_keeps_its_upstream() {
    let all: Vec<Upstream> = (0..3).map(|i| Upstream::moody(Arc::default(), &format!("u{i}"))).collect();
    let addresses: Vec<String> = all.iter().map(Upstream::address).collect();
    let port = free_port();
    let _proxy = Proxy::start(&rule(
        port,
        &json!({"type": "http_proxy", "upstreams": addresses, "balance": "consistent_hash",
            "hash_on": "http.header.x-user"}),
    ));
    let mut used = std::collections::BTreeSet::new();
    for user in 0..20 {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n");
        let first = ask(port, &request).text();
        assert!((0..4).all(|_| ask(port, &request).text() == first), "{user}");
        used.insert(first);
    }
    assert_eq!(used.len(), 3);
}

#[test]
fn a_trusted_peer_says_for_whom_it_connects_and_upstreams_are_told() {
    for version in ["v1", "v2"] {
        let upstream = Upstream::raw_echo();
        let port = free_port();
        let mut rules =
            rule(port, &json!({"type": "tcp_forward", "upstream": upstream.address(), "send_proxy_protocol": version}));
        rules[0]["accept_proxy_protocol"] = json!(["127.0.0.0/8"]);
        rules[0]["match"] = json!({"remote.ip": {"equals": "203.0.113.9"}});
        let proxy = Proxy::start(&rules);
        let mut client = connect(port);
        client.write_all(b"PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello").unwrap();
        let text = "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello";
        let want = if version == "v1" { text.len() } else { 28 + 5 };
        let mut back = vec![0; want];
        client.read_exact(&mut back).unwrap();
        assert!(back.ends_with(b"hello"), "{back:?}");
        if version == "v1" {
            assert_eq!(back, text.as_bytes());
        } else {
            assert_eq!(back[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
            assert_eq!(back[16..20], [203, 0, 113, 9]);
        }
        drop(client);
        let flow = until(|| proxy.engine.flows(5).into_iter().find(|f| f.client == "203.0.113.9"));
        assert_eq!(flow.error, "");
        // Without a header the connection says nothing that could be believed.
        let mut client = connect(port);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        assert_eq!(all, b"");
        until(|| proxy.engine.flows(5).into_iter().find(|f| f.error.contains("PROXY protocol")));
    }
}

#[test]
fn datagrams_go_there_and_back_by_sessions() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 65_535];
        while let Ok((n, from)) = upstream.recv_from(&mut buf) {
            let mut answer = format!("{}:", from.port()).into_bytes();
            answer.extend_from_slice(&buf[..n]);
            let _ = upstream.send_to(&answer, from);
        }
    });
    let port = free_port();
    let settings = shipote_proxy::Settings { udp_sessions: 4, workers: 1, ..support::settings() };
    let rules = json!([{"name": "dns", "listen": [format!("udp:127.0.0.1:{port}")],
        "match": {"transport": {"equals": "udp"}},
        "terminate": {"type": "udp_forward", "upstream": address.to_string(), "idle_timeout": "300ms"}}]);
    let proxy = Proxy::start_with(settings, &rules);
    let client = || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let say = |socket: &UdpSocket, text: &[u8]| {
        socket.send(text).unwrap();
        let mut buf = [0; 65_535];
        let n = socket.recv(&mut buf).unwrap();
        let text = String::from_utf8_lossy(&buf[..n]).into_owned();
        let (port, rest) = text.split_once(':').unwrap();
        (port.to_owned(), rest.to_owned())
    };
    let (a, b) = (client(), client());
    let first = say(&a, b"hello");
    assert_eq!(first.1, "hello");
    assert_eq!(say(&a, b"again").0, first.0, "one session, one socket");
    assert_ne!(say(&b, b"other").0, first.0);
    assert_eq!(say(&a, &[b'x'; 9000]).1.len(), 9000);
    assert_eq!(proxy.engine.connections().len(), 2);
    // More clients than there is room for are not served, and cost nothing.
    let more: Vec<UdpSocket> = (0..4).map(|_| client()).collect();
    for socket in &more {
        socket.send(b"x").unwrap();
    }
    until(|| (proxy.engine.connections().len() == 4).then_some(()));
    // Idle sessions end, and say what they were.
    until(|| proxy.engine.connections().is_empty().then_some(()));
    let flow = proxy.engine.flows(10).into_iter().find(|f| f.bytes_in == 9010).unwrap();
    assert_eq!((flow.rule.as_str(), flow.upstream.as_str()), ("dns", address.to_string().as_str()));
    let text = shipote_proxy::metrics::render(&proxy.engine);
    assert!(text.contains("shipote_proxy_connections_refused_total 2"), "{text}");
    // A new session after that, and the end with the rule.
    assert_eq!(say(&a, b"back").1, "back");
    proxy.apply(&json!([])).unwrap();
    until(|| proxy.engine.connections().is_empty().then_some(()));
}

#[test]
fn a_pooled_connection_outlives_requests_of_several_clients() {
    let upstream = Upstream::echo();
    let port = free_port();
    let settings = shipote_proxy::Settings { workers: 1, ..support::settings() };
    let terminate = json!({"type": "http_proxy", "upstream": upstream.address(), "balance": "least_requests"});
    let _proxy = Proxy::start_with(settings, &rule(port, &terminate));
    for _ in 0..5 {
        let mut client = connect(port);
        client.write_all(GET.as_bytes()).unwrap();
        assert_eq!(read_answer(&mut client, false).status, 200);
    }
    assert_eq!(upstream.accepted.load(Relaxed), 1);
}
