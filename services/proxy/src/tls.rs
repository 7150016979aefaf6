//! TLS on listeners: certificates by server name, read anew with every plan.

mod certificates;

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use shipote_bus::proxy::CertInfo;
use shipote_rules::{ClientAuth, ListenerTls};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

pub use certificates::fits;
use certificates::{Certificates, read_certs};

use crate::acme::Store;
use crate::http1::hex;

/// What a handshake settled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settled {
    pub(crate) version: &'static str,
    pub(crate) alpn: Option<Vec<u8>>,
    /// SHA-256 of the client's certificate, in hexadecimal.
    pub(crate) fingerprint: Option<String>,
    /// What the client's certificate says.
    pub(crate) cert: Option<PeerCert>,
}

/// What a certificate says; read only after it was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PeerCert {
    pub(crate) der: Vec<u8>,
    pub(crate) subject_cn: Option<String>,
    pub(crate) issuer_cn: Option<String>,
    pub(crate) san_dns: Vec<String>,
    /// SHA-256 of the public key's SubjectPublicKeyInfo, in hexadecimal.
    pub(crate) spki: String,
    /// In hexadecimal.
    pub(crate) serial: String,
    /// Seconds since the epoch.
    pub(crate) not_after: i64,
}

impl Settled {
    /// What a handshake settled, with the client's certificate where it showed one.
    pub(crate) fn new(version: &'static str, alpn: Option<Vec<u8>>, leaf: Option<&CertificateDer<'_>>) -> Self {
        Self {
            version,
            alpn,
            fingerprint: leaf.map(|cert| hex(&Sha256::digest(cert))),
            cert: leaf.and_then(|cert| PeerCert::read(cert)),
        }
    }
}

impl PeerCert {
    /// Reads a certificate; nothing where it cannot be read.
    pub(crate) fn read(der: &[u8]) -> Option<Self> {
        let (_, cert) = X509Certificate::from_der(der).ok()?;
        let cn = |name: &X509Name<'_>| name.iter_common_name().next()?.as_str().ok().map(str::to_owned);
        let mut san_dns = Vec::new();
        if let Ok(Some(names)) = cert.subject_alternative_name() {
            for name in &names.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    san_dns.push((*name).to_owned());
                }
            }
        }
        Some(Self {
            der: der.to_vec(),
            subject_cn: cn(cert.subject()),
            issuer_cn: cn(cert.issuer()),
            san_dns,
            spki: hex(&Sha256::digest(cert.public_key().raw)),
            serial: hex(cert.raw_serial()),
            not_after: cert.validity().not_after.timestamp(),
        })
    }
}

/// The configuration of a listener, and its certificates as they are shown; the error names the file.
pub(crate) fn configure(
    listener: &str,
    tls: &ListenerTls,
    acme: Option<&Store>,
) -> Result<(Arc<ServerConfig>, Vec<CertInfo>), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (certificates, infos) = Certificates::read(listener, tls, acme, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?;
    let verifier = |paths: &[std::path::PathBuf], required: bool| {
        let mut roots = RootCertStore::empty();
        for path in paths {
            for cert in read_certs(path)? {
                roots.add(cert).map_err(|e| format!("authority in {}: {e}", path.display()))?;
            }
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|e| format!("authorities of clients: {e}"))
    };
    let builder = match &tls.client_auth {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Request { ca_paths } => builder.with_client_cert_verifier(verifier(ca_paths, false)?),
        ClientAuth::Require { ca_paths } => builder.with_client_cert_verifier(verifier(ca_paths, true)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Tickets are sealed with a key of this plan's own; after a reload clients make a whole handshake once.
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|e| format!("TLS tickets: {e}"))?;
    Ok((Arc::new(config), infos))
}

/// What the handshake of a connection settled, and the server name that was asked for.
pub(crate) fn settled(connection: &rustls::ServerConnection) -> (Settled, Option<String>) {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
        _ => "",
    };
    let leaf = connection.peer_certificates().and_then(<[_]>::first);
    let settled = Settled::new(version, connection.alpn_protocol().map(<[u8]>::to_vec), leaf);
    (settled, connection.server_name().map(str::to_ascii_lowercase))
}
