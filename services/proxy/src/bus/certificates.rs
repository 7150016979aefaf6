//! `org.shipote.Proxy1.Certificates`, at the root object: for who asks authorities for certificates (`shipote-proxy
//! acme`), and for nobody else.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::proxy::ProxyError;
use shipote_service::Authority;
use zbus::OwnedVariant;
use zbus::message::Header;

use super::{may, none};
use crate::state::State;

/// polkit: answer authorities, and have certificates served. Its own action, so that who does it need not be let to
/// change rules.
const ACTION_CERTIFY: &str = "org.shipote.proxy.certify";

/// The root object.
pub(crate) struct Certificates {
    pub(crate) state: Arc<State>,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

#[zbus::interface(name = "org.shipote.Proxy1.Certificates")]
impl Certificates {
    /// Answers an authority that looks whether a name leads here (http-01): requests for
    /// `/.well-known/acme-challenge/TOKEN`, over any listener that speaks HTTP, get `answer` until it is forgotten or the
    /// service ends. No options yet.
    async fn answer_challenge(
        &self,
        #[zbus(header)] header: Header<'_>,
        token: String,
        answer: String,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<(), ProxyError> {
        none(&options)?;
        let caller = may(&self.authority, &self.audit, &header, ACTION_CERTIFY).await?;
        let result = self.state.engine.challenges().set(&token, &answer);
        self.record(&format!("challenge {token}"), caller, &result);
        result.map_err(|e| ProxyError::InvalidArgument(e.to_string()))
    }

    /// Answers it no more; whether it was answered. No options yet.
    #[zbus(out_args("known"))]
    async fn forget_challenge(
        &self,
        #[zbus(header)] header: Header<'_>,
        token: String,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<bool, ProxyError> {
        none(&options)?;
        let caller = may(&self.authority, &self.audit, &header, ACTION_CERTIFY).await?;
        let known = self.state.engine.challenges().forget(&token);
        self.record(&format!("challenge {token}"), caller, &Ok::<_, ProxyError>(()));
        Ok(known)
    }

    /// Says that the certificate whose first name this is has been renewed: certificates are read anew and served from
    /// then on. Rules stay as they are, whatever their files say by now. No options yet.
    async fn renewed(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: String,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<(), ProxyError> {
        none(&options)?;
        let caller = may(&self.authority, &self.audit, &header, ACTION_CERTIFY).await?;
        let result = self.state.read_certificates().await;
        self.record(&format!("certificate {name}"), caller, &result);
        result
    }
}

impl Certificates {
    fn record<T, E: Display>(&self, object: &str, caller: u32, result: &Result<T, E>) {
        let record = Record::new(Event::ProxyCertificate, object.to_owned(), caller, Door::Bus).outcome(result);
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record a change of certificates: {error}");
        }
    }
}
