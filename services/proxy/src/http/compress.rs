//! `compress`: gzip for clients that take it, a piece at a time.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderValue;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, VARY,
};

use super::reply::Reply;
use crate::http1::Lines;

/// A compressed body in the making.
pub(crate) struct Encoder(GzEncoder<Vec<u8>>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Encoder {
    fn new() -> Self {
        // The fastest: a proxy compresses each answer anew.
        Self(GzEncoder::new(Vec::new(), Compression::fast()))
    }

    /// What a piece comes to, all of it: a reader of a stream must not wait for the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> std::io::Result<Bytes> {
        self.0.write_all(piece)?;
        self.0.flush()?;
        Ok(Bytes::from(std::mem::take(self.0.get_mut())))
    }

    pub(super) fn finish(&mut self) -> std::io::Result<Bytes> {
        self.0.try_finish()?;
        Ok(Bytes::from(std::mem::take(self.0.get_mut())))
    }
}

/// Whether a client takes gzip (RFC 9110, section 12.5.3).
pub(super) fn accepted(lines: &Lines, bytes: &[u8]) -> bool {
    let codings = lines.values(bytes, b"accept-encoding").flat_map(|v| v.split(|b| *b == b','));
    let mut any = false;
    for coding in codings {
        let mut parts = coding.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|p| p.strip_prefix(b"q=")).unwrap_or(b"1");
        let refused = weight.iter().all(|b| matches!(b, b'0' | b'.'));
        if name.eq_ignore_ascii_case(b"gzip") {
            return !refused;
        }
        any |= name == b"*" && !refused;
    }
    any
}

/// Makes an answer ready to be compressed, if it is worth it and allowed.
pub(super) fn prepare(reply: &mut Reply, (least, types): (u64, &[String]), takes: bool) -> Option<Encoder> {
    let text = |name: &HeaderName| reply.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = text(&CONTENT_TYPE).to_ascii_lowercase();
    let fits = types.iter().any(|t| kind.starts_with(t.as_str()));
    let allowed = !matches!(reply.status, 100..=199 | 204 | 206 | 304)
        && !reply.headers.contains_key(CONTENT_ENCODING)
        && !reply.headers.contains_key(CONTENT_RANGE)
        && !text(&CACHE_CONTROL).to_ascii_lowercase().contains("no-transform");
    if !fits || !allowed || reply.length.is_some_and(|n| n < least.max(1)) {
        return None;
    }
    // Whether it is compressed or not depends on the client from here on.
    reply.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    if !takes {
        return None;
    }
    reply.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    reply.headers.remove(ACCEPT_RANGES);
    // The bytes are others than the upstream's tag stands for.
    let weak = reply.headers.get(ETAG).and_then(|tag| {
        let tag = tag.to_str().ok()?;
        HeaderValue::from_str(&if tag.starts_with("W/") { tag.to_owned() } else { format!("W/{tag}") }).ok()
    });
    if let Some(weak) = weak {
        reply.headers.insert(ETAG, weak);
    }
    reply.length = None;
    Some(Encoder::new())
}
