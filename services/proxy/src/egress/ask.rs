//! What a client asks for by HTTP: the beginning of a connection.

use shipote_rules::HeaderEdit;

use crate::http1::head::no_bare_lf;
use crate::http1::request::RequestHead;
use crate::http1::{Refusal, compose};
use crate::walk::{Edits, Peer};

/// Where a connection is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) host: String,
    pub(super) port: u16,
    /// What the flow log calls it.
    pub(super) method: &'static str,
    pub(super) how: How,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum How {
    Connect,
    /// This goes first, in place of the head that the client sent.
    Whole(Vec<u8>),
    Socks,
}

/// Reads the head of an HTTP request; `None`: there is not all of it yet. The second is the head's length.
pub(super) fn http(bytes: &[u8]) -> Result<Option<(Wanted, usize)>, Refusal> {
    if bytes.starts_with(b"CONNECT ") {
        return connect(bytes);
    }
    let mut head = RequestHead::default();
    if !head.parse(bytes)? {
        return Ok(None);
    }
    let target = bytes[head.method(bytes).len()..].trim_ascii_start();
    if target.get(..8).is_some_and(|t| t.eq_ignore_ascii_case(b"https://")) {
        return Err(Refusal::bad("https goes through a proxy by CONNECT"));
    }
    if !target.get(..7).is_some_and(|t| t.eq_ignore_ascii_case(b"http://")) {
        return Err(Refusal::bad("this is a proxy: ask for a whole address, or use CONNECT"));
    }
    let authority = head.host(bytes).and_then(|h| std::str::from_utf8(h).ok()).ok_or(Refusal::bad("no host"))?;
    let (host, port) = host_port(authority, Some(80)).ok_or(Refusal::bad("the host is none"))?;
    let own = HeaderEdit { remove: vec!["proxy-authorization".to_owned()], ..HeaderEdit::default() };
    let edits = Edits { headers: vec![&own], ..Edits::default() };
    let mut text = Vec::with_capacity(head.lines.length + 64);
    compose::request(&mut text, &head, bytes, &edits, &nobody(), None, false);
    // One request a connection: the next one may be for another host.
    text.truncate(text.len() - 2);
    text.extend_from_slice(b"Connection: close\r\n\r\n");
    let length = head.lines.length;
    Ok(Some((Wanted { host, port, method: "HTTP", how: How::Whole(text) }, length)))
}

fn connect(bytes: &[u8]) -> Result<Option<(Wanted, usize)>, Refusal> {
    let mut slots = [httparse::EMPTY_HEADER; crate::http1::head::MAX_LINES];
    let mut request = httparse::Request::new(&mut slots);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal { status: 431, reason: "too many header lines" }),
        Err(_) => return Err(Refusal::bad("not a request")),
    };
    let framed = |h: &httparse::Header<'_>| {
        h.name.eq_ignore_ascii_case("transfer-encoding")
            || (h.name.eq_ignore_ascii_case("content-length") && h.value != b"0")
    };
    if !no_bare_lf(&bytes[..length]) || request.headers.iter().any(framed) {
        return Err(Refusal::bad("a CONNECT with a body or a bare line feed"));
    }
    let (host, port) =
        host_port(request.path.unwrap_or_default(), None).ok_or(Refusal::bad("CONNECT needs host:port"))?;
    Ok(Some((Wanted { host, port, method: "CONNECT", how: How::Connect }, length)))
}

/// A host without brackets, and a port.
fn host_port(authority: &str, default: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, after.strip_prefix(':'))
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => default?,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    (!host.is_empty() && host.len() <= 255 && host.bytes().all(plain) && port != 0).then(|| (host.to_owned(), port))
}

/// Nobody is told who the client is.
fn nobody() -> Peer {
    let any = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    Peer {
        id: 0,
        transport: shipote_rules::Transport::Tcp,
        remote: any,
        remote_text: String::new(),
        local: any,
        listener: any,
        peeked: Box::default(),
        sni: None,
        tls: None,
        accepted_unix_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_of_http() {
        let text = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nrest";
        let (wanted, length) = http(text).unwrap().unwrap();
        assert_eq!(
            (wanted.host.as_str(), wanted.port, wanted.how, length),
            ("a.example", 443, How::Connect, text.len() - 4)
        );
        let text = b"CONNECT [2001:db8::1]:22 HTTP/1.0\r\n\r\n";
        assert_eq!(http(text).unwrap().unwrap().0.host, "2001:db8::1");
        let text = b"GET http://a.example/x?y HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: z\r\nProxy-Connection: keep-alive\r\nX: 1\r\n\r\n";
        let (wanted, _) = http(text).unwrap().unwrap();
        assert_eq!((wanted.host.as_str(), wanted.port), ("a.example", 80));
        let want = b"GET /x?y HTTP/1.1\r\nHost: a.example\r\nX: 1\r\nConnection: close\r\n\r\n".to_vec();
        assert_eq!(wanted.how, How::Whole(want));
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "CONNECT a HTTP/1.1\r\n\r\n",
            "CONNECT a:0 HTTP/1.1\r\n\r\n",
            "CONNECT a@b:1 HTTP/1.1\r\n\r\n",
            "CONNECT /x HTTP/1.1\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\nX: y\n\n",
            "CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        ] {
            assert!(http(text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(http(b"CONNECT a:1 HTTP/1.1\r\n").unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = http(&bytes);
        }
    }
}
