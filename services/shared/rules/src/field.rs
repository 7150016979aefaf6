//! The fields that a match can read, what they hold, and how early they are known.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::error::{Problem, suggest};

/// How far a connection has come. A path through the graph only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A connection was accepted (or a datagram came in); no byte was read.
    Raw,
    /// The first bytes are in a buffer and still go to whoever handles the connection.
    Peek,
    /// The TLS handshake is done.
    Tls,
    /// A request's head was read.
    Request,
    /// The request's body is in memory.
    Body,
    /// A response's head is there.
    Response,
    /// Bytes go both ways unread.
    Tunnel,
}

/// What a field holds; decides which operators apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8 or at least ASCII text.
    Text,
    /// Bytes.
    Bytes,
    /// A whole number.
    Integer,
    /// An IP address.
    Address,
    /// True or false.
    Boolean,
    /// Several texts; an operator holds if it holds for one of them.
    Texts,
    /// One of a few words.
    Word(&'static [&'static str]),
}

/// A field of a connection or a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each variant is the field that its wire name says")]
pub enum Field {
    Transport,
    RemoteIp,
    RemotePort,
    LocalIp,
    LocalPort,
    Peek,
    TlsSni,
    TlsAlpn,
    TlsVersion,
    PeerCertPresent,
    PeerCertSubjectCn,
    PeerCertSanDns,
    PeerCertFingerprint,
    PeerCertSpki,
    PeerCertIssuerCn,
    PeerCertSerial,
    Method,
    UriPath,
    UriQuery,
    /// A request header by its lower-case name.
    Header(String),
    Body,
}

const FIXED: [(&str, Field); 20] = [
    ("transport", Field::Transport),
    ("remote.ip", Field::RemoteIp),
    ("remote.port", Field::RemotePort),
    ("local.ip", Field::LocalIp),
    ("local.port", Field::LocalPort),
    ("peek", Field::Peek),
    ("tls.sni", Field::TlsSni),
    ("tls.alpn", Field::TlsAlpn),
    ("tls.version", Field::TlsVersion),
    ("tls.peer_cert.present", Field::PeerCertPresent),
    ("tls.peer_cert.subject_cn", Field::PeerCertSubjectCn),
    ("tls.peer_cert.san_dns", Field::PeerCertSanDns),
    ("tls.peer_cert.fingerprint_sha256", Field::PeerCertFingerprint),
    ("tls.peer_cert.spki_sha256", Field::PeerCertSpki),
    ("tls.peer_cert.issuer_cn", Field::PeerCertIssuerCn),
    ("tls.peer_cert.serial", Field::PeerCertSerial),
    ("http.method", Field::Method),
    ("http.uri.path", Field::UriPath),
    ("http.uri.query", Field::UriQuery),
    ("http.body", Field::Body),
];

const HEADER: &str = "http.header.";

impl Field {
    pub(crate) fn parse(name: &str, path: &str) -> Result<Self, Problem> {
        if let Some((_, field)) = FIXED.iter().find(|(known, _)| *known == name) {
            return Ok(field.clone());
        }
        if let Some(header) = name.strip_prefix(HEADER) {
            return if is_token(header) {
                Ok(Self::Header(header.to_ascii_lowercase()))
            } else {
                Err(Problem::new(path, format!("{header:?} is no header name")))
            };
        }
        let known = FIXED.iter().map(|(known, _)| *known).chain(["http.header.<name>", "all_of", "any_of", "not"]);
        Err(Problem::new(path, format!("unknown field: {}", suggest(name, known))))
    }

    /// What the field holds.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Transport => Kind::Word(&["tcp", "udp"]),
            Self::TlsVersion => Kind::Word(&["1.2", "1.3"]),
            Self::RemoteIp | Self::LocalIp => Kind::Address,
            Self::RemotePort | Self::LocalPort => Kind::Integer,
            Self::Peek | Self::TlsAlpn | Self::Body => Kind::Bytes,
            Self::PeerCertPresent => Kind::Boolean,
            Self::PeerCertSanDns => Kind::Texts,
            _ => Kind::Text,
        }
    }

    /// The earliest phase in which the field is known. The server name is already in the first bytes, so a rule
    /// on it alone can forward without decrypting.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self {
            Self::Transport | Self::RemoteIp | Self::RemotePort | Self::LocalIp | Self::LocalPort => Phase::Raw,
            Self::Peek | Self::TlsSni => Phase::Peek,
            Self::TlsAlpn
            | Self::TlsVersion
            | Self::PeerCertPresent
            | Self::PeerCertSubjectCn
            | Self::PeerCertSanDns
            | Self::PeerCertFingerprint
            | Self::PeerCertSpki
            | Self::PeerCertIssuerCn
            | Self::PeerCertSerial => Phase::Tls,
            Self::Method | Self::UriPath | Self::UriQuery | Self::Header(_) => Phase::Request,
            Self::Body => Phase::Body,
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "{HEADER}{name}"),
            other => f.write_str(FIXED.iter().find(|(_, field)| field == other).map_or("?", |(name, _)| *name)),
        }
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A token of RFC 9110, section 5.6.2: what names of headers and methods are made of.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_reads_back_what_it_prints() {
        for (name, field) in FIXED {
            assert_eq!(field.to_string(), name);
            assert_eq!(Field::parse(name, "").unwrap(), field);
        }
        assert_eq!(Field::parse("http.header.X-Api", "").unwrap().to_string(), "http.header.x-api");
    }

    #[test]
    fn a_misspelt_field_is_answered_with_the_nearest() {
        let problem = Field::parse("http.uri.paht", "match.http.uri.paht").unwrap_err();
        assert!(problem.message.contains("\"http.uri.path\""), "{}", problem.message);
        assert!(Field::parse("http.header.a b", "").is_err());
    }
}
