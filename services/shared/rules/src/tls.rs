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
    /// The server name that the certificate is for, lower-case; `None` for the default certificate.
    pub sni: Option<String>,
    /// The certificate.
    pub cert: TlsCert,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

/// TLS of a listener: the rules' certificates put together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ListenerTls {
    /// For clients without a server name, or with one that no certificate is for.
    pub default: Option<TlsCert>,
    /// Certificates by lower-case server name.
    pub by_name: BTreeMap<String, TlsCert>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

impl RuleTls {
    pub(crate) fn parse(value: &Json, path: &str) -> Result<Self, Problem> {
        let mut section = Section::new(value, path)?;
        let sni = section.text("sni")?.map(str::to_ascii_lowercase);
        for (field, message) in [
            ("managed", "certificates by ACME are not built into this version; give cert_file and key_file"),
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
        let cert = TlsCert {
            cert_file: PathBuf::from(section.require_text("cert_file")?),
            key_file: PathBuf::from(section.require_text("key_file")?),
            ocsp_file: section.text("ocsp_path")?.map(PathBuf::from),
        };
        let client_auth = match section.get("client_auth") {
            None => ClientAuth::None,
            Some(value) => parse_client_auth(value, &section.path("client_auth"))?,
        };
        section.finish()?;
        Ok(Self { sni, cert, client_auth })
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
        let slot = match &tls.sni {
            None => &mut self.default,
            Some(name) => {
                return match self.by_name.insert(name.clone(), tls.cert.clone()) {
                    Some(old) if old != tls.cert => Err(Problem::new(
                        "tls.sni",
                        format!("another rule on this listener has another certificate for {name}"),
                    )),
                    _ => Ok(()),
                };
            }
        };
        match slot.replace(tls.cert.clone()) {
            Some(old) if old != tls.cert => Err(Problem::new(
                "tls",
                "another rule on this listener has another default certificate; give each its sni",
            )),
            _ => Ok(()),
        }
    }
}
