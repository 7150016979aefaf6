//! The context paths that an export may ask for.

/// What a path's value is, as a case of [`crate::handlers::ContextValue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathType {
    /// `text`
    Text,
    /// `bytes`
    Bytes,
    /// `uint64`
    Uint64,
    /// `boolean`
    Boolean,
    /// `list-text`
    ListText,
}

/// Every path, with its type.
pub const KNOWN: [(&str, PathType); 18] = [
    ("conn.peer_ip", PathType::Text),
    ("conn.peer_port", PathType::Uint64),
    ("conn.local_ip", PathType::Text),
    ("conn.local_port", PathType::Uint64),
    ("conn.transport", PathType::Text),
    ("conn.alpn", PathType::Text),
    ("conn.id", PathType::Text),
    ("conn.accept_unix_ms", PathType::Uint64),
    ("conn.tls.version", PathType::Text),
    ("conn.tls.sni", PathType::Text),
    ("conn.tls.peer_cert", PathType::Bytes),
    ("conn.tls.peer_cert.present", PathType::Boolean),
    ("conn.tls.peer_cert.subject_cn", PathType::Text),
    ("conn.tls.peer_cert.san_dns", PathType::ListText),
    ("conn.tls.peer_cert.fingerprint_sha256", PathType::Text),
    ("conn.tls.peer_cert.spki_sha256", PathType::Text),
    ("conn.tls.peer_cert.issuer_cn", PathType::Text),
    ("conn.tls.peer_cert.serial", PathType::Text),
];

/// The type of `path`, or `None` for a path that does not exist.
#[must_use]
pub fn path_type(path: &str) -> Option<PathType> {
    KNOWN.iter().find(|(known, _)| *known == path).map(|(_, ty)| *ty)
}
