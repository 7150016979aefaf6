//! TLS on listeners: certificates by server name, read anew with every plan.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use shipote_bus::proxy::CertInfo;
use shipote_rules::{ClientAuth, ListenerTls, TlsCert};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Name;

use crate::http1::hex;
use crate::ocsp::{self, Staple};

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

/// The certificates of a listener, as they are shown; those that cannot be read were refused before.
pub(crate) fn certs(listener: &str, tls: &ListenerTls) -> Vec<CertInfo> {
    let named = tls.by_name.iter().map(|(name, cert)| (name.as_str(), cert));
    let all = tls.default.iter().map(|cert| ("", cert)).chain(named);
    let info = |(name, cert): (&str, &TlsCert)| {
        let leaf = read_certs(&cert.cert_file).ok()?.into_iter().next()?;
        let read = PeerCert::read(&leaf)?;
        Some(CertInfo {
            listener: listener.to_owned(),
            name: name.to_owned(),
            file: cert.cert_file.display().to_string(),
            names: read.san_dns,
            not_after: read.not_after,
            fingerprint: hex(&Sha256::digest(&leaf)),
        })
    };
    all.filter_map(info).collect()
}

/// A certificate, and the same with what its authority says of it.
#[derive(Debug)]
struct Held {
    plain: Arc<CertifiedKey>,
    stapled: Option<(Arc<CertifiedKey>, Option<u64>)>,
}

impl Held {
    /// With what the authority says, for as long as that holds.
    fn at(&self, now: u64) -> Arc<CertifiedKey> {
        match &self.stapled {
            Some((stapled, until)) if until.is_none_or(|until| now < until) => Arc::clone(stapled),
            _ => Arc::clone(&self.plain),
        }
    }
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Certificates by lower-case name; `*.example.com` stands for one label.
#[derive(Debug)]
struct Certificates {
    default: Option<Held>,
    by_name: HashMap<String, Held>,
}

impl Certificates {
    fn find(&self, name: &str) -> Option<&Held> {
        let name = name.to_ascii_lowercase();
        self.by_name.get(&name).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.by_name.get(&format!("*.{rest}"))
        })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = hello.server_name().and_then(|name| self.find(name)).or(self.default.as_ref())?;
        Some(held.at(now()))
    }
}

/// The configuration of a listener; the error names the file.
pub(crate) fn configure(tls: &ListenerTls) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let load = |cert: &TlsCert| load(cert, &provider);
    let certificates = Certificates {
        default: tls.default.as_ref().map(load).transpose()?,
        by_name: tls
            .by_name
            .iter()
            .map(|(name, cert)| Ok((name.clone(), load(cert)?)))
            .collect::<Result<_, String>>()?,
    };
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
    Ok(Arc::new(config))
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| format!("read certificates {}: {e}", path.display()))?;
    if certs.is_empty() {
        return Err(format!("read certificates {}: there are none in PEM", path.display()));
    }
    Ok(certs)
}

fn load(cert: &TlsCert, provider: &rustls::crypto::CryptoProvider) -> Result<Held, String> {
    let chain = read_certs(&cert.cert_file)?;
    let path = cert.key_file.display();
    let key = PrivateKeyDer::from_pem_file(&cert.key_file).map_err(|e| format!("read key {path}: {e}"))?;
    let certified = CertifiedKey::from_der(chain, key, provider)
        .map_err(|e| format!("key {path} with certificate {}: {e}", cert.cert_file.display()))?;
    let stapled = match &cert.ocsp_file {
        None => None,
        Some(path) => {
            let Staple { der, until } = ocsp::read(path, certified.end_entity_cert().map_err(|e| e.to_string())?)?;
            if until.is_some_and(|until| until <= now()) {
                tracing::warn!("the OCSP answer {} does not hold any more and is left out", path.display());
            }
            let mut stapled = certified.clone();
            stapled.ocsp = Some(der);
            Some((Arc::new(stapled), until))
        }
    };
    Ok(Held { plain: Arc::new(certified), stapled })
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
