//! Writing heads. Framing and connection headers are the proxy's own; the rest is passed on byte by byte.

use std::io::Write as _;

use shipote_rules::HeaderEdit;

use super::Framing;
use super::head::{Known, nominated};
use super::request::RequestHead;
use super::response::ResponseHead;
use crate::http::reply::Reply;
use crate::walk::{Edits, Peer};

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn touched(edits: &[&HeaderEdit], name: &[u8]) -> bool {
    edits.iter().any(|e| {
        e.remove.iter().any(|n| n.as_bytes().eq_ignore_ascii_case(name))
            || e.set.iter().any(|(n, _)| n.as_bytes().eq_ignore_ascii_case(name))
    })
}

fn additions(out: &mut Vec<u8>, edits: &[&HeaderEdit]) {
    for edit in edits {
        for (name, value) in edit.set.iter().chain(&edit.add) {
            line(out, name.as_bytes(), value.as_bytes());
        }
    }
}

/// A number in decimal, without the cost of formatting.
fn decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// The head of a request as the upstream gets it.
pub(crate) fn request(
    out: &mut Vec<u8>,
    head: &RequestHead,
    bytes: &[u8],
    edits: &Edits<'_>,
    peer: &Peer,
    host: Option<&str>,
    websocket: bool,
) {
    let all: Vec<&HeaderEdit> = edits.headers.iter().copied().chain(&edits.given).collect();
    out.extend_from_slice(head.method(bytes));
    out.push(b' ');
    path(out, head.path(bytes), edits.rewrite);
    if let Some(query) = head.query(bytes) {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if !touched(&all, b"host") {
        line(out, b"Host", host.map_or_else(|| head.host(bytes).unwrap_or_default(), str::as_bytes));
    }
    for (known, name, value) in head.lines.iter(bytes) {
        match known {
            Known::Host
            | Known::ContentLength
            | Known::TransferEncoding
            | Known::Connection
            | Known::HopByHop
            | Known::Upgrade
            | Known::Expect => {}
            Known::RealIp if edits.real_ip => {}
            Known::ForwardedFor if edits.forwarded_for => {}
            // CGI and its heirs read `X_A` and `X-A` as one name, so somebody could slip a header past the rules.
            _ if memchr::memchr(b'_', name).is_some() => {}
            _ if head.facts.nominates && nominated(&head.lines, bytes, name) => {}
            _ if touched(&all, name) => {}
            _ => line(out, name, value),
        }
    }
    if edits.forwarded_for {
        out.extend_from_slice(b"X-Forwarded-For: ");
        for value in head.lines.iter(bytes).filter(|(k, ..)| *k == Known::ForwardedFor).map(|(_, _, v)| v) {
            out.extend_from_slice(value);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(peer.remote_text.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if edits.real_ip {
        line(out, b"X-Real-IP", peer.remote_text.as_bytes());
    }
    additions(out, &all);
    match head.facts.framing {
        Framing::Length(n) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal(out, n);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::Empty if !matches!(head.method(bytes), b"GET" | b"HEAD" | b"OPTIONS" | b"DELETE") => {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Framing::Empty | Framing::UntilClose => {}
    }
    if websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

fn path(out: &mut Vec<u8>, path: &[u8], rewrite: Option<(&str, &str)>) {
    let Some((strip, add)) = rewrite else { return out.extend_from_slice(path) };
    let Some(rest) = path.strip_prefix(strip.as_bytes()) else { return out.extend_from_slice(path) };
    let add = add.as_bytes();
    let add = if rest.first() == Some(&b'/') { add.strip_suffix(b"/").unwrap_or(add) } else { add };
    out.extend_from_slice(add);
    if rest.first() != Some(&b'/') && add.last() != Some(&b'/') {
        out.push(b'/');
    }
    out.extend_from_slice(rest);
}

/// How a response's body goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) framing: Framing,
    /// The connection stays open afterwards.
    pub(crate) keep_alive: bool,
    /// The client speaks HTTP/1.1, else 1.0.
    pub(crate) one_one: bool,
    /// The response switches to WebSocket.
    pub(crate) websocket: bool,
}

/// The head of an upstream's response as the client gets it.
pub(crate) fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    bytes: &[u8],
    edits: &[&HeaderEdit],
    outgoing: Outgoing,
) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, head.status.into());
    out.push(b' ');
    out.extend_from_slice(head.reason(bytes));
    out.extend_from_slice(b"\r\n");
    for (known, name, value) in head.lines.iter(bytes) {
        match known {
            Known::ContentLength | Known::TransferEncoding | Known::Connection | Known::HopByHop | Known::Upgrade => {}
            _ if head.nominates && nominated(&head.lines, bytes, name) => {}
            _ if touched(edits, name) => {}
            _ => line(out, name, value),
        }
    }
    additions(out, edits);
    let length = match outgoing.framing {
        Framing::Length(n) => Some(n),
        // An answer to HEAD and a 304 say how long the body would be.
        Framing::Empty if matches!(head.status, 100..=199 | 204) => None,
        Framing::Empty => head.length,
        Framing::Chunked | Framing::UntilClose => None,
    };
    finish(out, length, outgoing);
}

/// The same for an answer whose headers may have been changed on the way.
pub(crate) fn reply(out: &mut Vec<u8>, reply: &Reply, outgoing: Outgoing) {
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(out, reply.status.into());
    out.push(b' ');
    out.extend_from_slice(reason(reply.status).as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &reply.headers {
        line(out, name.as_str().as_bytes(), value.as_bytes());
    }
    let length = match outgoing.framing {
        Framing::Length(n) => Some(n),
        Framing::Empty if matches!(reply.status, 100..=199 | 204) => None,
        Framing::Empty => reply.length,
        Framing::Chunked | Framing::UntilClose => None,
    };
    finish(out, length, outgoing);
}

fn finish(out: &mut Vec<u8>, length: Option<u64>, outgoing: Outgoing) {
    if let Some(length) = length {
        out.extend_from_slice(b"Content-Length: ");
        decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    if outgoing.framing == Framing::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if outgoing.websocket {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else if !outgoing.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if !outgoing.one_one {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// A whole answer of the proxy's own; the body is left out where the request was HEAD.
pub(crate) fn own(
    out: &mut Vec<u8>,
    status: u16,
    headers: &[(String, String)],
    body: &[u8],
    edits: &[&HeaderEdit],
    outgoing: Outgoing,
    is_head: bool,
) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        if !touched(edits, name.as_bytes()) {
            line(out, name.as_bytes(), value.as_bytes());
        }
    }
    additions(out, edits);
    let length = (!matches!(status, 204 | 304)).then_some(body.len() as u64);
    finish(out, length, Outgoing { framing: Framing::Empty, ..outgoing });
    if !is_head && length.is_some() {
        out.extend_from_slice(body);
    }
}

/// The usual phrase of a status.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer::for_tests("10.0.0.9:5".parse().unwrap(), "10.0.0.1:80".parse().unwrap())
    }

    fn composed(text: &str, edits: &Edits<'_>) -> String {
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text.as_bytes()), Ok(true));
        let mut out = Vec::new();
        request(&mut out, &head, text.as_bytes(), edits, &peer(), None, false);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_concerns_one_connection_stays_behind() {
        let text = "GET http://a/x?y HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\n\
                    Keep-Alive: 5\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nX_A: 1\r\nX-Other: 2\r\n\r\n";
        assert_eq!(composed(text, &Edits::default()), "GET /x?y HTTP/1.1\r\nHost: a\r\nX-Other: 2\r\n\r\n");
    }

    #[test]
    fn the_client_is_appended_to_who_forwarded_before() {
        let edits = Edits { forwarded_for: true, real_ip: true, ..Edits::default() };
        let text = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Real-IP: 6.6.6.6\r\nx-forwarded-for: 2.2.2.2\r\n\r\n";
        assert_eq!(
            composed(text, &edits),
            "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1, 2.2.2.2, 10.0.0.9\r\nX-Real-IP: 10.0.0.9\r\n\r\n"
        );
    }

    #[test]
    fn headers_are_removed_set_and_added() {
        let edit = HeaderEdit {
            remove: vec!["cookie".into()],
            set: vec![("x-a".into(), "new".into())],
            add: vec![("x-b".into(), "2".into())],
        };
        let edits = Edits { headers: vec![&edit], ..Edits::default() };
        let text = "POST / HTTP/1.1\r\nHost: a\r\nCookie: c\r\nX-A: old\r\nX-B: 1\r\n\r\n";
        assert_eq!(
            composed(text, &edits),
            "POST / HTTP/1.1\r\nHost: a\r\nX-B: 1\r\nx-a: new\r\nx-b: 2\r\nContent-Length: 0\r\n\r\n"
        );
    }

    #[test]
    fn paths_are_rewritten_to_paths() {
        for (from, strip, add, want) in [
            ("/api/x", "/api", "", "/x"),
            ("/api", "/api", "", "/"),
            ("/api/x", "/api/", "/v1", "/v1/x"),
            ("/api/x", "/api", "/v1/", "/v1/x"),
            ("/other", "/api", "/v1", "/other"),
            ("/x", "", "/v1", "/v1/x"),
        ] {
            let mut out = Vec::new();
            path(&mut out, from.as_bytes(), Some((strip, add)));
            assert_eq!(String::from_utf8(out).unwrap(), want, "{from} {strip} {add}");
        }
    }
}
