//! TLS to upstreams. Certificates are verified unless a rule says otherwise.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use shipote_rules::{Upstream, UpstreamAddress, UpstreamTls};

use super::Speak;
use crate::http3;

/// How to encrypt to one upstream.
#[derive(Debug)]
pub(crate) struct Secure {
    pub(crate) name: ServerName<'static>,
    /// Settles on what the rule allows.
    pub(crate) any: Arc<ClientConfig>,
    /// Settles on HTTP/1.1: a WebSocket needs it.
    pub(crate) one: Arc<ClientConfig>,
    /// For HTTP/3, where that is spoken.
    pub(super) quic: Option<quinn::ClientConfig>,
}

impl Secure {
    pub(super) fn new(upstream: &Upstream, speak: Speak) -> Result<Option<Self>, String> {
        let Some(tls) = &upstream.tls else { return Ok(None) };
        let UpstreamAddress::Tcp { host, .. } = &upstream.address else {
            return Err(format!("{}: TLS goes only to a host and a port", upstream.address));
        };
        let name = tls.verify_hostname.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| format!("{name:?} cannot be the name of a certificate"))?;
        let one = configure(tls)?;
        let mut any = one.clone();
        any.alpn_protocols = match speak {
            Speak::Bytes => Vec::new(),
            Speak::One => vec![b"http/1.1".to_vec()],
            Speak::Two => vec![b"h2".to_vec()],
            Speak::Three => vec![http3::ALPN.to_vec()],
            Speak::Either => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        };
        let mut one = one;
        one.alpn_protocols = vec![b"http/1.1".to_vec()];
        let quic = (speak == Speak::Three).then(|| http3::config::client(&any)).transpose()?;
        Ok(Some(Self { name, any: Arc::new(any), one: Arc::new(one), quic }))
    }
}

/// The system's authorities, read once.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!("read the system's authorities: {error}");
        }
        roots.add_parsable_certificates(found.certs);
        roots
    })
}

/// A client's configuration that trusts the system's authorities.
pub(crate) fn trusting_the_system(verify: bool) -> Result<ClientConfig, String> {
    configure(&UpstreamTls { insecure_skip_verify: !verify, ..UpstreamTls::default() })
}

fn configure(tls: &UpstreamTls) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS: {e}"))?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        let roots = match &tls.ca_file {
            None => system_roots().clone(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for cert in read(path)? {
                    roots.add(cert).map_err(|e| format!("authority in {}: {e}", path.display()))?;
                }
                roots
            }
        };
        builder.with_root_certificates(roots)
    };
    match &tls.client_cert {
        None => Ok(builder.with_no_client_auth()),
        Some(cert) => {
            let key = PrivateKeyDer::from_pem_file(&cert.key_file)
                .map_err(|e| format!("read key {}: {e}", cert.key_file.display()))?;
            builder
                .with_client_auth_cert(read(&cert.cert_file)?, key)
                .map_err(|e| format!("certificate {}: {e}", cert.cert_file.display()))
        }
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| format!("read certificates {}: {e}", path.display()))?;
    if certs.is_empty() {
        Err(format!("read certificates {}: there are none in PEM", path.display()))
    } else {
        Ok(certs)
    }
}

/// For `insecure_skip_verify`: whoever answers is taken at their word, but must hold the key they show.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
