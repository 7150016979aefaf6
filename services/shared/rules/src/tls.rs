//! TLS on a listener: which certificates by which server name, and whether clients show one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value as Json;

use crate::error::Problem;
use crate::section::Section;

/// A certificate chain and its key, as files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct TlsCert {
    /// PEM: the leaf, then the chain.
    pub cert_file: PathBuf,
    /// PEM: the private key.
    pub key_file: PathBuf,
    /// DER: what the authority says of the certificate (OCSP), for clients that ask.
    pub ocsp_file: Option<PathBuf>,
}

/// Where a listener's certificate is from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum CertSource {
    /// Files that somebody else keeps.
    Files(TlsCert),
    /// An authority is asked for it, and again in time (ACME, RFC 8555).
    Acme {
        /// The names that it is to carry, lower-case; the first is also the certificate's own.
        #[serde(rename = "acme")]
        names: Vec<String>,
    },
}

/// What is asked of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// No certificate is asked for.
    #[default]
    None,
    /// Asked for, but a client may come without.
    Request {
        /// PEM files of the authorities.
        ca_paths: Vec<PathBuf>,
    },
    /// No certificate, no connection.
    Require {
        /// PEM files of the authorities.
        ca_paths: Vec<PathBuf>,
    },
}

/// The `tls` of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub(crate) struct RuleTls {
    /// The server names that the certificate is for, lower-case; none for the default certificate.
    pub names: Vec<String>,
    /// The certificate.
    pub cert: CertSource,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

/// TLS of a listener: the rules' certificates put together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ListenerTls {
    /// For clients without a server name, or with one that no certificate is for.
    pub default: Option<CertSource>,
    /// Certificates by lower-case server name.
    pub by_name: BTreeMap<String, CertSource>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

impl RuleTls {
    pub(crate) fn parse(value: &Json, path: &str) -> Result<Self, Problem> {
        let mut section = Section::new(value, path)?;
        let sni = section.text("sni")?.map(str::to_ascii_lowercase);
        for (field, message) in [
            ("managed", "write acme = [names] for a certificate by ACME, or give cert_file and key_file"),
            (
                "ocsp_fetch",
                "nothing is fetched from an authority; have its answer written to a file, and give ocsp_path",
            ),
        ] {
            if section.get(field).is_some_and(|v| v != &Json::Bool(false)) {
                return Err(Problem::new(section.path(field), message));
            }
        }
        // Early data can be replayed, so it is never accepted; files that turn it off explicitly are fine.
        if section.flag("enable_zero_rtt")? == Some(true) {
            return Err(Problem::new(
                section.path("enable_zero_rtt"),
                "early data is not accepted: it can be replayed",
            ));
        }
        let (names, cert) = match section.texts("acme", true)? {
            None => {
                let cert = TlsCert {
                    cert_file: PathBuf::from(section.require_text("cert_file")?),
                    key_file: PathBuf::from(section.require_text("key_file")?),
                    ocsp_file: section.text("ocsp_path")?.map(PathBuf::from),
                };
                (sni.into_iter().collect(), CertSource::Files(cert))
            }
            Some(names) => {
                let names = acme_names(&names).map_err(|message| Problem::new(section.path("acme"), message))?;
                for field in ["sni", "cert_file", "key_file", "ocsp_path"] {
                    if section.get(field).is_some() {
                        let message = "of no use beside acme, which says the names, and where the certificate is from";
                        return Err(Problem::new(section.path(field), message));
                    }
                }
                (names.clone(), CertSource::Acme { names })
            }
        };
        let client_auth = match section.get("client_auth") {
            None => ClientAuth::None,
            Some(value) => parse_client_auth(value, &section.path("client_auth"))?,
        };
        section.finish()?;
        Ok(Self { names, cert, client_auth })
    }
}

fn parse_client_auth(value: &Json, path: &str) -> Result<ClientAuth, Problem> {
    let mut section = Section::new(value, path)?;
    let mode = section.require_text("mode")?;
    let ca_paths = match section.get("trust_store") {
        None => Vec::new(),
        Some(store) => {
            let mut store = Section::new(store, section.path("trust_store"))?;
            let paths = store.require_texts("ca_paths")?.into_iter().map(PathBuf::from).collect();
            store.finish()?;
            paths
        }
    };
    let mode_path = section.path("mode");
    section.finish()?;
    match (mode, ca_paths.is_empty()) {
        ("none", true) => Ok(ClientAuth::None),
        ("request", false) => Ok(ClientAuth::Request { ca_paths }),
        ("require", false) => Ok(ClientAuth::Require { ca_paths }),
        ("none", false) => Err(Problem::new(mode_path, "a trust_store is of no use with mode none")),
        ("request" | "require", true) => Err(Problem::new(mode_path, "needs trust_store.ca_paths")),
        (other, _) => Err(Problem::new(mode_path, format!("{other:?}: known: none, request, require"))),
    }
}

impl ListenerTls {
    /// Adds a rule's certificate; the message says what conflicts.
    pub(crate) fn add(&mut self, tls: &RuleTls, first: bool) -> Result<(), Problem> {
        if first {
            self.client_auth = tls.client_auth.clone();
        } else if self.client_auth != tls.client_auth {
            return Err(Problem::new("tls.client_auth", "rules on one listener must agree on it"));
        }
        for name in &tls.names {
            if self.by_name.insert(name.clone(), tls.cert.clone()).is_some_and(|old| old != tls.cert) {
                let message = format!("another rule on this listener has another certificate for {name}");
                return Err(Problem::new(tls.names_field(), message));
            }
        }
        if tls.names.is_empty() && self.default.replace(tls.cert.clone()).is_some_and(|old| old != tls.cert) {
            let message = "another rule on this listener has another default certificate; give each its sni";
            return Err(Problem::new("tls", message));
        }
        Ok(())
    }
}

/// Most names of one certificate: what the usual authorities take.
const NAMES_MAX: usize = 100;

/// Names that an authority may be asked to certify over HTTP; the message says what is wrong with one.
fn acme_names(names: &[&str]) -> Result<Vec<String>, String> {
    if names.len() > NAMES_MAX {
        return Err(format!("{} names; a certificate carries at most {NAMES_MAX}", names.len()));
    }
    let mut known: Vec<String> = Vec::with_capacity(names.len());
    for name in names {
        let name = name.to_ascii_lowercase();
        if name.starts_with("*.") {
            return Err(format!(
                "{name:?}: a wildcard is proved by DNS, which is not done here; list the names, or give cert_file and key_file"
            ));
        }
        let fine = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if name.len() > 253 || !name.contains('.') || number || !name.split('.').all(fine) {
            return Err(format!("{name:?} is not the name of a host, such as \"www.example.com\""));
        }
        if known.contains(&name) {
            return Err(format!("{name:?} is listed twice"));
        }
        known.push(name);
    }
    Ok(known)
}

impl RuleTls {
    /// The field that says the names.
    fn names_field(&self) -> &'static str {
        if matches!(self.cert, CertSource::Acme { .. }) { "tls.acme" } else { "tls.sni" }
    }

    /// The names that an authority is asked to certify, where one is.
    pub(crate) fn acme(&self) -> Option<&[String]> {
        match &self.cert {
            CertSource::Acme { names } => Some(names),
            CertSource::Files(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_for_an_authority_are_names_of_hosts() {
        let of = |names: &[&str]| acme_names(names);
        assert_eq!(of(&["WWW.example.com", "a-1.example"]), Ok(vec!["www.example.com".into(), "a-1.example".into()]));
        let long = format!("{}.example", "a".repeat(64));
        for (names, why) in [
            (&["*.example.com"][..], "wildcard"),
            (&["localhost"], "not the name"),
            (&["127.0.0.1"], "not the name"),
            (&["a..example"], "not the name"),
            (&["-a.example"], "not the name"),
            (&["a_b.example"], "not the name"),
            (&["../../etc.example/x"], "not the name"),
            (&["m\u{fc}ller.example"], "not the name"),
            (&[&long], "not the name"),
            (&["a.example", "A.example"], "twice"),
        ] {
            assert!(of(names).unwrap_err().contains(why), "{names:?}");
        }
        assert!(of(&vec!["a.example"; 101]).unwrap_err().contains("at most 100"));
    }
}
