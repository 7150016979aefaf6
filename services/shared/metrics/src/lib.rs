//! The admin page of a service: `/metrics` (OpenMetrics) and `/health` over HTTP, on a Unix socket or a loopback port.
//!
//! For: scrapers. Not for: changes, which go over the bus, and for what the page says, which is the service's.
//!
//! Invariants: nobody beyond this host reaches it (any address that is not loopback is refused); a reader that is slow,
//! silent or garbage is dropped after five seconds and nobody else notices; at most 32 readers at once.
#![forbid(unsafe_code)]

mod listen;
mod serve;

pub use listen::{Bound, Error, Listen};
pub use serve::serve;
