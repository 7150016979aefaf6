//! What the services of Shipote and their clients share about the bus: names,
//! object paths, runtime paths, error names, wire types and client proxies.
//!
//! It is for both sides of every D-Bus call: a service serves the types that are
//! declared here and a client decodes the very same ones. It is not for behaviour:
//! no state, no policy, no service logic lives here.
//!
//! Invariant: everything in an interface whose name ends in `1` is only ever added
//! to. A change that breaks a client gets a new interface name.
#![forbid(unsafe_code)]

pub mod appliance;
pub mod connect;
pub mod egress;
pub mod error;
pub mod machines;
pub mod names;
pub mod paths;
pub mod plugins;
pub mod proxy;
pub mod service;
pub mod spec;
pub mod words;
pub mod workspaces;

pub use error::NotAvailable;
pub use names::Service;
