//! HTTP/2 from clients, by the `h2` crate on the worker's own runtime.

pub(crate) mod head;
pub(crate) mod server;

/// What a client with HTTP/2 says first (RFC 9113, section 3.4), up to where it cannot be a request of HTTP/1.1.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
