//! What an authority says of a certificate (OCSP), stapled.

use std::sync::Arc;

use der::asn1::{BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString};
use der::{DateTime, Encode as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection};
use serde_json::json;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, ResponderId, ResponseData, RevokedInfo,
    SingleResponse, Version,
};

use crate::support::{Proxy, connect, free_port};
use crate::{cert, listens, tls};

const LATER: &str = "2049-01-01T00:00:00Z";

fn time(text: &str) -> OcspGeneralizedTime {
    OcspGeneralizedTime(GeneralizedTime::from_date_time(text.parse::<DateTime>().unwrap()))
}

/// An answer of an authority about a certificate, from 2020 on, until `until`. Nobody looks at its signature here.
fn ocsp(leaf: &CertificateDer<'_>, until: &str, cert_status: CertStatus) -> Vec<u8> {
    let algorithm = || x509_cert::spki::AlgorithmIdentifierOwned {
        oid: ObjectIdentifier::new_unwrap("1.3.14.3.2.26"),
        parameters: None,
    };
    let (_, read) =
        <x509_parser::certificate::X509Certificate<'_> as x509_parser::prelude::FromDer<'_, _>>::from_der(leaf)
            .unwrap();
    let hash = || OctetString::new([7; 20]).unwrap();
    let single = SingleResponse {
        cert_id: CertId {
            hash_algorithm: algorithm(),
            issuer_name_hash: hash(),
            issuer_key_hash: hash(),
            serial_number: x509_cert::serial_number::SerialNumber::new(read.raw_serial()).unwrap(),
        },
        cert_status,
        this_update: time("2020-01-01T00:00:00Z"),
        next_update: Some(time(until)),
        single_extensions: None,
    };
    let basic = BasicOcspResponse {
        tbs_response_data: ResponseData {
            version: Version::V1,
            responder_id: ResponderId::ByKey(hash()),
            produced_at: time("2020-01-01T00:00:00Z"),
            responses: vec![single],
            response_extensions: None,
        },
        signature_algorithm: algorithm(),
        signature: BitString::from_bytes(&[0]).unwrap(),
        certs: None,
    };
    OcspResponse::successful(basic).unwrap().to_der().unwrap()
}

/// Takes any certificate, and keeps what was stapled to it.
#[derive(Debug)]
struct Stapled(std::sync::Mutex<Vec<u8>>, Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Stapled {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = ocsp_response.to_vec();
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.1.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.1.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.1.signature_verification_algorithms.supported_schemes()
    }
}

fn stapled(port: u16) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Stapled(std::sync::Mutex::default(), Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&verifier) as _)
        .with_no_client_auth();
    let mut tls = ClientConnection::new(Arc::new(config), ServerName::try_from("a.example").unwrap()).unwrap();
    let mut stream = connect(port);
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
    }
    let seen = verifier.0.lock().unwrap();
    seen.clone()
}

#[test]
fn what_an_authority_says_of_a_certificate_is_stapled_while_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, port) = (cert(dir.path(), "a.example"), cert(dir.path(), "b.example"), free_port());
    let file = dir.path().join("a.ocsp");
    let mut with = tls(&a, None);
    with["ocsp_path"] = json!(file);
    let rules =
        json!([{"name": "a", "listen": listens(port), "tls": with, "terminate": {"type": "static", "status": 200}}]);
    let proxy = Proxy::start(&json!([]));
    let fresh = ocsp(&a.der, LATER, CertStatus::Good(Null));
    std::fs::write(&file, &fresh).unwrap();
    proxy.apply(&rules).unwrap();
    assert_eq!(stapled(port), fresh);
    let later = LATER.parse::<DateTime>().unwrap().unix_duration().as_secs();
    assert_eq!(u64::try_from(proxy.engine.certs()[0].staple_until).unwrap(), later, "who looks sees when it ends");
    std::fs::write(&file, ocsp(&a.der, "2021-01-01T00:00:00Z", CertStatus::Good(Null))).unwrap();
    proxy.apply(&rules).unwrap();
    assert!(stapled(port).is_empty(), "what does not hold any more is left out");
    let revoked = RevokedInfo { revocation_time: time("2020-01-01T00:00:00Z"), revocation_reason: None };
    for (content, why) in [
        (ocsp(&b.der, LATER, CertStatus::Good(Null)), "another certificate"),
        (ocsp(&a.der, LATER, CertStatus::Revoked(revoked)), "revoked"),
        (ocsp(&a.der, LATER, CertStatus::Unknown(Null)), "does not know"),
        (b"nonsense".to_vec(), "DER"),
    ] {
        std::fs::write(&file, content).unwrap();
        let error = proxy.apply(&rules).unwrap_err();
        assert!(error.contains(why) && error.contains("a.ocsp"), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(proxy.apply(&rules).unwrap_err().contains("a.ocsp"));
}
