//! Connections over TLS that end without the word that ends them (`close_notify`): anybody on the way can make that of a
//! whole one, so nothing that comes over them is whole by its end alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value as Json, json};

use crate::support::{Proxy, Upstream, connect, free_port, until};
use crate::{Cert, cert, get, listens, tls};

/// A server whose answers end with the connection; with or without the word. The port.
fn ending(cert: &Cert, farewell: bool) -> u16 {
    let key = PrivateKeyDer::try_from(cert.key.clone()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der.clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                head.push(byte[0]);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello");
            if farewell {
                stream.conn.send_close_notify();
            }
            let _ = stream.flush();
        }
    });
    port
}

fn over_tls(port: u16, cert: &Cert) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(cert.der.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("a.example").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), connect(port))
}

#[test]
fn an_answer_whose_end_is_not_told_does_not_look_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    for farewell in [true, false] {
        let (port, upstream) = (free_port(), ending(&a, farewell));
        let proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "terminate": {"type": "http_proxy",
            "upstream": format!("127.0.0.1:{upstream}"), "tls": {"insecure_skip_verify": true}}}]));
        let mut client = connect(port);
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut all = Vec::new();
        let _ = client.read_to_end(&mut all);
        let text = String::from_utf8_lossy(&all);
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("hello"), "{text}");
        assert_eq!(text.ends_with("0\r\n\r\n"), farewell, "{text}");
        let flow = until(|| proxy.engine.flows(1).pop());
        assert_eq!(flow.error.is_empty(), farewell, "{}", flow.error);
    }
}

#[test]
fn a_request_whose_body_is_cut_off_is_not_passed_on_as_whole() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    let (port, upstream) = (free_port(), Upstream::echo());
    let rules: Json = json!([{"name": "a", "listen": listens(port), "tls": tls(&a, None),
        "terminate": {"type": "http_proxy", "upstream": upstream.address()}}]);
    let proxy = Proxy::start(&rules);
    for body in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
        let before = proxy.engine.flows(100).len();
        let mut client = over_tls(port, &a);
        client.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").as_bytes()).unwrap();
        client.flush().unwrap();
        client.sock.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.starts_with("HTTP/1.1 200"), "{text}");
        let flows = until(|| Some(proxy.engine.flows(100)).filter(|all| all.len() > before));
        assert!(flows.iter().all(|flow| !flow.error.is_empty()), "{flows:?}");
    }
    assert!(get(port, "a.example", &a, None).is_ok(), "others are served");
}

#[test]
fn a_handshake_that_breaks_off_costs_nobody_else_anything() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    let port = free_port();
    let _proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "tls": tls(&a, None),
        "terminate": {"type": "static", "status": 200, "text": "served"}}]));
    let mut hello = Vec::new();
    over_tls(port, &a).conn.write_tls(&mut hello).unwrap();
    assert!(hello.len() > 100, "a whole hello");
    for cut in [1, 4, 5, 6, 43, 100, hello.len() - 1, hello.len()] {
        let mut client = connect(port);
        client.write_all(&hello[..cut]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        // An end, or a reset; a time limit would be neither.
        if let Err(e) = client.read_to_end(&mut rest) {
            assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "after {cut} bytes");
        }
        assert!(!rest.starts_with(b"HTTP"), "after {cut} bytes");
    }
    assert_eq!(get(port, "a.example", &a, None).unwrap(), "served");
}
