//! HTTP/3 from clients and to upstreams, with peers of their own (`h3` on `h3-quinn`) and with datagrams by hand.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a test: what fails should panic")]

mod support;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value as Json, json};
use shipote_proxy::Settings;
use support::three::{Cert, Three, ThreeUpstream, block_on, dial, request};
use support::two::TwoUpstream;
use support::{Proxy, Upstream, ask, free_port, settings};

/// A rule for TCP and QUIC of one port.
fn rule(port: u16, cert: &Cert, terminate: &Json) -> Json {
    let listen = [format!("127.0.0.1:{port}"), format!("udp:127.0.0.1:{port}")];
    json!({"name": "all", "listen": listen, "tls": cert.tls(), "terminate": terminate})
}

fn to(port: u16, cert: &Cert, upstream: &str) -> Json {
    json!([rule(port, cert, &json!({"type": "http_proxy", "upstream": upstream}))])
}

fn certificate() -> (tempfile::TempDir, Cert) {
    let dir = tempfile::tempdir().unwrap();
    let cert = Cert::new(dir.path());
    (dir, cert)
}

fn big() -> Vec<u8> {
    (0..2_000_000u32).map(|i| (i % 251) as u8).collect()
}

#[test]
fn clients_of_http3_reach_upstreams_of_http1_and_are_told_of_it() {
    let ((_dir, cert), upstream, port) = (certificate(), Upstream::echo(), free_port());
    let proxy = Proxy::start(&to(port, &cert, &upstream.address()));
    let answer = block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        client.get("/x?y=1").await.unwrap()
    });
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["alt-svc"], format!("h3=\":{port}\"; ma=86400"));
    let text = String::from_utf8(answer.body).unwrap();
    assert!(text.starts_with("GET /x?y=1 HTTP/1.1\r\nHost: localhost\r\n"), "{text}");
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "a request without a body has none: {text}");
    let flows = proxy.engine.flows(10);
    assert!(flows.iter().any(|f| f.status == 200 && f.path == "/x"), "{flows:?}");

    // Over TCP the same rule says where else it is served, with or without TLS of its own.
    let plain = free_port();
    proxy
        .apply(&json!([
            rule(port, &cert, &json!({"type": "static", "status": 200})),
            {"name": "plain", "listen": [format!("127.0.0.1:{plain}")], "terminate": {"type": "static", "status": 200}},
        ]))
        .unwrap();
    let other = ask(plain, "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(
        other.headers.iter().all(|(name, _)| name != "alt-svc"),
        "a rule that is not served by HTTP/3 says nothing"
    );
    let out =
        std::process::Command::new("curl").args(["-sk", "-D", "-", &format!("https://127.0.0.1:{port}/")]).output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap().to_ascii_lowercase();
    assert!(text.contains(&format!("alt-svc: h3=\":{port}\"; ma=86400")), "{text}");
}

#[test]
fn every_version_reaches_every_version_with_large_bodies() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let (one, three) = (Upstream::echo_body(), ThreeUpstream::start(&cert));
    let two = free_port();
    let _two = Proxy::start(&json!([{"name": "two", "listen": [format!("127.0.0.1:{two}")],
        "terminate": {"type": "http1_proxy", "upstream": one.address()}}]));
    let proxy = Proxy::start(&json!([]));
    let body = big();
    for (kind, upstream, tls) in [
        ("http1_proxy", one.address(), None),
        ("http2_proxy", format!("127.0.0.1:{two}"), None),
        ("http3_proxy", three.address(), Some(cert.trusted())),
    ] {
        let mut terminate = json!({"type": kind, "upstream": upstream});
        if let Some(tls) = tls {
            terminate["tls"] = tls;
        }
        proxy.apply(&json!([rule(port, &cert, &terminate)])).unwrap();
        let got = block_on(async {
            let client = Three::connect(port, &cert).await.unwrap();
            let post = http::Request::post("https://localhost/big").body(()).unwrap();
            client.call(post, body.chunks(300_000).map(<[u8]>::to_vec).collect(), None).await.unwrap()
        });
        assert_eq!(got.status, 200, "3 to {kind}");
        assert!(got.body.ends_with(&body), "3 to {kind}: {} bytes", got.body.len());

        let file = _dir.path().join("body");
        std::fs::write(&file, &body).unwrap();
        for version in ["--http1.1", "--http2"] {
            let out = std::process::Command::new("curl")
                .args(["-sk", "--max-time", "30", version, "-w", "%{http_code}", "--data-binary"])
                .arg(format!("@{}", file.display()))
                .arg(format!("https://127.0.0.1:{port}/big"))
                .output()
                .unwrap();
            let end = [&body[..], b"200"].concat();
            assert!(out.stdout.ends_with(&end), "{version} to {kind}: {} bytes", out.stdout.len());
        }
    }
}

#[test]
fn calls_of_grpc_pass_with_their_trailers() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let (two, three) = (TwoUpstream::start(None), ThreeUpstream::start(&cert));
    for terminate in [
        json!({"type": "http2_proxy", "upstream": two.address()}),
        json!({"type": "http3_proxy", "upstream": three.address(), "tls": cert.trusted()}),
    ] {
        let _proxy = Proxy::start(&json!([rule(port, &cert, &terminate)]));
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "42".parse().unwrap());
        let post = http::Request::post("https://localhost/grpc").header("te", "trailers").body(()).unwrap();
        let answer = block_on(async {
            let client = Three::connect(port, &cert).await.unwrap();
            client.call(post, vec![b"one".to_vec(), b"two".to_vec()], Some(trailers)).await.unwrap()
        });
        assert!(answer.body.ends_with(b"onetwo"), "{terminate}");
        let trailers = answer.trailers.unwrap();
        assert_eq!((&trailers["grpc-status"], &trailers["x-sum"]), (&"0".parse().unwrap(), &"42".parse().unwrap()));
    }
}

#[test]
fn upstreams_of_http3_are_verified_shared_and_asked_again() {
    let ((_dir, cert), (_other_dir, other), port) = (certificate(), certificate(), free_port());
    let upstream = ThreeUpstream::start(&cert);
    let rules = |tls: Json| {
        json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")],
            "terminate": {"type": "http3_proxy", "upstream": upstream.address(), "tls": tls}}])
    };
    let get = |path: &str| ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let proxy = Proxy::start(&rules(cert.trusted()));
    let answer = get("/refused");
    assert_eq!(answer.status, 200, "a rejected request is sent again");
    assert_eq!(upstream.seen.lock().unwrap().len(), 2);
    assert!(answer.text().contains("GET https://localhost/refused"), "{}", answer.text());
    for _ in 0..20 {
        assert_eq!(get("/x").status, 200);
    }
    let text = shipote_proxy::metrics::render(&proxy.engine);
    let connections = text.lines().find(|l| l.starts_with("shipote_proxy_upstream_connections_total")).unwrap();
    let count: u32 = connections.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(count <= 3, "two workers share a connection each, and a rejected request gets a new one: {count}");
    proxy.apply(&rules(other.trusted())).unwrap();
    // The connection from before is still good; what the rules say now holds for new ones.
    let strict = Proxy::start(&json!([]));
    strict.apply(&json!([])).unwrap();
    drop(proxy);
    strict.apply(&rules(other.trusted())).unwrap();
    assert_eq!(get("/x").status, 502, "a certificate that nobody vouches for");
}

#[test]
fn what_is_torn_or_too_long_is_not_passed_on_as_whole() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let upstream = ThreeUpstream::start(&cert);
    let terminate = json!({"type": "http3_proxy", "upstream": upstream.address(), "tls": cert.trusted()});
    let _proxy = Proxy::start(&json!([rule(port, &cert, &terminate)]));
    block_on(async {
        for path in ["/torn", "/longer"] {
            let client = Three::connect(port, &cert).await.unwrap();
            let result = client.get(path).await;
            // A reset overtakes what was sent before it, so that there may have been no answer at all.
            assert!(result.as_ref().map_or(true, |a| a.status == 502), "{path}: {result:?}");
        }
    });
    let one = Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort");
    let port = free_port();
    let _proxy = Proxy::start(&to(port, &cert, &one.address()));
    block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        let result = client.get("/").await;
        assert!(result.is_err(), "{result:?}");
    });
}

#[test]
fn what_would_smuggle_a_request_is_refused() {
    let ((_dir, cert), upstream, port) = (certificate(), Upstream::echo(), free_port());
    let _proxy = Proxy::start(&to(port, &cert, &upstream.address()));
    let post = || http::Request::post("https://localhost/");
    block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        for (name, value) in [
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("content-length", "+3"),
        ] {
            let answer = client.call(post().header(name, value).body(()).unwrap(), vec![b"abc".to_vec()], None).await;
            assert_eq!(answer.unwrap().status, 400, "{name}: {value}");
        }
        // A body that is not as long as it says: nothing of it may be taken for another request.
        let smuggled = b"abcGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let request = post().header("content-length", "3").body(()).unwrap();
        let longer = client.call(request, vec![smuggled], None).await;
        assert!(longer.as_ref().map_or(true, |a| a.status == 400), "{longer:?}");
        let request = post().header("content-length", "30").body(()).unwrap();
        let shorter = client.call(request, vec![b"abc".to_vec()], None).await;
        assert!(shorter.as_ref().map_or(true, |a| a.status != 200), "{shorter:?}");
        assert_eq!(client.get("/after").await.unwrap().status, 200, "the connection goes on");
    });
    assert!(!upstream.seen().contains("smuggled"), "{}", upstream.seen());
}

#[test]
fn heads_and_frames_that_are_too_large_are_cut_off() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let _proxy = Proxy::start(&json!([rule(port, &cert, &json!({"type": "static", "status": 200}))]));
    block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        // h3 itself does not send what the peer said it would not take, so the frames are written by hand.
        let (_endpoint, quic) = dial((Ipv4Addr::LOCALHOST, port).into(), &cert).await.unwrap();
        let (mut send, mut recv) = quic.open_bi().await.unwrap();
        send.write_all(&[1, 0xbf, 0xff, 0xff, 0xff]).await.unwrap(); // HEADERS of a gigabyte
        let got = recv.read_to_end(1 << 20).await;
        assert!(got.is_err() || got.unwrap().is_empty());
        match quic.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), 0x107),
            other => panic!("{other}"),
        }
        // Data in frames of one byte is a body like any other.
        assert_eq!(client.get("/").await.unwrap().status, 200);
        let tiny = (0..5000).map(|_| vec![7]).collect();
        let post = http::Request::post("https://localhost/").body(()).unwrap();
        assert_eq!(client.call(post, tiny, None).await.unwrap().status, 200);
    });
}

#[test]
fn requests_that_are_taken_back_end_the_connection_and_only_that() {
    let ((_dir, cert), upstream, port) = (certificate(), Upstream::silent(), free_port());
    let mut rules = to(port, &cert, &upstream.address());
    let mut fixed = rule(port, &cert, &json!({"type": "static", "status": 200}));
    (fixed["name"], fixed["match"]) = (json!("fixed"), json!({"http.uri.path": {"equals": "/fixed"}}));
    rules.as_array_mut().unwrap().push(fixed);
    let proxy = Proxy::start(&rules);
    block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        let other = Three::connect(port, &cert).await.unwrap();
        for _ in 0..1000 {
            let Ok(mut stream) = client.requests.clone().send_request(request("/")).await else { break };
            stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
            stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
        }
        match client.quic.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), 0x107),
            error => panic!("{error}"),
        }
        assert_eq!(other.get("/fixed").await.unwrap().status, 200);
    });
    let open = || proxy.engine.upstreams().iter().map(|u| u.open).sum::<u64>();
    support::until(|| (open() == 0).then_some(()));
}

/// Passes datagrams between a client and the proxy; `judge` says of each from the proxy whether it goes on.
fn relay(port: u16, judge: impl Fn(&[u8]) -> bool + Send + 'static) -> (SocketAddr, Arc<Mutex<[u64; 2]>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let counts = Arc::<Mutex<[u64; 2]>>::default();
    let counted = Arc::clone(&counts);
    std::thread::spawn(move || {
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        back.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let client = Arc::new(Mutex::new(None::<SocketAddr>));
        let (to, from, known, total) =
            (socket.try_clone().unwrap(), back.try_clone().unwrap(), client.clone(), counted.clone());
        std::thread::spawn(move || {
            let mut buf = [0; 65_535];
            while let Ok(n) = from.recv(&mut buf) {
                total.lock().unwrap()[1] += n as u64;
                if let (true, Some(client)) = (judge(&buf[..n]), *known.lock().unwrap()) {
                    let _ = to.send_to(&buf[..n], client);
                }
            }
        });
        let mut buf = [0; 65_535];
        while let Ok((n, from)) = socket.recv_from(&mut buf) {
            *client.lock().unwrap() = Some(from);
            counted.lock().unwrap()[0] += n as u64;
            let _ = back.send(&buf[..n]);
        }
    });
    (address, counts)
}

#[test]
fn an_address_that_proves_nothing_gets_three_times_what_it_sends() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let _proxy = Proxy::start(&json!([rule(port, &cert, &json!({"type": "static", "status": 200}))]));
    // Nothing comes back to the client, as for one that forged its address.
    let (address, counts) = relay(port, |_| false);
    block_on(async {
        let dialling = tokio::time::timeout(Duration::from_secs(3), dial(address, &cert));
        assert!(dialling.await.is_err(), "no handshake");
    });
    let [sent, came] = *counts.lock().unwrap();
    assert!(sent >= 1200 && came > 0 && came <= 3 * sent, "{came} bytes for {sent}");
}

#[test]
fn clients_prove_their_address_where_there_are_many_handshakes() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let settings = Settings { quic_handshakes: 0, ..settings() };
    let proxy = Proxy::start_with(settings, &json!([rule(port, &cert, &json!({"type": "static", "status": 200}))]));
    let kinds = Arc::<Mutex<Vec<u8>>>::default();
    let log = Arc::clone(&kinds);
    let (address, counts) = relay(port, move |datagram| {
        log.lock().unwrap().push(datagram[0] & 0xf0);
        true
    });
    block_on(async {
        let (_endpoint, connection) = dial(address, &cert).await.unwrap();
        connection.close(0u8.into(), b"");
    });
    // A long header of the type Retry (RFC 9000, section 17.2.5), before anything else.
    assert_eq!(kinds.lock().unwrap()[0], 0xf0, "{kinds:x?}");
    assert!(counts.lock().unwrap()[1] > 0);
    let text = shipote_proxy::metrics::render(&proxy.engine);
    assert!(!text.contains("shipote_proxy_quic_retries_total 0\n"), "{text}");
}

#[test]
fn a_reload_under_load_fails_no_request() {
    let ((_dir, cert), upstream, port) = (certificate(), Upstream::echo(), free_port());
    let proxy = Proxy::start(&to(port, &cert, &upstream.address()));
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    block_on(async {
                        let mut count = 0;
                        while !stop.load(Relaxed) {
                            let client = Three::connect(port, &cert).await.unwrap();
                            for _ in 0..20 {
                                assert_eq!(client.get("/").await.unwrap().status, 200);
                                count += 1;
                            }
                        }
                        count
                    })
                })
            })
            .collect();
        for round in 0..20 {
            let extra = free_port();
            let mut rules = to(port, &cert, &upstream.address());
            let mut other = rule(extra, &cert, &json!({"type": "static", "status": 200}));
            other["name"] = json!(format!("r{round}"));
            rules.as_array_mut().unwrap().push(other);
            proxy.apply(&rules).unwrap();
            block_on(async {
                let client = Three::connect(extra, &cert).await.unwrap();
                assert_eq!(client.get("/").await.unwrap().status, 200);
            });
        }
        stop.store(true, Relaxed);
        assert!(clients.into_iter().map(|c| c.join().unwrap()).sum::<u32>() > 0);
    });
}

#[test]
fn draining_lets_open_requests_end_and_takes_no_new_ones() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let upstream = Upstream::slow(Duration::from_millis(500));
    let proxy = Proxy::start(&to(port, &cert, &upstream.address()));
    block_on(async {
        let idle = Three::connect(port, &cert).await.unwrap();
        assert_eq!(idle.get("/").await.unwrap().status, 200);
        let busy = Three::connect(port, &cert).await.unwrap();
        let (answer, left) = tokio::join!(busy.get("/"), async {
            while upstream.seen().matches("GET /").count() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            proxy.engine.drain().await
        });
        assert_eq!((answer.unwrap().status, left), (200, 0));
        let ended = idle.driver.await.unwrap();
        assert!(ended.is_h3_no_error(), "{ended}");
        let late = tokio::time::timeout(Duration::from_secs(2), Three::connect(port, &cert)).await;
        assert!(!matches!(late, Ok(Ok(_))));
    });
}

#[test]
fn an_address_that_no_rule_names_any_more_takes_no_connections() {
    let ((_dir, cert), port, other) = (certificate(), free_port(), free_port());
    let fixed = |port| json!([rule(port, &cert, &json!({"type": "static", "status": 200}))]);
    let proxy = Proxy::start(&fixed(port));
    block_on(async {
        let open = Three::connect(port, &cert).await.unwrap();
        assert_eq!(open.get("/").await.unwrap().status, 200);
        proxy.apply(&fixed(other)).unwrap();
        assert!(open.driver.await.unwrap().is_h3_no_error(), "it ends in good order");
        let late = tokio::time::timeout(Duration::from_secs(2), Three::connect(port, &cert)).await;
        assert!(!matches!(late, Ok(Ok(_))));
        assert_eq!(Three::connect(other, &cert).await.unwrap().get("/").await.unwrap().status, 200);
    });
}

#[test]
fn limits_of_connections_hold_for_quic() {
    let ((_dir, cert), port) = (certificate(), free_port());
    let settings = Settings { connections_per_address: 2, ..settings() };
    let _proxy = Proxy::start_with(settings, &json!([rule(port, &cert, &json!({"type": "static", "status": 200}))]));
    block_on(async {
        let first = Three::connect(port, &cert).await.unwrap();
        let _second = Three::connect(port, &cert).await.unwrap();
        assert!(Three::connect(port, &cert).await.is_err(), "the third is refused");
        assert_eq!(first.get("/").await.unwrap().status, 200);
    });
}

#[test]
fn a_client_that_hangs_in_a_body_or_a_head_is_cut_off() {
    let ((_dir, cert), upstream, port) = (certificate(), Upstream::echo(), free_port());
    let limit = Duration::from_millis(1500);
    let settings = Settings { head_time: limit, body_time: limit, ..settings() };
    let _proxy = Proxy::start_with(settings, &to(port, &cert, &upstream.address()));
    block_on(async {
        let client = Three::connect(port, &cert).await.unwrap();
        let (mut send, mut recv) = client.quic.open_bi().await.unwrap();
        send.write_all(&[1, 40]).await.unwrap(); // HEADERS, of which nothing follows
        assert!(recv.read_to_end(1024).await.is_err(), "it is reset");
        let post = http::Request::post("https://localhost/").header("content-length", "10").body(()).unwrap();
        let mut stream = client.requests.clone().send_request(post).await.unwrap();
        stream.send_data(Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(stream.recv_response().await.unwrap().status(), 408);
        assert_eq!(client.get("/").await.unwrap().status, 200);
    });
}
