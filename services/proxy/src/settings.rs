//! What can be set, and what holds where nothing is set.

use std::time::Duration;

use crate::acme::Store;
use crate::flow_log::FlowLog;

/// Limits towards clients and the size of things.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Threads that serve, each with its own listeners and upstream connections.
    pub workers: usize,
    /// From a request's first byte to the end of its head.
    pub head_time: Duration,
    /// How long a connection may wait for its next request.
    pub idle_time: Duration,
    /// How long a client may take between two pieces of a request's body.
    pub body_time: Duration,
    /// How long the first bytes of a connection are waited for where rules need them.
    pub peek_time: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Connections from one address.
    pub connections_per_address: u32,
    /// Connections in all.
    pub connections: u32,
    /// Idle connections kept to one upstream, by one worker.
    pub idle_upstream: usize,
    /// How long they are kept.
    pub idle_upstream_time: Duration,
    /// Handshakes of QUIC at once, on one listener of one worker, over which a client must prove its address first.
    pub quic_handshakes: usize,
    /// Clients that send datagrams at once, on one listener of one worker.
    pub udp_sessions: usize,
    /// Flows remembered.
    pub flows: usize,
    /// Where flows go besides.
    pub flow_log: Option<FlowLog>,
    /// Where certificates by ACME are; without it no rule may name one.
    pub acme: Option<Store>,
    /// How long open requests may go on when the proxy stops.
    pub drain_time: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(60),
            body_time: Duration::from_secs(30),
            peek_time: Duration::from_secs(3),
            head_bytes: 16 << 10,
            connections_per_address: 16_384,
            connections: 65_536,
            idle_upstream: 128,
            idle_upstream_time: Duration::from_secs(15),
            quic_handshakes: 128,
            udp_sessions: 4096,
            flows: 10_000,
            flow_log: None,
            acme: None,
            drain_time: Duration::from_secs(30),
        }
    }
}
