//! A response's head from an upstream.

use super::head::{MAX_LINES, no_bare_lf, range_in, read_framing};
use super::{Framing, Lines, Refusal};

/// A response's head, as offsets into the buffer that holds it.
#[derive(Debug, Default)]
pub(crate) struct ResponseHead {
    pub(crate) lines: Lines,
    pub(crate) status: u16,
    reason: std::ops::Range<usize>,
    pub(crate) framing: Option<Framing>,
    /// The upstream may take another request on this connection.
    pub(crate) keep_alive: bool,
    pub(crate) nominates: bool,
    pub(crate) length: Option<u64>,
}

impl ResponseHead {
    /// Parses the head at the beginning of `bytes`. `Ok(false)`: there is not all of it yet.
    pub(crate) fn parse(&mut self, bytes: &[u8], to_head: bool) -> Result<bool, Refusal> {
        let bad = |reason| Refusal { status: 502, reason };
        let mut slots = [httparse::EMPTY_HEADER; MAX_LINES];
        let mut response = httparse::Response::new(&mut slots);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::TooManyHeaders) => return Err(bad("the upstream sent too many header lines")),
            Err(_) => return Err(bad("the upstream did not answer in HTTP/1.1")),
        };
        let head = &bytes[..length];
        if !no_bare_lf(head) {
            return Err(bad("the upstream sent a bare line feed"));
        }
        let one_one = response.version == Some(1);
        self.status = response.code.unwrap_or(0);
        if !(100..=999).contains(&self.status) {
            return Err(bad("the upstream sent no status"));
        }
        self.reason = response.reason.map_or(0..0, |r| range_in(bytes, r.as_bytes()));
        self.lines.take(bytes, length, response.headers);
        let said = read_framing(&self.lines, head).map_err(|r| bad(r.reason))?;
        self.length = said.length;
        self.nominates = said.nominates;
        let framing = if to_head || matches!(self.status, 100..=199 | 204 | 304) {
            Framing::Empty
        } else if said.chunked {
            if !one_one {
                return Err(bad("the upstream sent chunks in HTTP/1.0"));
            }
            Framing::Chunked
        } else {
            match said.length {
                Some(0) => Framing::Empty,
                Some(length) => Framing::Length(length),
                None => Framing::UntilClose,
            }
        };
        self.framing = Some(framing);
        self.keep_alive =
            framing != Framing::UntilClose && if one_one { !said.close } else { said.keep_alive && !said.close };
        Ok(true)
    }

    pub(crate) fn reason<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.reason.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(text: &str, to_head: bool) -> Result<Framing, u16> {
        let mut head = ResponseHead::default();
        assert!(head.parse(text.as_bytes(), to_head).map_err(|r| r.status)?);
        Ok(head.framing.unwrap())
    }

    #[test]
    fn where_a_body_ends() {
        for (text, to_head, want) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", false, Framing::Length(3)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", true, Framing::Empty),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, Framing::Empty),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", false, Framing::Empty),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, Framing::Chunked),
            ("HTTP/1.1 200 OK\r\n\r\n", false, Framing::UntilClose),
            ("HTTP/1.1 200 Gr\u{fc}n\r\nContent-Length: 3\r\n\r\n", false, Framing::Length(3)),
        ] {
            assert_eq!(framing(text, to_head), Ok(want), "{text:?}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 3\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert_eq!(framing(text, false), Err(502), "{text:?}");
        }
    }
}
