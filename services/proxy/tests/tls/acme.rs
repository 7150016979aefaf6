//! Certificates by ACME as the proxy serves them; how they are fetched: `services/cli/tests/appliance/acme.rs`.

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::CertificateDer;
use serde_json::json;
use shipote_proxy::Settings;
use shipote_proxy::acme::Store;

use crate::support::{Proxy, ask, free_port, settings};
use crate::{Cert, cert, get, listens, tls};

/// Keeps a certificate for `name`, as who fetches them does.
fn keep(store: &Store, name: &str) -> CertificateDer<'static> {
    let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
        generate_simple_self_signed([name.to_owned()]).unwrap();
    store.keep(name, &(signing_key.serialize_pem() + &cert.pem())).unwrap();
    cert.der().clone()
}

#[test]
fn a_certificate_that_is_not_there_refuses_its_names_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (fixed, port) = (cert(dir.path(), "fixed.example"), free_port());
    let answer = json!({"type": "static", "status": 200, "text": "hi"});
    let rules = json!([
        {"name": "fixed", "listen": listens(port), "tls": tls(&fixed, None), "terminate": answer},
        {"name": "acme", "listen": listens(port), "tls": {"acme": ["a.example"]}, "terminate": answer},
    ]);
    let bare = Proxy::start(&json!([]));
    let refusal = bare.apply(&rules).unwrap_err();
    assert!(refusal.contains("a.example") && refusal.contains("[proxy.acme]"), "{refusal}");

    let store = Store::new(dir.path().to_owned());
    let proxy = Proxy::start_with(Settings { acme: Some(store.clone()), ..settings() }, &rules);
    assert_eq!(get(port, "fixed.example", &fixed, None).unwrap(), "hi");
    // not with the default one, which is for others
    assert!(get(port, "a.example", &fixed, None).is_err());
    let shown = |proxy: &Proxy| proxy.engine.certs().into_iter().find(|c| c.name == "a.example").unwrap();
    assert_eq!((shown(&proxy).not_after, shown(&proxy).wanted), (0, vec!["a.example".to_owned()]));

    let der = keep(&store, "a.example");
    proxy.apply(&rules).unwrap();
    let root = Cert { der, ..cert(dir.path(), "unused.example") };
    assert_eq!(get(port, "a.example", &root, None).unwrap(), "hi");
    assert!(shown(&proxy).renew_at > 0 && shown(&proxy).renew_at < shown(&proxy).not_after);

    std::fs::write(store.certificate("a.example"), "torn").unwrap();
    proxy.apply(&rules).unwrap();
    assert_eq!(
        get(port, "fixed.example", &fixed, None).unwrap(),
        "hi",
        "one that is torn keeps nobody else from being served"
    );
    assert!(get(port, "a.example", &root, None).is_err());
}

#[test]
fn an_authority_is_answered_before_any_rule_and_only_while_it_looks() {
    let port = free_port();
    let rules = json!([{"name": "all", "listen": listens(port), "terminate": {"type": "redirect_https"}}]);
    let proxy = Proxy::start(&rules);
    let look = |token: &str| ask(port, &format!("GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(look("abc").status, 308);
    proxy.engine.challenges().set("abc", "abc.thumb").unwrap();
    let answer = look("abc");
    assert_eq!((answer.status, answer.text().as_str()), (200, "abc.thumb"));
    assert!(answer.has("content-type", "application/octet-stream"));
    assert_eq!(look("abd").status, 308);
    assert_eq!(look("abc?x").text(), "abc.thumb");
    // a reload in between changes nothing
    proxy.apply(&rules).unwrap();
    assert_eq!(look("abc").text(), "abc.thumb");
    assert!(proxy.engine.challenges().forget("abc"));
    assert_eq!(look("abc").status, 308);
}
