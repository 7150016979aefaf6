//! Heads of HTTP/3. As requests they take the way of HTTP/2's, once what HTTP/3 forbids is refused.

use http::HeaderMap;
use http::header::{CONNECTION, CONTENT_LENGTH, TE, TRANSFER_ENCODING, UPGRADE};

use crate::http1::Refusal;

/// Refuses fields that belong to a connection of HTTP/1.1 (RFC 9114, section 4.2): what reads the head as text would
/// take them for framing.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Refusal> {
    let of_a_connection =
        [CONNECTION.as_str(), "keep-alive", "proxy-connection", TRANSFER_ENCODING.as_str(), UPGRADE.as_str()];
    if of_a_connection.into_iter().any(|name| headers.contains_key(name)) {
        return Err(Refusal::bad("a field that HTTP/3 does not know"));
    }
    if headers.get_all(TE).iter().any(|v| v.as_bytes() != b"trailers") {
        return Err(Refusal::bad("a transfer coding, which HTTP/3 does not know"));
    }
    Ok(())
}

/// How long the body says it is.
pub(crate) fn length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = all.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
    match (text.and_then(|v| v.parse().ok()), all.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(Refusal::bad("a length that is none, or more than one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn what_belongs_to_a_connection_is_refused() {
        for (name, value) in [
            ("connection", "close"),
            ("keep-alive", "1"),
            ("proxy-connection", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
        ] {
            assert!(check(&headers(&[(name, value)])).is_err(), "{name}");
        }
        assert!(check(&headers(&[("te", "trailers"), ("x", "y")])).is_ok());
    }

    #[test]
    fn a_length_is_one_number() {
        assert_eq!(length(&headers(&[])), Ok(None));
        assert_eq!(length(&headers(&[("content-length", "12")])), Ok(Some(12)));
        for bad in ["+1", "-1", "1, 1", "", "0x1", "99999999999999999999"] {
            assert!(length(&headers(&[("content-length", bad)])).is_err(), "{bad}");
        }
        assert!(length(&headers(&[("content-length", "1"), ("content-length", "1")])).is_err());
    }
}
