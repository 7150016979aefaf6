//! The certificates of a listener: read, chosen by server name, and shown.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use shipote_bus::proxy::CertInfo;
use shipote_rules::{CertSource, ListenerTls, TlsCert};

use super::PeerCert;
use crate::acme::{Dates, Store};
use crate::http1::hex;
use crate::ocsp::{self, Staple};

/// A certificate, and the same with what its authority says of it.
#[derive(Debug)]
struct Held {
    plain: Arc<CertifiedKey>,
    stapled: Option<(Arc<CertifiedKey>, Option<u64>)>,
}

impl Held {
    fn leaf(&self) -> &[u8] {
        self.plain.cert.first().map_or(&[], |leaf| leaf)
    }

    fn dates(&self) -> Option<Dates> {
        Dates::read(self.leaf())
    }

    /// As it is shown; what it is for, and where, is for who asks to say.
    fn info(&self, file: &Path) -> CertInfo {
        let read = PeerCert::read(self.leaf()).unwrap_or_default();
        let until =
            self.stapled.as_ref().map(|(_, until)| until.map_or(i64::MAX, |u| i64::try_from(u).unwrap_or(i64::MAX)));
        CertInfo {
            file: file.display().to_string(),
            names: read.san_dns,
            not_after: read.not_after,
            fingerprint: hex(&Sha256::digest(self.leaf())),
            staple_until: until.unwrap_or(0),
            ..CertInfo::default()
        }
    }

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
pub(super) struct Certificates {
    default: Option<Held>,
    /// Without one where it is to come by ACME: the handshake is refused then, whatever the default is.
    by_name: HashMap<String, Option<Held>>,
}

impl Certificates {
    /// Reads those of a listener, and says how they are shown; the error names the file.
    pub(super) fn read(
        listener: &str,
        tls: &ListenerTls,
        acme: Option<&Store>,
        provider: &CryptoProvider,
    ) -> Result<(Self, Vec<CertInfo>), String> {
        let mut infos = Vec::new();
        let mut held = |name: &str, source: &CertSource| {
            let (held, info) = match source {
                CertSource::Files(cert) => {
                    let held = load(cert, provider)?;
                    let info = held.info(&cert.cert_file);
                    (Some(held), info)
                }
                CertSource::Acme { names } => fetched(names, acme, provider)?,
            };
            infos.push(CertInfo { listener: listener.to_owned(), name: name.to_owned(), ..info });
            Ok::<_, String>(held)
        };
        let default = tls.default.as_ref().map(|source| held("", source)).transpose()?.flatten();
        let by_name = tls.by_name.iter().map(|(name, source)| Ok((name.clone(), held(name, source)?)));
        let by_name = by_name.collect::<Result<_, String>>()?;
        Ok((Self { default, by_name }, infos))
    }

    fn find(&self, name: Option<&str>) -> Option<&Held> {
        let of = |name: &str| {
            let name = name.to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| {
                let (_, rest) = name.split_once('.')?;
                self.by_name.get(&format!("*.{rest}"))
            })
        };
        name.and_then(of).map_or(self.default.as_ref(), Option::as_ref)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()).map(|held| held.at(now()))
    }
}

/// A certificate by ACME, where it is there already. One that cannot be read is as one that is not there: it keeps
/// neither other certificates nor the rules from being served, and is fetched anew.
fn fetched(
    names: &[String],
    acme: Option<&Store>,
    provider: &CryptoProvider,
) -> Result<(Option<Held>, CertInfo), String> {
    let first = names.first().map_or("", String::as_str);
    let store = acme.ok_or_else(|| {
        format!("a certificate for {first} by ACME: no authority is configured; write a section [proxy.acme] with agree_to_terms = true")
    })?;
    let file = store.certificate(first);
    let held = if file.exists() {
        let cert = TlsCert { cert_file: file.clone(), key_file: file.clone(), ocsp_file: None };
        load(&cert, provider).inspect_err(|e| tracing::error!("the certificate for {first} by ACME: {e}")).ok()
    } else {
        tracing::warn!(
            "the certificate for {first} by ACME is not there yet; `systemctl start shipote-acme` fetches it"
        );
        None
    };
    let mut info = held
        .as_ref()
        .map_or_else(|| CertInfo { file: file.display().to_string(), ..CertInfo::default() }, |h| h.info(&file));
    info.renew_at = held.as_ref().and_then(Held::dates).map_or(0, Dates::renew_at);
    Ok((held, CertInfo { wanted: names.to_vec(), ..info }))
}

/// Whether these are the key and the chain of a certificate, in PEM, that carries all of these names.
///
/// # Errors
/// What is wrong with it.
pub fn fits(pem: &str, names: &[String]) -> Result<(), String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| format!("its chain: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("its key: {e}"))?;
    let carried = chain.first().and_then(|leaf| PeerCert::read(leaf)).ok_or("it is no certificate")?.san_dns;
    if let Some(missing) = names.iter().find(|name| !carried.iter().any(|c| c.eq_ignore_ascii_case(name))) {
        return Err(format!("it does not carry {missing}"));
    }
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(|_| ()).map_err(|e| format!("its key: {e}"))
}

/// The certificates of a file in PEM; the error names it.
pub(super) fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certs: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| format!("read certificates {}: {e}", path.display()))?;
    if certs.is_empty() {
        return Err(format!("read certificates {}: there are none in PEM", path.display()));
    }
    Ok(certs)
}

fn load(cert: &TlsCert, provider: &CryptoProvider) -> Result<Held, String> {
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
