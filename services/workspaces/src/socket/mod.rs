//! The workspace socket, `shipote.sock`: the second door to the same actor, for clients that speak
//! `shipote-workspace-protocol` instead of D-Bus.
//!
//! A thin door: `listener` takes the socket, `peers` says who may connect and how fast they may ask, `connection`
//! moves frames, `answer` turns each request into calls of the actor and its answer into a response.

mod answer;
mod connection;
mod figures;
mod listener;
mod peers;
mod pipelines;

use std::sync::Arc;
use std::time::Instant;

use shipote_audit::Audit;
use shipote_bus::service::MechanismInfo;
use tokio::sync::watch;

use crate::actor::Handle;
use crate::allowance::Allowance;
use crate::effects::LogStore;
use crate::figures::Meter;
use crate::protected::Protected;
use crate::saved::Saved;

pub(crate) use connection::serve;
pub(crate) use listener::Taken;

/// What the door needs to answer.
pub(crate) struct Door {
    pub(crate) actor: Handle,
    pub(crate) audit: Arc<Audit>,
    pub(crate) logs: LogStore,
    pub(crate) meter: Meter,
    pub(crate) saved: Saved,
    pub(crate) protected: Protected,
    pub(crate) allowance: Allowance,
    pub(crate) capabilities: Vec<MechanismInfo>,
    /// Changes whenever something becomes known of a flow.
    pub(crate) flow_news: watch::Receiver<()>,
    pub(crate) started: Instant,
}
