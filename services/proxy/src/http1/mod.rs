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

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from_digit(d.into(), 16).unwrap_or('0')).collect()
}
