//! What a junction reports while it runs.

use shipote_discern::Discernment;
use tokio::sync::mpsc::UnboundedSender;

use crate::EdgeId;

/// Why an edge ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// The producer closed its output or died, and the consumer has been given everything.
    Eof,
    /// The consumer closed its input or died. The producer is told (`SIGPIPE`, `EPIPE`) when no
    /// other edge of the junction has a consumer left.
    ConsumerClosed,
    /// The source or the sink failed; [`FlowEvent::Failed`] says how.
    Failed,
}

/// What happened on an edge.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FlowEvent {
    /// What kind of data flows. Comes when the sample is complete or the flow has ended, and
    /// before that for a flow that pauses before it has yielded a whole sample; the later one
    /// holds. An edge without a tap is not sampled.
    Sampled {
        /// The edge.
        id: EdgeId,
        /// What its data is.
        discernment: Discernment,
    },
    /// The edge ended. Its tap serves the replay until it is closed.
    Ended {
        /// The edge.
        id: EdgeId,
        /// Bytes that the consumer was given.
        bytes: u64,
        /// Why.
        reason: EndReason,
    },
    /// A subscriber lagged behind further than the replay reaches and was cut off.
    SubscriberDropped {
        /// The edge.
        id: EdgeId,
        /// Bytes of the stream up to now that it had not been sent.
        lost: u64,
    },
    /// A peer may not subscribe, or the tap has as many subscribers as it may.
    SubscriberRefused {
        /// The edge.
        id: EdgeId,
        /// The peer's user id, if the kernel told it.
        uid: Option<u32>,
        /// Why.
        reason: String,
    },
    /// The kernel does not splice this source or sink; its bytes are copied through user space.
    Copied {
        /// The edge.
        id: EdgeId,
        /// Which end, and what the kernel said.
        reason: String,
    },
    /// The replay is smaller than asked for.
    Degraded {
        /// The edge.
        id: EdgeId,
        /// What is smaller, and why.
        reason: String,
    },
    /// Something about the edge failed; a failed tap leaves the pipeline running.
    Failed {
        /// The edge.
        id: EdgeId,
        /// What failed.
        reason: String,
    },
}

/// Where events go; if nobody listens any more, nowhere.
#[derive(Debug, Clone)]
pub(crate) struct Events(pub(crate) UnboundedSender<FlowEvent>);

impl Events {
    pub(crate) fn send(&self, event: FlowEvent) {
        let _ = self.0.send(event);
    }
}
