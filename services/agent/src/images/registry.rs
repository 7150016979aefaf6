//! Talking to a registry (OCI distribution spec): authentication, retries, ranges. What comes back is not yet verified.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use shipote_agent_protocol::RegistryAuth;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::ImageError;
use super::reference::Reference;
use super::retry::{Failure, Retry};

/// Where the guest's own way out listens; see [`crate::egress`].
pub(super) use crate::egress::ADDRESS;

/// The host's certificates, put here at boot.
const CERTIFICATES: &str = "/etc/ca-certificates.crt";
/// How long a registry may say nothing at all before the connection is given up and the rest asked for anew.
const SILENCE: Duration = Duration::from_secs(20);
/// Largest manifest or config.
pub(super) const JSON_MAX: u64 = 4 * 1024 * 1024;
/// Largest answer of a token service.
const TOKEN_MAX: u64 = 64 * 1024;

/// A repository in a registry.
pub(super) struct Registry {
    agent: Agent,
    reference: Reference,
    auth: Option<RegistryAuth>,
    /// `Authorization`, once the registry has asked for one.
    authorization: Option<String>,
    /// The image's name as it was asked for.
    name: String,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub(super) fn new(
        name: &str,
        reference: Reference,
        auth: Option<RegistryAuth>,
        proxy: SocketAddr,
    ) -> Result<Self, ImageError> {
        let invalid = |problem: String| ImageError::invalid(name, problem);
        let proxy = Proxy::new(&format!("http://{proxy}")).map_err(|error| invalid(error.to_string()))?;
        let mut config = Agent::config_builder()
            .proxy(Some(proxy))
            .http_status_as_error(false)
            .https_only(!reference.is_plain())
            .user_agent(concat!("shipote-agent/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .max_redirects(5);
        if !reference.is_plain() {
            config = config.tls_config(tls().map_err(invalid)?);
        }
        let agent = config.build().new_agent();
        Ok(Self { agent, reference, auth, authorization: None, name: name.to_owned() })
    }

    /// A manifest by tag or digest, whole.
    pub(super) fn manifest(&mut self, version: &str, accept: &str) -> Result<Vec<u8>, ImageError> {
        self.whole(&format!("manifests/{version}"), Some(accept))
    }

    /// A small blob, whole.
    pub(super) fn small(&mut self, digest: &str) -> Result<Vec<u8>, ImageError> {
        self.whole(&format!("blobs/{digest}"), None)
    }

    fn whole(&mut self, path: &str, accept: Option<&str>) -> Result<Vec<u8>, ImageError> {
        let what = format!("{path} of {}", self.name);
        let mut retry = Retry::network();
        loop {
            let got = self.get(path, accept, 0).and_then(|response| {
                let mut bytes = Vec::new();
                let mut body = response.into_body().into_reader().take(JSON_MAX + 1);
                body.read_to_end(&mut bytes).map_err(|error| Failure::transient(error.to_string()))?;
                if bytes.len() as u64 > JSON_MAX {
                    return Err(Failure::permanent(format!("over {JSON_MAX} bytes")));
                }
                Ok(bytes)
            });
            match got {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => {
                    retry.wait(failure).map_err(|reason| ImageError::Registry { what: what.clone(), reason })?;
                }
            }
        }
    }

    /// A blob from `offset` on. `true` where the registry honoured the offset; else it comes from the beginning.
    pub(super) fn blob(&mut self, digest: &str, offset: u64) -> Result<(Body, bool), Failure> {
        let response = self.get(&format!("blobs/{digest}"), None, offset)?;
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        Ok((response.into_body(), partial))
    }

    fn get(&mut self, path: &str, accept: Option<&str>, offset: u64) -> Result<Response<Body>, Failure> {
        let Reference { host, repository, .. } = &self.reference;
        let scheme = if self.reference.is_plain() { "http" } else { "https" };
        let url = format!("{scheme}://{host}/v2/{repository}/{path}");
        let mut asked = false;
        loop {
            let mut request = self.agent.get(&url);
            if let Some(accept) = accept {
                request = request.header("accept", accept);
            }
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            if let Some(authorization) = &self.authorization {
                request = request.header("authorization", authorization);
            }
            let response = request.call().map_err(Failure::of)?;
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::PARTIAL_CONTENT if offset > 0 => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    self.authorization = Some(self.answer(&response)?);
                }
                _ => return Err(Failure::of_status(response)),
            }
        }
    }

    /// What the registry wants to see, from its challenge (RFC 9110, 11.6.1; distribution's token specification).
    fn answer(&self, response: &Response<Body>) -> Result<String, Failure> {
        let refused = |reason: &str| Failure::permanent(format!("the registry asks for authentication: {reason}"));
        let challenges: Vec<String> = response
            .headers()
            .get_all("www-authenticate")
            .iter()
            .filter_map(|value| Some(value.to_str().ok()?.to_owned()))
            .collect();
        for header in &challenges {
            for challenge in http_auth::ChallengeParser::new(header).flatten() {
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    return self.basic().ok_or_else(|| refused("give a user name and password"));
                }
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = param("realm").ok_or_else(|| refused("it names no token service"))?;
                    return self.token(&realm, param("service"), param("scope"));
                }
            }
        }
        Err(refused("in no way known here"))
    }

    fn basic(&self) -> Option<String> {
        use base64::Engine as _;
        let RegistryAuth { username, password } = self.auth.as_ref()?;
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))))
    }

    fn token(&self, realm: &str, service: Option<String>, scope: Option<String>) -> Result<String, Failure> {
        // A password goes out in the clear only where the registry itself is spoken to in the clear.
        if !realm.starts_with("https://") && !self.reference.is_plain() {
            return Err(Failure::permanent(format!("the registry's token service {realm} is not https")));
        }
        let mut request = self.agent.get(realm);
        for (name, value) in [("service", service), ("scope", scope)] {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        if let Some(basic) = self.basic() {
            request = request.header("authorization", basic);
        }
        let response = request.call().map_err(Failure::of)?;
        if response.status() != StatusCode::OK {
            return Err(Failure::of_status(response));
        }
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(TOKEN_MAX);
        body.read_to_end(&mut bytes).map_err(|error| Failure::transient(error.to_string()))?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|error| Failure::permanent(format!("its token: {error}")))?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| Failure::permanent("its token service gave none".to_owned()))?;
        Ok(format!("Bearer {token}"))
    }
}

fn tls() -> Result<TlsConfig, String> {
    let pem = std::fs::read(CERTIFICATES).map_err(|error| format!("read {CERTIFICATES}: {error}"))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err("the host gave no certificates to know registries by".to_owned());
    }
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}
