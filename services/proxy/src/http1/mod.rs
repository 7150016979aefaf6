//! HTTP/1.1, both sides: strict parsing, framing that is always the proxy's own, bodies in pieces.

pub(crate) mod body;
pub(crate) mod chunked;
pub(crate) mod compose;
pub(crate) mod connection;
pub(crate) mod exchange;
pub(crate) mod head;
pub(crate) mod request;
pub(crate) mod response;

pub(crate) use head::{Framing, Lines, Refusal};
