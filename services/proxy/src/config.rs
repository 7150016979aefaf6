//! The `[proxy]` section of the configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use shipote_proxy::Settings;

/// What can be set; absent: the default of [`Settings`]. Times are in milliseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProxySection {
    workers: Option<usize>,
    head_time_ms: Option<u64>,
    idle_time_ms: Option<u64>,
    body_time_ms: Option<u64>,
    drain_time_ms: Option<u64>,
    head_bytes: Option<usize>,
    connections: Option<u32>,
    connections_per_address: Option<u32>,
    idle_upstream: Option<usize>,
    idle_upstream_time_ms: Option<u64>,
    flows: Option<usize>,
    egress: BTreeMap<String, EgressSection>,
    udp_sessions: Option<usize>,
    quic_handshakes: Option<usize>,
    peek_time_ms: Option<u64>,
}

/// What a client may reach (`[proxy.egress."workspace:web"]`), for those that are not told over the bus.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EgressSection {
    pub(crate) allow: Vec<String>,
    pub(crate) listen: Option<SocketAddr>,
    /// Uids that may use the socket, besides root and the proxy's own.
    pub(crate) users: Vec<u32>,
}

/// Reads `shipote.toml` of the configuration folder.
pub(crate) fn load(config: &Path) -> anyhow::Result<(Settings, BTreeMap<String, EgressSection>)> {
    let section: ProxySection = shipote_config::load(&config.join("shipote.toml"), Some("proxy"))?.value;
    let millis = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_millis);
    let default = Settings::default();
    let settings = Settings {
        workers: section.workers.unwrap_or(default.workers).clamp(1, 256),
        head_time: millis(section.head_time_ms, default.head_time),
        idle_time: millis(section.idle_time_ms, default.idle_time),
        body_time: millis(section.body_time_ms, default.body_time),
        // The service is given eight seconds to stop.
        drain_time: millis(section.drain_time_ms, Duration::from_secs(7)),
        head_bytes: section.head_bytes.unwrap_or(default.head_bytes).clamp(1024, 32 << 10),
        connections: section.connections.unwrap_or(default.connections),
        connections_per_address: section.connections_per_address.unwrap_or(default.connections_per_address),
        idle_upstream: section.idle_upstream.unwrap_or(default.idle_upstream),
        idle_upstream_time: millis(section.idle_upstream_time_ms, default.idle_upstream_time),
        quic_handshakes: section.quic_handshakes.unwrap_or(default.quic_handshakes),
        udp_sessions: section.udp_sessions.unwrap_or(default.udp_sessions).max(1),
        peek_time: millis(section.peek_time_ms, default.peek_time),
        flows: section.flows.unwrap_or(default.flows),
    };
    Ok((settings, section.egress))
}
