//! `org.shipote.Proxy1`: wire types, errors and the client of the root object.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use zbus::Type;

/// Most bytes of rule files that one call may carry.
pub const RULES_MAX: usize = 8 * 1024 * 1024;
/// Most flows that one call answers.
pub const FLOWS_MAX: u32 = 1000;

/// A listener and its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ListenerInfo {
    /// `tcp` or `udp`.
    pub transport: String,
    /// Address and port.
    pub address: String,
    /// Whether it ends TLS.
    pub tls: bool,
    /// The rules in the order in which they are tried.
    pub rules: Vec<String>,
}

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct ConnectionInfo {
    /// Its number; flows name it.
    pub id: u64,
    /// Who connected.
    pub remote: String,
    /// The listener's address.
    pub listener: String,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
}

/// An upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct UpstreamInfo {
    /// Its address as rules write it.
    pub address: String,
    /// `up`, or `down` while it is passed by because it could not be reached.
    pub state: String,
    /// Requests and tunnels open now.
    pub open: u64,
    /// Requests and tunnels in all.
    pub total: u64,
    /// Connections that could not be made.
    pub failures: u64,
}

/// A call site of a plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct PoolInfo {
    /// `stateful` or `stateless`.
    pub kind: String,
    /// The plugin and the digest of the version in use, as `NAME@sha256:HEX`.
    pub key: String,
    /// The version, as the plugin says it.
    pub version: String,
    /// Its share of the calls of this place, in hundredths of a percent: less than 10,000 while there is a canary.
    pub share: u32,
    /// The export.
    pub export: String,
    /// Most instances where all workers share them; else how many there are.
    pub capacity: u64,
    /// Instances that no call uses now.
    pub available: u64,
    /// Instances started.
    pub total_allocations: u64,
    /// Calls that found no instance.
    pub failures: u64,
    /// Calls.
    pub calls: u64,
    /// Errors that the plugin answered.
    pub errors: u64,
    /// Calls that trapped or answered what the ABI does not allow.
    pub traps: u64,
    /// Calls stopped at their deadline.
    pub timeouts: u64,
    /// Calls stopped because their fuel was used up.
    pub out_of_fuel: u64,
    /// Fuel used by all calls together; 0 where the policy gives none, as it is not counted then.
    pub fuel: u64,
    /// Nanoseconds that half of the calls stayed below.
    pub p50_ns: u64,
    /// Nanoseconds that 99 of 100 calls stayed below.
    pub p99_ns: u64,
}

/// A certificate of a listener.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct CertInfo {
    /// Address and port.
    pub listener: String,
    /// The server name that it is for; empty for the default one.
    pub name: String,
    /// The file.
    pub file: String,
    /// The names that it carries.
    pub names: Vec<String>,
    /// Until when it is valid, seconds since the epoch; 0 for one by ACME that is not there yet.
    pub not_after: i64,
    /// SHA-256 in hexadecimal; empty for one that is not there yet.
    pub fingerprint: String,
    /// Until when what its authority says of it (OCSP) is stapled, seconds since the epoch; 0 if nothing is, the highest
    /// number there is if that has no end.
    pub staple_until: i64,
    /// The names that an authority is asked to certify (ACME); empty for a certificate whose files somebody else keeps.
    pub wanted: Vec<String>,
    /// When one by ACME is renewed, seconds since the epoch; 0 for one that is not there yet, and for others.
    pub renew_at: i64,
    /// Why one by ACME could not be had when it was last asked for; empty if it could.
    pub error: String,
    /// When it is asked for again at the earliest after that, seconds since the epoch; 0 if that did not fail.
    pub next_try: i64,
}

/// A client's way out, and how it fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct EgressInfo {
    /// `workspace:NAME`, `machine:NAME` or `session:NAME`.
    pub client: String,
    /// Its socket.
    pub socket: String,
    /// The address that it has besides; empty if none.
    pub listen: String,
    /// What it may reach.
    pub allow: Vec<String>,
    /// Connections that were let out.
    pub allowed: u64,
    /// Those that were not.
    pub denied: u64,
    /// Connections open now.
    pub open: u64,
    /// The last denials, oldest first: milliseconds since the epoch, and why.
    pub denials: Vec<(u64, String)>,
}

/// Something that was refused on the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DenialInfo {
    /// When, milliseconds since the epoch.
    pub unix_ms: u64,
    /// To whom.
    pub client: String,
    /// Why, and what to allow.
    pub reason: String,
}

/// What connections are held for, until somebody answers or a minute is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct QuestionInfo {
    /// Its number.
    pub id: u64,
    /// Who asks.
    pub client: String,
    /// The entry of the client's list that would allow it.
    pub entry: String,
    /// When it was asked first, milliseconds since the epoch.
    pub unix_ms: u64,
}

/// What became of one request or one forwarded connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Type)]
pub struct FlowInfo {
    /// When it began, milliseconds since the epoch.
    pub unix_ms: u64,
    /// The connection's number.
    pub connection: u64,
    /// Who asked.
    pub client: String,
    /// The rule that took it; empty if none did.
    pub rule: String,
    /// The method; empty for forwarded bytes.
    pub method: String,
    /// The host, or the server name of a forwarded TLS connection.
    pub host: String,
    /// The path without the query.
    pub path: String,
    /// The status; 0 if there was no answer.
    pub status: u16,
    /// The upstream; empty if none was asked.
    pub upstream: String,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Microseconds.
    pub duration_us: u64,
    /// What went wrong; empty if nothing.
    pub error: String,
}

/// What the proxy refuses, under `org.shipote.Proxy1.Error`.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.shipote.Proxy1.Error")]
pub enum ProxyError {
    /// The bus itself failed.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The rules do not compile; the text has a line for each problem.
    InvalidRules(String),
    /// The rules compile but cannot be served: an address is taken, a feature is missing.
    NotApplied(String),
    /// The files could not be read.
    Unreadable(String),
    /// The caller may not do this.
    NotAuthorized(String),
    /// An argument is not what it should be.
    InvalidArgument(String),
    /// The change could not be recorded, and records are required.
    NotRecorded(String),
}

type Options<'a> = BTreeMap<&'a str, zbus::Variant<'a>>;

/// Client of the root object. The documentation of each method is the interface's own.
#[zbus::proxy(
    interface = "org.shipote.Proxy1.Manager",
    default_service = "org.shipote.Proxy1",
    default_path = "/org/shipote/Proxy1"
)]
pub trait Manager {
    /// See the interface.
    fn list_rules(&self, options: Options<'_>) -> Result<Vec<ListenerInfo>, ProxyError>;
    /// See the interface.
    fn graph(&self, format: &str) -> Result<String, ProxyError>;
    /// See the interface.
    fn compile(&self, files: &[(&str, &str)], format: &str) -> Result<(String, Vec<String>), ProxyError>;
    /// See the interface.
    fn reload(&self, options: Options<'_>) -> Result<(u32, u32, Vec<String>), ProxyError>;
    /// See the interface.
    fn list_connections(&self, options: Options<'_>) -> Result<Vec<ConnectionInfo>, ProxyError>;
    /// See the interface.
    fn list_upstreams(&self, options: Options<'_>) -> Result<Vec<UpstreamInfo>, ProxyError>;
    /// See the interface.
    fn list_flows(&self, count: u32, options: Options<'_>) -> Result<Vec<FlowInfo>, ProxyError>;
    /// See the interface.
    fn list_pools(&self, options: Options<'_>) -> Result<Vec<PoolInfo>, ProxyError>;
    /// See the interface.
    fn list_certs(&self, options: Options<'_>) -> Result<Vec<CertInfo>, ProxyError>;
    /// See the interface.
    fn set_egress(&self, client: &str, allow: &[&str], options: Options<'_>) -> Result<String, ProxyError>;
    /// See the interface.
    fn remove_egress(&self, client: &str, options: Options<'_>) -> Result<bool, ProxyError>;
    /// See the interface.
    fn list_egress(&self, options: Options<'_>) -> Result<Vec<EgressInfo>, ProxyError>;
    /// See the interface.
    fn metrics(&self) -> Result<String, ProxyError>;
}

/// Client of the root object: certificates by ACME, for who asks for them.
#[zbus::proxy(
    interface = "org.shipote.Proxy1.Certificates",
    default_service = "org.shipote.Proxy1",
    default_path = "/org/shipote/Proxy1"
)]
pub trait Certificates {
    /// See the interface.
    fn answer_challenge(&self, token: &str, answer: &str, options: Options<'_>) -> Result<(), ProxyError>;
    /// See the interface.
    fn forget_challenge(&self, token: &str, options: Options<'_>) -> Result<bool, ProxyError>;
    /// See the interface.
    fn renewed(&self, name: &str, options: Options<'_>) -> Result<(), ProxyError>;
}

/// Client of the root object: refusals and questions on the way out.
#[zbus::proxy(
    interface = "org.shipote.Proxy1.Egress",
    default_service = "org.shipote.Proxy1",
    default_path = "/org/shipote/Proxy1"
)]
pub trait Egress {
    /// See the interface.
    fn list_denials(&self, options: Options<'_>) -> Result<Vec<DenialInfo>, ProxyError>;
    /// See the interface.
    fn list_pending(&self, options: Options<'_>) -> Result<Vec<QuestionInfo>, ProxyError>;
    /// See the interface.
    fn answer(&self, id: u64, allow: bool, options: Options<'_>) -> Result<(String, String), ProxyError>;
    /// See the interface.
    #[zbus(signal)]
    fn pending(&self, id: u64, client: String, entry: String) -> zbus::Result<()>;
}
