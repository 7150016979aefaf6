//! The proxy's data plane: connections in, rules applied, bytes out.
//!
//! For: serving a compiled graph of rules ([`shipote_rules::Graph`]) on real sockets, by one single-threaded runtime
//! per core. Not for: reading rules (that is `shipote-rules`), compiling WASM, writing to disk.
//!
//! Invariant: a request runs by one plan from its first byte to its last, whatever is loaded meanwhile; where a message
//! ends is decided once, by strict parsing, and what goes on is framed by the proxy itself; a body is never in memory
//! as a whole.
#![deny(unsafe_code)]

pub mod acme;
pub mod admin;
mod cgi;
pub mod egress;
mod engine;
mod figures;
mod flow_log;
mod flows;
mod forward;
mod health;
mod http;
mod http1;
mod http2;
mod http3;
mod io;
mod listen;
#[doc(hidden)]
pub mod measure;
pub mod metrics;
mod ocsp;
mod peek;
mod plan;
mod plugin;
mod proxy_protocol;
mod rate;
mod settings;
mod shared;
mod tls;
mod tunnel;
mod udp;
mod upstream;
mod walk;
mod worker;

pub use cgi::Start;
pub use engine::{ApplyError, ConnectionInfo, Engine, UpstreamInfo};
pub use flow_log::FlowLog;
pub use flows::Flow;
pub use listen::{Handed, Inherited, Keeper, is_kept_name};
pub use plan::LinkError;
pub use plugin::{CanaryFailed, PluginCanary, PluginCode, PluginLink};
pub use settings::Settings;
pub use upstream::{Ask, Unreached};
