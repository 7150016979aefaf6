//! A request's head.

use std::ops::Range;

use super::head::{Known, MAX_LINES, no_bare_lf, range_in, read_framing};
use super::{Framing, Lines, Refusal};

/// A request's head, as offsets into the buffer that holds it.
#[derive(Debug, Default)]
pub(crate) struct RequestHead {
    pub(crate) lines: Lines,
    method: Range<usize>,
    /// Path and query, or `*`.
    path: Range<usize>,
    query: Option<Range<usize>>,
    host: Option<Range<usize>>,
    pub(crate) facts: Facts,
}

/// What the head says, apart from its text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    /// HTTP/1.1, else 1.0.
    pub(crate) one_one: bool,
    pub(crate) framing: Framing,
    /// The client may send another request on this connection.
    pub(crate) keep_alive: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// The client asks for WebSocket.
    pub(crate) websocket: bool,
    /// `Connection` names other headers.
    pub(crate) nominates: bool,
    /// The method is HEAD: the response has no body.
    pub(crate) is_head: bool,
    /// Repeating the request does no harm (RFC 9110, section 9.2.2).
    pub(crate) idempotent: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            one_one: true,
            framing: Framing::Empty,
            keep_alive: false,
            expects_continue: false,
            websocket: false,
            nominates: false,
            is_head: false,
            idempotent: false,
        }
    }
}

impl RequestHead {
    /// Parses the head at the beginning of `bytes`. `Ok(false)`: there is not all of it yet.
    pub(crate) fn parse(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        let mut slots = [httparse::EMPTY_HEADER; MAX_LINES];
        let mut request = httparse::Request::new(&mut slots);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(false),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(Refusal { status: 431, reason: "too many header lines" });
            }
            Err(httparse::Error::Version) => {
                return Err(Refusal { status: 505, reason: "a version other than 1.1 and 1.0" });
            }
            Err(_) => return Err(Refusal::bad("not a request")),
        };
        let head = &bytes[..length];
        if !no_bare_lf(head) {
            return Err(Refusal::bad("a bare line feed"));
        }
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        let one_one = request.version == Some(1);
        self.lines.take(bytes, length, request.headers);
        self.method = range_in(bytes, method.as_bytes());
        let authority = self.take_target(head, method, target)?;
        self.take_host(head, authority, one_one)?;
        self.facts = self.read_facts(head, method, one_one)?;
        Ok(true)
    }

    /// The target in one of its forms (RFC 9112, section 3.2); the authority of the absolute form.
    fn take_target<'t>(&mut self, head: &[u8], method: &str, target: &'t str) -> Result<Option<&'t str>, Refusal> {
        if method == "CONNECT" || method == "TRACE" {
            return Err(Refusal { status: 405, reason: "a method that a reverse proxy does not serve" });
        }
        if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(Refusal::bad("the target holds what a target cannot hold"));
        }
        let (authority, rest) = if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
            (None, target)
        } else {
            let after = ["http://", "https://"]
                .iter()
                .find(|s| target.get(..s.len()).is_some_and(|t| t.eq_ignore_ascii_case(s)))
                .map(|s| &target[s.len()..])
                .ok_or(Refusal::bad("the target is neither a path nor a whole address"))?;
            let end = after.find(['/', '?']).unwrap_or(after.len());
            if end == after.len() || after.as_bytes()[end] == b'?' {
                return Err(Refusal::bad("a whole address without a path"));
            }
            (Some(&after[..end]), &after[end..])
        };
        let rest = range_in(head, rest.as_bytes());
        match memchr::memchr(b'?', &head[rest.clone()]) {
            Some(at) => {
                self.path = rest.start..rest.start + at;
                self.query = Some(rest.start + at + 1..rest.end);
            }
            None => (self.path, self.query) = (rest, None),
        }
        Ok(authority)
    }

    fn take_host(&mut self, head: &[u8], authority: Option<&str>, one_one: bool) -> Result<(), Refusal> {
        let mut hosts = self.lines.iter(head).filter(|(known, ..)| *known == Known::Host).map(|(_, _, value)| value);
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Refusal::bad("more than one host"));
        }
        self.host = match (host, authority) {
            (None, _) if one_one => return Err(Refusal::bad("no host")),
            (None, None) => None,
            (None, Some(authority)) => Some(range_in(head, authority.as_bytes())),
            (Some(host), authority) => {
                if authority.is_some_and(|a| !a.as_bytes().eq_ignore_ascii_case(host)) {
                    return Err(Refusal::bad("the host contradicts the target"));
                }
                Some(range_in(head, host))
            }
        };
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(b);
        match &self.host {
            Some(host) if host.is_empty() || !head[host.clone()].iter().all(allowed) => {
                Err(Refusal::bad("the host holds what a host cannot hold"))
            }
            _ => Ok(()),
        }
    }

    fn read_facts(&self, head: &[u8], method: &str, one_one: bool) -> Result<Facts, Refusal> {
        let said = read_framing(&self.lines, head)?;
        if said.chunked && !one_one {
            return Err(Refusal::bad("transfer-encoding in HTTP/1.0"));
        }
        let mut facts = Facts {
            one_one,
            framing: match (said.chunked, said.length) {
                (true, _) => Framing::Chunked,
                (false, None | Some(0)) => Framing::Empty,
                (false, Some(length)) => Framing::Length(length),
            },
            keep_alive: if one_one { !said.close } else { said.keep_alive && !said.close },
            nominates: said.nominates,
            is_head: method == "HEAD",
            idempotent: matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE"),
            ..Facts::default()
        };
        for (known, _, value) in self.lines.iter(head) {
            match known {
                Known::Expect if !value.eq_ignore_ascii_case(b"100-continue") => {
                    return Err(Refusal { status: 417, reason: "an expectation other than 100-continue" });
                }
                Known::Expect => facts.expects_continue = one_one && facts.framing != Framing::Empty,
                Known::Upgrade => {
                    facts.websocket |= said.upgrade && one_one && value.eq_ignore_ascii_case(b"websocket");
                }
                _ => {}
            }
        }
        // A body before the switch of protocols would be read by one side and not by the other.
        facts.websocket &= method == "GET" && facts.framing == Framing::Empty;
        Ok(facts)
    }

    /// The same place by HTTPS.
    pub(crate) fn location(&self, bytes: &[u8], port: Option<u16>) -> Option<String> {
        let host = std::str::from_utf8(self.host(bytes)?).ok()?;
        let bare = match host.rfind(']') {
            Some(end) => &host[..=end],
            None => host.split(':').next().unwrap_or(host),
        };
        let path = std::str::from_utf8(self.path(bytes)).ok()?;
        let query = self.query(bytes).and_then(|q| std::str::from_utf8(q).ok());
        let port = port.map(|p| format!(":{p}")).unwrap_or_default();
        let path = if path == "*" { "/" } else { path };
        Some(format!("https://{bare}{port}{path}{}{}", if query.is_some() { "?" } else { "" }, query.unwrap_or("")))
    }

    pub(crate) fn method<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.method.clone()]
    }

    pub(crate) fn path<'h>(&self, head: &'h [u8]) -> &'h [u8] {
        &head[self.path.clone()]
    }

    pub(crate) fn query<'h>(&self, head: &'h [u8]) -> Option<&'h [u8]> {
        self.query.clone().map(|q| &head[q])
    }

    pub(crate) fn host<'h>(&self, head: &'h [u8]) -> Option<&'h [u8]> {
        self.host.clone().map(|h| &head[h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RequestHead, Refusal> {
        let mut head = RequestHead::default();
        assert!(head.parse(text.as_bytes())?, "{text:?} is not whole");
        Ok(head)
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let table: [(&str, u16); 31] = [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: \r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
            ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
            ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: magic\r\n\r\n", 417),
        ];
        for (text, status) in table {
            assert_eq!(parse(text).map(|_| ()).unwrap_err().status, status, "{text:?}");
        }
    }

    #[test]
    fn plain_requests_are_read() {
        let text = "POST /a?b=c HTTP/1.1\r\nHost: x.example:80\r\nContent-Length: 5\r\n\r\n";
        let head = parse(text).unwrap();
        let bytes = text.as_bytes();
        assert_eq!(head.method(bytes), b"POST");
        assert_eq!(head.path(bytes), b"/a");
        assert_eq!(head.query(bytes), Some(&b"b=c"[..]));
        assert_eq!(head.host(bytes), Some(&b"x.example:80"[..]));
        assert_eq!(head.facts.framing, Framing::Length(5));
        assert!(head.facts.keep_alive);
        let absolute = "GET http://A/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let head = parse(absolute).unwrap();
        assert_eq!(head.path(absolute.as_bytes()), b"/x");
        assert!(!head.facts.keep_alive);
    }

    #[test]
    fn a_head_in_pieces_is_not_whole_until_its_last_byte() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for n in 0..text.len() {
            assert_eq!(RequestHead::default().parse(&text[..n]), Ok(false), "{n}");
        }
        assert_eq!(RequestHead::default().parse(text), Ok(true));
    }

    #[test]
    fn an_upgrade_needs_connection_and_no_body() {
        let upgrade = |extra: &str| {
            parse(&format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n{extra}\r\n")).unwrap().facts.websocket
        };
        assert!(upgrade("Connection: keep-alive, Upgrade\r\n"));
        assert!(!upgrade(""));
        assert!(!upgrade("Connection: Upgrade\r\nContent-Length: 3\r\n"));
    }
}
