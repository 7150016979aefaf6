//! What heads of requests and responses have in common: their lines, and where their bodies end.
//!
//! `httparse` finds the parts. What it tolerates and an attacker could use to make two parsers disagree is refused
//! here: bare LF, folded lines, more than one length, a length beside a coding (RFC 9112, sections 2.2, 5 and 6.3).

use std::ops::Range;

/// Why a head is refused: the status that says so, and the reason for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) reason: &'static str,
}

impl Refusal {
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self { status: 400, reason }
    }

    /// The answer that says so, without a body.
    pub(crate) fn response(self) -> http::Response<()> {
        let mut response = http::Response::new(());
        *response.status_mut() = http::StatusCode::from_u16(self.status).unwrap_or(http::StatusCode::BAD_REQUEST);
        response
    }
}

/// Most header lines of one head.
pub(crate) const MAX_LINES: usize = 100;

/// A header line: offsets from the head's beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    name: (u32, u32),
    value: (u32, u32),
    pub(crate) known: Known,
}

/// The headers that the proxy treats in a way of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// None of them: passed on as it is.
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    /// `Keep-Alive`, `Proxy-Connection`, `TE`, `Trailer`: for this connection only.
    HopByHop,
    Upgrade,
    Expect,
    ForwardedFor,
    RealIp,
    Date,
}

impl Known {
    /// By name, in any case.
    pub(crate) fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::HopByHop,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::HopByHop,
            9 if is("x-real-ip") => Self::RealIp,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

/// The lines of a head, and the head's length. Used again for the next head.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    pub(crate) lines: Vec<Line>,
    pub(crate) length: usize,
}

impl Lines {
    /// Takes over what `httparse` found in `bytes`, of which the head is the first `length`.
    pub(crate) fn take(&mut self, bytes: &[u8], length: usize, headers: &[httparse::Header<'_>]) {
        self.lines.clear();
        self.length = length;
        let base = bytes.as_ptr() as usize;
        let range = |part: &[u8]| {
            let start = part.as_ptr() as usize - base;
            (start as u32, (start + part.len()) as u32)
        };
        self.lines.extend(headers.iter().map(|h| Line {
            name: range(h.name.as_bytes()),
            value: range(h.value),
            known: Known::of(h.name.as_bytes()),
        }));
    }

    pub(crate) fn iter<'h>(&'h self, head: &'h [u8]) -> impl Iterator<Item = (Known, &'h [u8], &'h [u8])> + 'h {
        self.lines.iter().map(move |l| (l.known, slice(head, l.name), slice(head, l.value)))
    }

    /// The values of a header by its lower-case name.
    pub(crate) fn values<'h>(&'h self, head: &'h [u8], name: &'h [u8]) -> impl Iterator<Item = &'h [u8]> + 'h {
        self.iter(head).filter(move |(_, n, _)| n.eq_ignore_ascii_case(name)).map(|(_, _, v)| v)
    }
}

fn slice(head: &[u8], (start, end): (u32, u32)) -> &[u8] {
    &head[start as usize..end as usize]
}

/// The range of `part` inside `whole`. Nothing lies nowhere: for a reason that is not ASCII `httparse` gives an empty one of
/// its own.
pub(crate) fn range_in(whole: &[u8], part: &[u8]) -> Range<usize> {
    if part.is_empty() {
        return 0..0;
    }
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// Every line feed of a head must follow a carriage return: `httparse` takes bare ones.
pub(crate) fn no_bare_lf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|i| i > 0 && head[i - 1] == b'\r')
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is none.
    Empty,
    /// After so many bytes.
    Length(u64),
    /// By its chunks.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// What the lines say about framing and the connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade: bool,
    /// `Connection` names other headers, which then concern this connection only.
    pub(crate) nominates: bool,
}

/// Reads `Content-Length`, `Transfer-Encoding` and `Connection`, refusing all that is not plain.
pub(crate) fn read_framing(lines: &Lines, head: &[u8]) -> Result<Said, Refusal> {
    let mut said =
        Said { length: None, chunked: false, close: false, keep_alive: false, upgrade: false, nominates: false };
    for (known, _, value) in lines.iter(head) {
        match known {
            Known::ContentLength => {
                if said.length.is_some() {
                    return Err(Refusal::bad("more than one content-length"));
                }
                said.length = Some(length(value).ok_or(Refusal::bad("content-length is not a number"))?);
            }
            Known::TransferEncoding => {
                if said.chunked {
                    return Err(Refusal::bad("more than one transfer-encoding"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal { status: 501, reason: "a transfer-encoding other than chunked" });
                }
                said.chunked = true;
            }
            Known::Connection => {
                for token in value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|t| !t.is_empty()) {
                    if token.eq_ignore_ascii_case(b"close") {
                        said.close = true;
                    } else if token.eq_ignore_ascii_case(b"keep-alive") {
                        said.keep_alive = true;
                    } else if token.eq_ignore_ascii_case(b"upgrade") {
                        said.upgrade = true;
                    } else {
                        said.nominates = true;
                    }
                }
            }
            _ => {}
        }
    }
    if said.chunked && said.length.is_some() {
        return Err(Refusal::bad("content-length beside transfer-encoding"));
    }
    Ok(said)
}

/// Digits only: no sign, no list, no space, no overflow.
pub(crate) fn length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

/// Whether `Connection` names this header. What decides about framing, routing or the upstream's view of the client
/// cannot be taken out that way.
pub(crate) fn nominated(lines: &Lines, head: &[u8], name: &[u8]) -> bool {
    lines
        .iter(head)
        .filter(|(known, ..)| *known == Known::Connection)
        .any(|(_, _, value)| value.split(|b| *b == b',').any(|token| token.trim_ascii().eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits() {
        for (text, want) in [("0", Some(0)), ("42", Some(42)), ("9223372036854775807", Some(i64::MAX as u64))] {
            assert_eq!(length(text.as_bytes()), want);
        }
        for text in ["", "+1", "-1", " 1", "1 ", "1,1", "0x10", "1e3", "99999999999999999999"] {
            assert_eq!(length(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn bare_line_feeds_are_found() {
        assert!(no_bare_lf(b"GET / HTTP/1.1\r\na: b\r\n\r\n"));
        assert!(!no_bare_lf(b"GET / HTTP/1.1\na: b\r\n\r\n"));
        assert!(!no_bare_lf(b"\nGET"));
    }
}
