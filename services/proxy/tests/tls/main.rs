//! TLS on listeners: certificates by server name, client certificates, and names forwarded without decrypting.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test: what fails should panic")]

mod acme;
mod ocsp;
#[path = "../support/mod.rs"]
mod support;
mod truncated;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value as Json, json};
use support::{Proxy, Upstream, connect, free_port};

struct Cert {
    der: CertificateDer<'static>,
    key: Vec<u8>,
    cert_file: PathBuf,
    key_file: PathBuf,
}

fn cert(dir: &Path, name: &str) -> Cert {
    let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
        generate_simple_self_signed([name.to_owned()]).unwrap();
    let (cert_file, key_file) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, signing_key.serialize_pem()).unwrap();
    Cert { der: cert.der().clone(), key: signing_key.serialize_der(), cert_file, key_file }
}

fn tls(cert: &Cert, sni: Option<&str>) -> Json {
    let mut tls = json!({"cert_file": cert.cert_file, "key_file": cert.key_file});
    if let Some(name) = sni {
        tls["sni"] = json!(name);
    }
    tls
}

/// Asks for `/` over TLS as `name`, trusting `root`; the answer's text, or why there is none.
fn get(port: u16, name: &str, root: &Cert, client: Option<&Cert>) -> Result<String, String> {
    let mut roots = RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(cert) => {
            let key = PrivateKeyDer::try_from(cert.key.clone()).unwrap();
            builder.with_client_auth_cert(vec![cert.der.clone()], key).unwrap()
        }
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream: StreamOwned<ClientConnection, TcpStream> = StreamOwned::new(connection, connect(port));
    let mut text = String::new();
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").map_err(|e| e.to_string())?;
        let mut bytes = [0; 4096];
        let n = stream.read(&mut bytes).map_err(|e| e.to_string())?;
        text = String::from_utf8_lossy(&bytes[..n]).into_owned();
    }
    Ok(text.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned())
}

fn listens(port: u16) -> Json {
    json!([format!("127.0.0.1:{port}")])
}

#[test]
fn certificates_are_chosen_by_name_and_rules_see_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (cert(dir.path(), "a.example"), cert(dir.path(), "b.example"));
    let port = free_port();
    let fixed = |text: &str| json!({"type": "static", "status": 200, "text": text});
    let _proxy = Proxy::start(&json!([
        {"name": "a", "listen": listens(port), "tls": tls(&a, Some("a.example")),
            "match": {"tls.sni": {"equals": "a.example"}, "tls.version": {"equals": "1.3"}}, "terminate": fixed("site a")},
        {"name": "b", "listen": listens(port), "tls": tls(&b, None), "terminate": fixed("site b")},
    ]));
    assert_eq!(get(port, "a.example", &a, None).unwrap(), "site a");
    assert_eq!(get(port, "b.example", &b, None).unwrap(), "site b");
    assert!(get(port, "a.example", &b, None).is_err(), "another certificate is not trusted");
}

#[test]
fn requests_over_tls_are_proxied_with_large_answers() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    let upstream = Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let port = free_port();
    let _proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "tls": tls(&a, None),
        "terminate": {"type": "http_proxy", "upstream": upstream.address()}}]));
    assert_eq!(get(port, "a.example", &a, None).unwrap(), "hello");
}

#[test]
fn a_client_without_a_certificate_is_refused_where_one_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let (a, client) = (cert(dir.path(), "a.example"), cert(dir.path(), "client.example"));
    let port = free_port();
    let mut tls = tls(&a, None);
    tls["client_auth"] = json!({"mode": "require", "trust_store": {"ca_paths": [client.cert_file]}});
    let _proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "tls": tls,
        "match": {"tls.peer_cert.present": {"equals": true}},
        "terminate": {"type": "static", "status": 200, "text": "known"}}]));
    assert_eq!(get(port, "a.example", &a, Some(&client)).unwrap(), "known");
    assert!(get(port, "a.example", &a, None).is_err());
}

#[test]
fn a_name_is_forwarded_to_who_holds_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (inner, outer) = (cert(dir.path(), "inner.example"), cert(dir.path(), "outer.example"));
    let (front, back) = (free_port(), free_port());
    let _proxy = Proxy::start(&json!([
        {"name": "back", "listen": listens(back), "tls": tls(&inner, None),
            "terminate": {"type": "static", "status": 200, "text": "inner"}},
        {"name": "pass", "listen": listens(front), "match": {"tls.sni": {"equals": "inner.example"}},
            "terminate": {"type": "tcp_forward", "upstream": format!("127.0.0.1:{back}")}},
        {"name": "front", "listen": listens(front), "tls": tls(&outer, None),
            "terminate": {"type": "static", "status": 200, "text": "outer"}},
    ]));
    assert_eq!(get(front, "inner.example", &inner, None).unwrap(), "inner");
    assert_eq!(get(front, "outer.example", &outer, None).unwrap(), "outer");
}

#[test]
fn plain_http_on_a_tls_port_is_closed_and_noted() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    let port = free_port();
    let proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "tls": tls(&a, None),
        "terminate": {"type": "static", "status": 200}}]));
    let mut client = connect(port);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _ = client.read_to_end(&mut all);
    assert!(!all.starts_with(b"HTTP"), "{all:?}");
    let flow = support::until(|| proxy.engine.flows(1).pop());
    assert!(flow.error.contains("handshake"), "{}", flow.error);
}

#[test]
fn a_certificate_that_cannot_be_read_refuses_the_rules_by_file() {
    let port = free_port();
    let proxy = Proxy::start(&json!([]));
    let error = proxy.apply(&json!([{"name": "a", "listen": listens(port),
        "tls": {"cert_file": "/no/such.pem", "key_file": "/no/such.key"},
        "terminate": {"type": "static", "status": 200}}]));
    assert!(error.unwrap_err().contains("/no/such.pem"));
}

/// A proxy in front of another one, which ends TLS and may ask for certificates.
#[test]
fn upstreams_are_verified_unless_a_rule_says_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = (cert(dir.path(), "back.example"), cert(dir.path(), "client.example"));
    let (back, front) = (free_port(), free_port());
    let mut ends = tls(&server, None);
    ends["client_auth"] = json!({"mode": "request", "trust_store": {"ca_paths": [client.cert_file]}});
    let known = json!({"tls.peer_cert.present": {"equals": true}});
    let fixed = |text: &str| json!({"type": "static", "status": 200, "text": text});
    let _back = Proxy::start(&json!([
        {"name": "known", "listen": listens(back), "tls": ends, "match": known, "terminate": fixed("known")},
        {"name": "any", "listen": listens(back), "tls": ends, "terminate": fixed("somebody")},
    ]));
    let proxy = Proxy::start(&json!([]));
    let name = "back.example";
    for kind in ["http_proxy", "http1_proxy", "http2_proxy"] {
        for (tls, status, text) in [
            (json!(true), 502, ""),
            (json!({"verify_hostname": name}), 502, ""),
            (json!({"verify_hostname": "other.example", "ca_file": server.cert_file}), 502, ""),
            (json!({"verify_hostname": name, "ca_file": server.cert_file}), 200, "somebody"),
            (json!({"insecure_skip_verify": true}), 200, "somebody"),
            (
                json!({"verify_hostname": name, "ca_file": server.cert_file,
                    "cert_file": client.cert_file, "key_file": client.key_file}),
                200,
                "known",
            ),
        ] {
            proxy
                .apply(&json!([{"name": "front", "listen": listens(front), "terminate":
                    {"type": kind, "upstream": format!("127.0.0.1:{back}"), "tls": tls}}]))
                .unwrap();
            for _ in 0..2 {
                let answer = support::ask(front, "GET / HTTP/1.1\r\nHost: back.example\r\n\r\n");
                assert_eq!(answer.status, status, "{kind} {tls}");
                assert!(status != 200 || answer.text() == text, "{kind} {tls}: {}", answer.text());
            }
        }
    }
}

#[test]
fn clients_choose_http2_by_alpn() {
    let dir = tempfile::tempdir().unwrap();
    let a = cert(dir.path(), "a.example");
    let (port, upstream) = (free_port(), Upstream::echo());
    let _proxy = Proxy::start(&json!([{"name": "a", "listen": listens(port), "tls": tls(&a, None),
        "match": {"tls.alpn": {"equals": "h2"}}, "terminate": {"type": "http_proxy", "upstream": upstream.address()}}]));
    let Ok(out) = std::process::Command::new("curl")
        .args(["-s", "--max-time", "20", "--http2", "-w", " v%{http_version} %{http_code}", "--cacert"])
        .arg(&a.cert_file)
        .args(["--resolve", &format!("a.example:{port}:127.0.0.1")])
        .arg(format!("https://a.example:{port}/x"))
        .output()
    else {
        return;
    };
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.starts_with("GET /x HTTP/1.1") && text.ends_with("v2 200"), "{text}");
    assert!(get(port, "a.example", &a, None).is_ok(), "clients without ALPN speak HTTP/1.1");
}

#[test]
fn rules_read_what_a_client_certificate_says() {
    let dir = tempfile::tempdir().unwrap();
    let (a, client) = (cert(dir.path(), "a.example"), cert(dir.path(), "client.example"));
    let port = free_port();
    let mut tls = tls(&a, None);
    tls["client_auth"] = json!({"mode": "request", "trust_store": {"ca_paths": [client.cert_file]}});
    let rule = |name: &str, matches: Json| {
        json!({"name": name, "listen": listens(port), "tls": tls, "match": matches,
            "terminate": {"type": "static", "status": 200, "text": name}})
    };
    let proxy = Proxy::start(&json!([
        rule(
            "san",
            json!({"tls.peer_cert.san_dns": {"contains": "client.example"},
            "tls.peer_cert.spki_sha256": {"matches": "^[0-9a-f]{64}$"}, "tls.peer_cert.serial": {"matches": "^[0-9a-f]+$"},
            "tls.peer_cert.subject_cn": {"contains": "rcgen"}, "tls.peer_cert.issuer_cn": {"contains": "rcgen"}})
        ),
        rule("none", json!({"tls.peer_cert.present": {"equals": false}})),
    ]));
    assert_eq!(get(port, "a.example", &a, Some(&client)).unwrap(), "san");
    assert_eq!(get(port, "a.example", &a, None).unwrap(), "none");
    let certs = proxy.engine.certs();
    assert_eq!((certs[0].names.as_slice(), certs[0].name.as_str()), (&["a.example".to_owned()][..], ""));
    assert_eq!(certs[0].fingerprint.len(), 64);
}
