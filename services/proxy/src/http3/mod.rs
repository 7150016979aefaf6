//! HTTP/3, from clients and to upstreams: `quinn` for QUIC, `h3` for what HTTP makes of it.
//!
//! `h3` leaves to its users what `h2` does by itself, and what requests could be smuggled or memory be filled with; it
//! is done here: frames are bounded ([`frames`]), fields that belong to a connection are refused ([`head`]), a body has
//! the length that its head says (`http::body`), a stream that is dropped is reset and not ended ([`quic`]).

pub(crate) mod config;
mod frames;
pub(crate) mod head;
pub(crate) mod quic;
pub(crate) mod server;
pub(crate) mod stream;

/// The protocol's name in a handshake.
pub(crate) const ALPN: &[u8] = b"h3";
