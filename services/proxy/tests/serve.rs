//! The data plane on real sockets of the loopback interface.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::{Value as Json, json};
use support::{Answer, Proxy, Upstream, ask, connect, free_port, proxy_to, read_answer};

fn fixed(port: u16, name: &str, matches: &Json, text: &str) -> Json {
    json!({"name": name, "listen": [format!("127.0.0.1:{port}")], "match": matches,
        "terminate": {"type": "static", "status": 200, "text": text}})
}

#[test]
fn a_request_goes_there_and_its_answer_comes_back() {
    let upstream = Upstream::echo();
    let (proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    for i in 0..5 {
        let body = format!("hello {i}");
        write!(client, "POST /x?q={i} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let answer = read_answer(&mut client, false);
        assert_eq!(answer.status, 200);
        assert!(answer.text().starts_with(&format!("POST /x?q={i} HTTP/1.1\r\nHost: a\r\n")), "{}", answer.text());
        assert!(answer.text().ends_with(&body), "{}", answer.text());
    }
    // A flow is noted once its answer is out, so the client may be here first.
    let flows = support::until(|| Some(proxy.engine.flows(10)).filter(|f| f.len() == 5));
    assert_eq!((flows[0].rule.as_str(), flows[0].method.as_str(), flows[0].path.as_str()), ("all", "POST", "/x"));
    assert_eq!(flows[0].bytes_in, 7);
}

#[test]
fn requests_on_one_connection_share_one_upstream_connection() {
    let upstream = Upstream::echo();
    let (_proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    for _ in 0..20 {
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut client, false).status, 200);
    }
    assert_eq!(upstream.accepted.load(Relaxed), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::echo();
    let (_proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    let all: String = (0..10).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.write_all(all.as_bytes()).unwrap();
    for i in 0..10 {
        assert!(read_answer(&mut client, false).text().starts_with(&format!("GET /{i} ")));
    }
}

#[test]
fn large_bodies_stream_both_ways_in_every_framing() {
    let upstream = Upstream::echo_body();
    let (_proxy, port) = proxy_to(&upstream);
    let body: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    for chunked in [false, true] {
        let mut client = connect(port);
        let mut writer = client.try_clone().unwrap();
        let sent = body.clone();
        let sending = std::thread::spawn(move || {
            if chunked {
                writer.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
                for piece in sent.chunks(70_001) {
                    write!(writer, "{:x};ext=1\r\n", piece.len()).unwrap();
                    writer.write_all(piece).unwrap();
                    writer.write_all(b"\r\n").unwrap();
                }
                writer.write_all(b"0\r\nTrailer: x\r\n\r\n").unwrap();
            } else {
                write!(writer, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
                writer.write_all(&sent).unwrap();
            }
        });
        let answer = read_answer(&mut client, false);
        sending.join().unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body == body, "chunked {chunked}: {} of {} bytes", answer.body.len(), body.len());
        // The connection carries on.
        write!(client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!(read_answer(&mut client, false).body, b"hi");
    }
}

#[test]
fn a_connection_that_the_upstream_closed_while_idle_is_no_error() {
    let upstream = Upstream::one_request_then_close();
    let (_proxy, port) = proxy_to(&upstream);
    let mut client = connect(port);
    for i in 0..20 {
        let method = if i % 2 == 0 { "GET" } else { "POST" };
        write!(client, "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").unwrap();
        assert_eq!(read_answer(&mut client, false).status, 200, "request {i}");
    }
}

#[test]
fn an_upstream_that_is_not_there_is_502_and_the_next_one_is_tried() {
    let upstream = Upstream::echo();
    let (dead, one, both) = (free_port(), free_port(), free_port());
    let rule = |name: &str, port: u16, upstreams: Json| {
        json!({"name": name, "listen": [format!("127.0.0.1:{port}")],
            "terminate": {"type": "http_proxy", "upstreams": upstreams}})
    };
    let proxy = Proxy::start(&json!([
        rule("one", one, json!([format!("127.0.0.1:{dead}")])),
        rule("both", both, json!([format!("127.0.0.1:{dead}"), upstream.address()])),
    ]));
    let answer = ask(one, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.status, 502);
    // Who asks hears why, but not where; who runs the proxy hears that, too.
    assert_eq!(answer.text(), "502 Bad Gateway\nthe upstream cannot be reached: nobody listens there\n");
    let error = proxy.flow(502).error;
    assert!(error.contains(&dead.to_string()) && error.contains("refused"), "{error}");
    for _ in 0..6 {
        assert_eq!(ask(both, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    }
}

#[test]
fn what_cannot_be_served_is_named_with_file_and_rule() {
    let proxy = Proxy::start(&json!([]));
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let rule = |name: &str, listen: String, chain: Json| {
        json!({"name": name, "listen": [listen], "middleware_chain": chain,
            "terminate": {"type": "static", "status": 200}})
    };
    let free = || format!("127.0.0.1:{}", free_port());
    let fine = rule("fine", free(), json!([]));
    for (wrong, parts) in [
        (
            rule("taken", taken.to_string(), json!([])),
            ["test.json: rule \"taken\": listen on 127.0.0.1:", "in use", "another address"],
        ),
        (
            rule("far", "192.0.2.1:8080".to_owned(), json!([])),
            ["test.json: rule \"far\": listen on 192.0.2.1:8080", "Cannot assign", "that this host has"],
        ),
        (
            rule("plugin", free(), json!([{"use": "edge:check"}])),
            ["test.json: rule \"plugin\": plugin \"edge\"", "not in the registry", "shipote plugin add"],
        ),
    ] {
        let refused = proxy.apply(&json!([fine, wrong])).unwrap_err();
        assert!(parts.iter().all(|part| refused.contains(part)), "{refused}");
    }
}

#[test]
fn answers_are_framed_for_the_client() {
    let port = free_port();
    for (raw, keeps) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", true),
        ("HTTP/1.0 200 OK\r\n\r\nhello", true),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
    ] {
        let upstream = Upstream::fixed(raw);
        let rule = json!({"name": "all", "listen": [format!("127.0.0.1:{port}")],
            "terminate": {"type": "http_proxy", "upstream": upstream.address()}});
        let _proxy = Proxy::start(&json!([rule]));
        let mut client = connect(port);
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let answer = read_answer(&mut client, false);
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{raw:?}");
        assert_eq!(!answer.has("connection", "close"), keeps, "{raw:?}");
        // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        let old = ask(port, "GET / HTTP/1.0\r\n\r\n");
        assert_eq!((old.status, old.text().as_str()), (200, "hello"), "{raw:?}");
        assert!(!old.has("transfer-encoding", "chunked"));
        let mut client = connect(port);
        write!(client, "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let answer = read_answer(&mut client, true);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{raw:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_is_broken_off_for_the_client_too() {
    for raw in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhello",
    ] {
        let upstream = Upstream::fixed(raw);
        let (_proxy, port) = proxy_to(&upstream);
        let mut client = connect(port);
        write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with("HTTP/1.1 200"), "{text:?}");
        assert!(!text.ends_with("0\r\n\r\n"), "a torn body must not look whole: {text:?}");
    }
}

#[test]
fn nonsense_from_an_upstream_is_502() {
    for (raw, reason) in [
        ("SSH-2.0-x\r\n", "the upstream did not answer in HTTP/1.1"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", ""),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ""),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "the upstream switches protocols unasked"),
        ("", "the upstream closed the connection without an answer"),
    ] {
        let upstream = Upstream::fixed(raw);
        let (proxy, port) = proxy_to(&upstream);
        let answer = ask(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let error = proxy.flow(502).error;
        assert!(!error.is_empty() && error.contains(reason), "{raw:?}: {error}");
        assert_eq!((answer.status, answer.text()), (502, format!("502 Bad Gateway\n{error}\n")), "{raw:?}");
    }
}

#[test]
fn smuggling_is_answered_and_the_connection_closed() {
    let upstream = Upstream::echo();
    let (_proxy, port) = proxy_to(&upstream);
    for (request, status) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 501),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 505),
    ] {
        let mut client = connect(port);
        client.write_all(request.as_bytes()).unwrap();
        // Were the rest taken for a request, it would be answered too.
        let _ = client.write_all(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {text:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{request:?}: {text:?}");
    }
    let seen = upstream.seen();
    assert!(!seen.contains("smuggled"), "{seen}");
}

#[test]
fn rules_choose_by_path_method_host_and_header() {
    let port = free_port();
    let _proxy = Proxy::start(&json!([
        fixed(port, "path", &json!({"http.uri.path": {"prefix": "/p"}}), "path"),
        fixed(port, "method", &json!({"http.method": {"equals": "PUT"}, "http.uri.path": {"equals": "/m"}}), "method"),
        fixed(
            port,
            "host",
            &json!({"http.header.host": {"equals": "h.example"}, "http.method": {"equals": "GET"}}),
            "host"
        ),
        fixed(
            port,
            "header",
            &json!({"http.header.x-a": {"matches": "^[0-9]+$"}, "http.uri.path": {"equals": "/h"}}),
            "header"
        ),
        fixed(port, "ip", &json!({"remote.ip": {"cidr": "127.0.0.0/8"}, "http.uri.path": {"equals": "/ip"}}), "ip"),
    ]));
    for (request, want) in [
        ("GET /p/x HTTP/1.1\r\nHost: a\r\n\r\n", "path"),
        ("PUT /m HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "method"),
        ("GET /m HTTP/1.1\r\nHost: h.example\r\n\r\n", "host"),
        ("GET /h HTTP/1.1\r\nHost: a\r\nX-A: 42\r\n\r\n", "header"),
        ("GET /ip HTTP/1.1\r\nHost: a\r\n\r\n", "ip"),
        ("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "no rule matches\n"),
    ] {
        assert_eq!(ask(port, request).text(), want, "{request:?}");
    }
}

#[test]
fn middleware_changes_limits_and_refuses() {
    let upstream = Upstream::echo();
    let port = free_port();
    let chain = json!([
        {"use": "method_match", "args": {"methods": ["GET"]}, "on_error": {"response": {"status": 405}}},
        {"use": "path_prefix", "args": {"prefixes": ["/api"]}},
        {"use": "rate_limit", "args": {"rate": 1, "burst": 3, "window": "1h", "on_limit": {"status": 429, "text": "slow"}}},
        {"use": "forward_client_ip"},
        {"use": "request_headers", "args": {"set": {"x-new": "1"}, "remove": ["cookie"]}},
        {"use": "response_headers", "args": {"set": {"x-back": "2"}}},
        {"use": "rewrite_path", "args": {"strip_prefix": "/api"}},
    ]);
    let _proxy = Proxy::start(&json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")],
        "middleware_chain": chain, "terminate": {"type": "http_proxy", "upstream": upstream.address()}}]));
    let answer = ask(port, "GET /api/x HTTP/1.1\r\nHost: a\r\nCookie: c\r\n\r\n");
    assert_eq!(
        answer.text(),
        "GET /x HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nx-new: 1\r\n\r\n"
    );
    assert!(answer.has("x-back", "2"));
    assert_eq!(ask(port, "POST /api HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);
    assert_eq!(ask(port, "GET /other HTTP/1.1\r\nHost: a\r\n\r\n").status, 0, "closed without an answer");
    let limited: Vec<u16> = (0..4).map(|_| ask(port, "GET /api HTTP/1.1\r\nHost: a\r\n\r\n").status).collect();
    assert_eq!(limited, [200, 200, 429, 429]);
}

#[test]
fn redirects_keep_host_path_and_query() {
    let port = free_port();
    let _proxy = Proxy::start(&json!([
        {"preset": "redirect_https", "name": "up", "listen": [format!("127.0.0.1:{port}")]}]));
    let answer = ask(port, "GET /a?b=c HTTP/1.1\r\nHost: site.example:8080\r\n\r\n");
    assert_eq!(answer.status, 308);
    assert!(answer.has("location", "https://site.example/a?b=c"), "{answer:?}");
}

#[test]
fn time_limits_hold_in_every_phase() {
    let silent = Upstream::silent();
    let port = free_port();
    let settings = shipote_proxy::Settings {
        head_time: Duration::from_millis(200),
        body_time: Duration::from_millis(200),
        idle_time: Duration::from_millis(200),
        ..support::settings()
    };
    let rule = json!({"name": "all", "listen": [format!("127.0.0.1:{port}")], "terminate":
        {"type": "http_proxy", "upstream": silent.address(), "timeouts": {"response": "200ms"}}});
    let _proxy = Proxy::start_with(settings, &json!([rule]));
    assert_eq!(ask(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 504);
    assert_eq!(ask(port, "GET / HTTP/1.1\r\nHost").status, 408);
    assert_eq!(ask(port, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe").status, 408);
    assert_eq!(ask(port, "").status, 0, "an idle connection is closed in silence");
}

#[test]
fn a_head_without_end_is_431() {
    let upstream = Upstream::echo();
    let (_proxy, port) = proxy_to(&upstream);
    let many = "X: y\r\n".repeat(200);
    assert_eq!(ask(port, &format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).status, 431);
    let long = "y".repeat(40_000);
    assert_eq!(ask(port, &format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n")).status, 431);
}

#[test]
fn bytes_are_forwarded_with_half_closes() {
    let upstream = Upstream::raw_echo();
    let port = free_port();
    let _proxy = Proxy::start(&json!([{"name": "raw", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "tcp_forward", "upstream": upstream.address()}}]));
    let mut client = connect(port);
    let body = vec![7u8; 500_000];
    let mut writer = client.try_clone().unwrap();
    let sent = body.clone();
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == body);
}

#[test]
fn http_and_other_bytes_share_a_port() {
    let upstream = Upstream::raw_echo();
    let port = free_port();
    let _proxy = Proxy::start(&json!([
        fixed(port, "web", &json!({"http.uri.path": {"prefix": "/"}}), "web"),
        {"name": "raw", "listen": [format!("127.0.0.1:{port}")],
            "terminate": {"type": "tcp_forward", "upstream": upstream.address()}},
    ]));
    assert_eq!(ask(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").text(), "web");
    let mut client = connect(port);
    client.write_all(b"\x00\x01binary").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"\x00\x01binary");
}

#[test]
fn websockets_pass_where_the_rule_allows_them() {
    let upstream = Upstream::websocket();
    let port = free_port();
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    {
        let _proxy = Proxy::start(&json!([{"preset": "reverse_proxy", "name": "a",
            "listen": [format!("127.0.0.1:{port}")], "args": {"upstream": upstream.address()}}]));
        assert_eq!(ask(port, upgrade).status, 400);
    }
    let _proxy = Proxy::start(&json!([{"preset": "reverse_proxy", "name": "a",
        "listen": [format!("127.0.0.1:{port}")], "args": {"upstream": upstream.address(), "websocket": true}}]));
    let mut client = connect(port);
    client.write_all(upgrade.as_bytes()).unwrap();
    let answer = read_answer(&mut client, true);
    assert_eq!(answer.status, 101);
    assert!(answer.has("upgrade", "websocket") && answer.has("x-server", "ws"), "{answer:?}");
    client.write_all(b"frame").unwrap();
    let mut back = [0; 5];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"frame");
}

#[test]
fn a_reload_under_load_fails_no_request() {
    let upstream = Upstream::echo();
    let (proxy, port) = proxy_to(&upstream);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let mut client = connect(port);
                let mut count = 0;
                while !stop.load(Relaxed) {
                    write!(client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
                    assert_eq!(read_answer(&mut client, false).status, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..50 {
        let extra = free_port();
        let mut rules = vec![json!({"name": "all", "listen": [format!("127.0.0.1:{port}")],
            "terminate": {"type": "http_proxy", "upstream": upstream.address()}})];
        for i in 0..20 {
            let path = format!("/{round}/{i}");
            rules.push(fixed(port, &format!("r{i}"), &json!({"http.uri.path": {"equals": path}}), "x"));
        }
        rules.push(fixed(extra, "extra", &json!({}), "extra"));
        proxy.apply(&json!(rules)).unwrap();
        assert_eq!(ask(extra, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").text(), "extra");
    }
    stop.store(true, Relaxed);
    let total: u64 = clients.into_iter().map(|c| c.join().unwrap()).sum();
    assert!(total > 0);
}

#[test]
fn a_refused_reload_leaves_the_rules_from_before() {
    let port = free_port();
    let proxy = Proxy::start(&json!([fixed(port, "a", &json!({}), "before")]));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = taken.local_addr().unwrap().port();
    let error = proxy.apply(&json!([fixed(port, "a", &json!({}), "after"), fixed(other, "b", &json!({}), "b")]));
    assert!(error.unwrap_err().contains(&other.to_string()));
    assert_eq!(ask(port, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").text(), "before");
    let error = proxy.apply(&json!([{"name": "c", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "cgi", "command": ["/x"]}}]));
    let error = error.unwrap_err();
    assert!(error.contains("\"c\"") && error.contains("needs the bus"), "{error}");
}

#[test]
fn draining_lets_open_requests_end_and_closes_idle_ones() {
    let upstream = Upstream::slow(Duration::from_millis(300));
    let (proxy, port) = proxy_to(&upstream);
    let mut idle = connect(port);
    write!(idle, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut idle, false).status, 200);
    let mut busy = connect(port);
    write!(busy, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    upstream.wait_for(2);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(proxy.engine.drain()), 0);
    let answer: Answer = read_answer(&mut busy, false);
    assert_eq!(answer.status, 200);
    assert!(answer.has("connection", "close"));
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
}

#[test]
fn another_server_says_whether_a_request_may_pass() {
    let (upstream, port) = (Upstream::echo(), free_port());
    let yes = Upstream::fixed("HTTP/1.1 204 No Content\r\nX-User: alice\r\n\r\n");
    let no = Upstream::fixed("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 5\r\n\r\nlogin");
    let rule = |name: &str, auth: &str, path: &str| {
        json!({"name": name, "listen": [format!("127.0.0.1:{port}")], "match": {"http.uri.path": {"prefix": path}},
            "middleware_chain": [{"use": "forward_auth", "on_error": {"response": {"status": 503}},
                "args": {"upstream": auth, "path": "/check", "copy_headers": ["X-User"]}}],
            "terminate": {"type": "http_proxy", "upstream": upstream.address()}})
    };
    let dead = format!("127.0.0.1:{}", free_port());
    let _proxy = Proxy::start(&json!([
        rule("yes", &yes.address(), "/yes"),
        rule("no", &no.address(), "/no"),
        rule("dead", &dead, "/dead")
    ]));
    let answer = ask(
        port,
        "POST /yes?q HTTP/1.1\r\nHost: h\r\nX-User: mallory\r\nX-Forwarded-Uri: /other\r\nCookie: c\r\nContent-Length: 2\r\n\r\nhi",
    );
    let text = answer.text();
    assert!(text.contains("x-user: alice") && !text.contains("mallory") && text.ends_with("hi"), "{text}");
    let asked = yes.seen();
    assert!(asked.starts_with("GET /check HTTP/1.1\r\n") && asked.contains("X-Forwarded-Uri: /yes?q\r\n"), "{asked}");
    assert!(
        asked.contains("Cookie: c") && !asked.contains("/other") && asked.contains("X-Forwarded-Method: POST"),
        "{asked}"
    );
    let answer = ask(port, "GET /no HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(
        (answer.status, answer.text().as_str()) == (302, "login") && answer.has("location", "/login"),
        "{answer:?}"
    );
    assert_eq!(ask(port, "GET /dead HTTP/1.1\r\nHost: h\r\n\r\n").status, 503);
    assert!(!upstream.seen().contains("/no") && !upstream.seen().contains("/dead"));
}

#[test]
fn answers_are_compressed_for_clients_that_take_it() {
    let port = free_port();
    let text = "compress me ".repeat(1000);
    let body = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"x\"\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let upstream = Upstream::fixed(&body);
    let image = Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 3\r\n\r\npng");
    let rule = |name: &str, path: &str, upstream: &Upstream| {
        json!({"name": name, "listen": [format!("127.0.0.1:{port}")], "match": {"http.uri.path": {"prefix": path}},
            "middleware_chain": [{"use": "compress"}],
            "terminate": {"type": "http_proxy", "upstream": upstream.address()}})
    };
    let _proxy = Proxy::start(&json!([rule("text", "/text", &upstream), rule("image", "/image", &image)]));
    let get = |path: &str, accept: &str| {
        ask(port, &format!("GET {path} HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {accept}\r\n\r\n"))
    };
    for accept in ["gzip", "br;q=1, gzip;q=0.5", "*"] {
        let answer = get("/text", accept);
        assert!(answer.has("content-encoding", "gzip") && answer.has("etag", "W/\"x\""), "{accept}");
        assert!(answer.body.len() < text.len() / 10);
        let mut plain = String::new();
        flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut plain).unwrap();
        assert_eq!(plain, text);
    }
    for accept in ["identity", "gzip;q=0", "br"] {
        let answer = get("/text", accept);
        assert!(answer.text() == text && answer.has("vary", "accept-encoding"), "{accept}");
    }
    assert_eq!(get("/image", "gzip").text(), "png");
}

#[test]
fn who_drips_or_does_not_read_is_cut_off_and_others_are_served() {
    let upstream =
        Upstream::fixed(&format!("HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n{}", "x".repeat(20_000_000)));
    let (port, fast) = (free_port(), free_port());
    let settings = shipote_proxy::Settings { head_time: Duration::from_millis(300), workers: 1, ..support::settings() };
    let large = json!({"name": "large", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "http_proxy", "upstream": upstream.address(), "timeouts": {"idle": "300ms"}}});
    let proxy = Proxy::start_with(
        settings,
        &json!([large, fixed(fast, "fixed", &json!({"http.method": {"equals": "GET"}}), "ok")]),
    );
    // A head that drips: however often a byte comes, the time for the head is over.
    let mut drips: Vec<TcpStream> = (0..50).map(|_| connect(fast)).collect();
    let dripping = std::thread::spawn(move || {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".iter().chain(std::iter::repeat(&b'y'));
        for byte in text {
            drips.retain_mut(|d| d.write_all(&[*byte]).is_ok());
            if drips.is_empty() {
                return;
            }
            std::thread::yield_now();
        }
    });
    // An answer that nobody reads.
    let mut deaf = connect(port);
    deaf.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(ask(fast, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").text(), "ok");
    let flow = support::until(|| proxy.engine.flows(500).into_iter().find(|f| f.rule == "large"));
    assert!(flow.error.contains("time limit"), "{}", flow.error);
    support::until(|| (proxy.engine.open() == 0).then_some(()));
    dripping.join().unwrap();
    drop(deaf);
}
