//! `org.shipote.Proxy1.Egress`, at the root object: what was refused on the way out, and what connections wait for.

use std::collections::HashMap;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::Service;
use shipote_bus::proxy::{DenialInfo, ProxyError, QuestionInfo};
use shipote_proxy::egress::Question;
use shipote_service::Authority;
use tokio::sync::mpsc;
use zbus::OwnedVariant;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::{may_manage, none};
use crate::state::State;

/// The root object.
pub(crate) struct Egress {
    pub(crate) state: Arc<State>,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

#[zbus::interface(name = "org.shipote.Proxy1.Egress")]
impl Egress {
    /// The last refusals, oldest first, also of clients that are gone: when (milliseconds since the epoch; the last
    /// time, where the same was refused again and again), to whom, and why with what to allow. No options yet.
    #[zbus(out_args("denials"))]
    async fn list_denials(&self, options: HashMap<String, OwnedVariant>) -> Result<Vec<DenialInfo>, ProxyError> {
        none(&options)?;
        let info = |d: shipote_proxy::egress::DenialInfo| DenialInfo {
            unix_ms: d.unix_ms,
            client: d.client,
            reason: d.reason,
        };
        Ok(self.state.egress.denials().into_iter().map(info).collect())
    }

    /// What connections are held for, oldest first. No options yet.
    #[zbus(out_args("questions"))]
    async fn list_pending(&self, options: HashMap<String, OwnedVariant>) -> Result<Vec<QuestionInfo>, ProxyError> {
        none(&options)?;
        Ok(self.state.egress.questions().into_iter().map(info).collect())
    }

    /// Lets the connections that wait for an answer out, this once, or refuses them. What a client may reach from now
    /// on is for its list to say. Returns the client and the entry that would allow it. No options yet.
    #[zbus(out_args("client", "entry"))]
    async fn answer(
        &self,
        #[zbus(header)] header: Header<'_>,
        id: u64,
        allow: bool,
        options: HashMap<String, OwnedVariant>,
    ) -> Result<(String, String), ProxyError> {
        none(&options)?;
        let caller = may_manage(&self.authority, &self.audit, &header).await?;
        let answered = self.state.egress.answer(id, allow).ok_or_else(|| {
            ProxyError::InvalidArgument(format!("no connection waits for question {id}; see `shipote egress pending`"))
        });
        let object = answered.as_ref().map_or_else(|_| format!("question {id}"), |q| q.client.clone());
        let mut record = Record::new(Event::EgressChange, object, caller, Door::Bus).outcome(&answered);
        if let Ok(question) = &answered {
            let answer = if allow { "once" } else { "no" };
            record = record.field("ENTRY", question.entry.clone()).field("ANSWER", answer);
        }
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record an answer about egress: {error}");
        }
        answered.map(|question| (question.client, question.entry))
    }

    /// A connection of a client waits: for this entry of its list, or for an answer.
    #[zbus(signal)]
    async fn pending(emitter: &SignalEmitter<'_>, id: u64, client: &str, entry: &str) -> zbus::Result<()>;
}

fn info(question: Question) -> QuestionInfo {
    let Question { id, client, entry, unix_ms } = question;
    QuestionInfo { id, client, entry, unix_ms }
}

/// Signals what is asked, as it is asked.
pub(crate) async fn tell(connection: zbus::Connection, mut news: mpsc::Receiver<Question>) {
    let emitter = match SignalEmitter::new(&connection, Service::Proxy.path()) {
        Ok(emitter) => emitter,
        Err(e) => return tracing::error!("nobody is told what connections wait for: {e}"),
    };
    while let Some(question) = news.recv().await {
        if let Err(e) = Egress::pending(&emitter, question.id, &question.client, &question.entry).await {
            tracing::warn!("signal that {} waits for {}: {e}", question.client, question.entry);
        }
    }
}
