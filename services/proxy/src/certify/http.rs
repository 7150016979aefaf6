//! What the ACME client speaks HTTP by.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Certificates that others are verified by.
pub(super) type Roots = Vec<CertificateDer<'static>>;

/// How long an authority may take for an answer in all.
const ANSWER: Duration = Duration::from_secs(60);
/// Largest answer: a chain of certificates.
const ANSWER_MAX: u64 = 1 << 20;

/// What authorities are verified by: the system's certificates, or those of a file in PEM.
pub(super) fn roots(ca_file: Option<&Path>) -> anyhow::Result<Roots> {
    let roots: Roots = match ca_file {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .with_context(|| format!("read the certificates {}", path.display()))?,
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() {
        let place = ca_file.map_or_else(|| "of the system".to_owned(), |path| format!("in {}", path.display()));
        anyhow::bail!(
            "verify an authority: there are no certificates {place}; install ca-certificates, or name a ca_file"
        );
    }
    Ok(roots)
}

/// Speaks HTTPS only.
pub(super) fn client(roots: &[CertificateDer<'_>]) -> Client {
    let roots: Vec<_> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let agent = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(true)
        .user_agent(concat!("shipote-proxy/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(ANSWER))
        .tls_config(tls)
        .build()
        .new_agent();
    Client(agent)
}

pub(super) struct Client(Agent);

impl HttpClient for Client {
    fn request(
        &self,
        request: http::Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let agent = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(other)?.to_bytes();
            let request = http::Request::from_parts(parts, body.to_vec());
            tokio::task::spawn_blocking(move || ask(&agent, request)).await.map_err(other)?
        })
    }
}

fn ask(agent: &Agent, request: http::Request<Vec<u8>>) -> Result<BytesResponse, Error> {
    let url = request.uri().to_string();
    let (parts, body) = agent.run(request).map_err(|e| Error::Other(format!("ask {url}: {e}").into()))?.into_parts();
    let read = body.into_with_config().limit(ANSWER_MAX).read_to_vec();
    let body: Bytes = read.map_err(|e| Error::Other(format!("read the answer of {url}: {e}").into()))?.into();
    Ok(BytesResponse { parts, body: Box::new(body) })
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}
