//! The `[proxy]` section of the configuration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
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
    flow_log: FlowLogTo,
    egress: BTreeMap<String, EgressSection>,
    udp_sessions: Option<usize>,
    quic_handshakes: Option<usize>,
    peek_time_ms: Option<u64>,
    acme: Option<AcmeSection>,
}

/// The authority that rules' certificates by ACME are from (`[proxy.acme]`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AcmeSection {
    /// URL of the authority's directory.
    pub(crate) directory: String,
    /// Whom the authority may write to (`mailto:…`).
    pub(crate) contact: Vec<String>,
    /// Whether its terms are agreed to.
    pub(crate) agree_to_terms: bool,
    /// Certificates in PEM that it is verified by, in place of the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

impl Default for AcmeSection {
    fn default() -> Self {
        let directory = instant_acme::LetsEncrypt::Production.url().to_owned();
        Self { directory, contact: Vec::new(), agree_to_terms: false, ca_file: None }
    }
}

/// Where flows go besides the memory of the last ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FlowLogTo {
    /// Nowhere.
    #[default]
    None,
    /// The journal; the log, where there is none.
    Journal,
    /// `flows.jsonl` in the state folder.
    File,
}

/// What the configuration says.
#[derive(Debug)]
pub(crate) struct Configured {
    /// Without a flow log.
    pub(crate) settings: Settings,
    pub(crate) flow_log: FlowLogTo,
    pub(crate) egress: BTreeMap<String, EgressSection>,
    pub(crate) acme: Option<AcmeSection>,
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
pub(crate) fn load(config: &Path) -> anyhow::Result<Configured> {
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
        flow_log: None,
        acme: None,
    };
    Ok(Configured { settings, flow_log: section.flow_log, egress: section.egress, acme: section.acme })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Configured {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("shipote.toml"), text).unwrap();
        load(folder.path()).unwrap()
    }

    #[test]
    fn each_key_that_the_documentation_lists_is_read_and_has_the_default_that_it_says() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/proxy.md");
        let page = std::fs::read_to_string(page).unwrap();
        let (_, table) = page.split_once("| key | default | bounds |").unwrap();
        let mut text = "[proxy]\n".to_owned();
        let mut keys = 0;
        for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (names, values) = (cells[1].split(", "), cells[2].split(", "));
            for (name, value) in names.zip(values) {
                keys += 1;
                if value != "processors" {
                    text.push_str(&format!("{} = {value}\n", name.trim_matches('`')));
                }
            }
        }
        assert!(keys >= 14, "{text}");
        assert_eq!(format!("{:?}", loaded(&text)), format!("{:?}", loaded("")), "{text}");
        let other = text.replace(" = 1", " = 2");
        assert_ne!(format!("{:?}", loaded(&other)), format!("{:?}", loaded("")));
    }
}
