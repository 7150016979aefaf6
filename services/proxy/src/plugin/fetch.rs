//! `http-fetch`: what a plugin may get from elsewhere.
//!
//! It runs on a thread that may wait. At every hop of a redirection the policy is asked again, and so is the address
//! that the name resolved to: the connection is made to exactly the address that was looked at, and addresses that are
//! not of the public network are only for policies that name them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use shipote_plugin_abi::host::{HttpFetchRequest, HttpFetchResponse, NetError};
use shipote_plugin_abi::policy::HttpPolicy;

use crate::http1::Framing;
use crate::http1::chunked::{Chunks, Step};
use crate::http1::response::ResponseHead;
use crate::upstream::trusting_the_system;

/// Bytes of the head of an answer.
const HEAD: usize = 64 << 10;
/// Most redirections, whatever a call asks for.
const REDIRECTS: u32 = 20;

/// Why a call is malformed, which is the plugin's fault and stops it.
#[derive(Debug, thiserror::Error)]
#[error("http-fetch: {0}")]
pub(super) struct Malformed(&'static str);

/// Does what is asked, as far as the policy allows it, and waits for it no longer than `most`.
pub(super) fn fetch(
    policy: &HttpPolicy,
    request: &HttpFetchRequest,
    most: Duration,
) -> Result<Result<HttpFetchResponse, NetError>, Malformed> {
    let uri: Uri = request.url.parse().map_err(|_| Malformed("the URL is none"))?;
    if uri.scheme().is_none() || uri.host().is_none() {
        return Err(Malformed("the URL is not whole"));
    }
    if http::Method::from_bytes(request.method.as_bytes()).is_err() {
        return Err(Malformed("the method is none"));
    }
    for (name, value) in &request.headers {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() || http::HeaderValue::from_str(value).is_err() {
            return Err(Malformed("a header is none"));
        }
    }
    let verify = request.verify_tls.unwrap_or(true);
    if !verify && !policy.allow_insecure {
        return Ok(Err(NetError::InsecureRejected));
    }
    if request.body.len() > policy.max_body_size as usize {
        return Ok(Err(NetError::BodyTooLarge));
    }
    let time = request.timeout_ms.unwrap_or(policy.default_timeout_ms).max(1);
    let mut hop = Hop {
        policy,
        request,
        verify,
        until: Instant::now() + Duration::from_millis(time.into()).min(most),
        method: request.method.clone(),
        with_body: true,
        same_origin: true,
    };
    let redirects = request.follow_redirects.unwrap_or(policy.default_follow_redirects).min(REDIRECTS);
    Ok(hop.all(uri, redirects))
}

struct Hop<'a> {
    policy: &'a HttpPolicy,
    request: &'a HttpFetchRequest,
    verify: bool,
    until: Instant,
    method: String,
    with_body: bool,
    /// Credentials go no further than where they were meant to go.
    same_origin: bool,
}

impl Hop<'_> {
    fn all(&mut self, mut uri: Uri, redirects: u32) -> Result<HttpFetchResponse, NetError> {
        for left in (0..=redirects).rev() {
            let answer = self.one(&uri)?;
            let location = answer.headers.iter().find(|(name, _)| name == "location").map(|(_, value)| value.clone());
            let (Some(location), 301..=303 | 307 | 308, true) = (location, answer.status, left > 0) else {
                return Ok(answer);
            };
            let next = resolve(&uri, &location).ok_or_else(|| internal("the redirection leads nowhere"))?;
            if answer.status == 303 || (answer.status <= 302 && self.method == "POST") {
                self.method = "GET".to_owned();
                self.with_body = false;
            }
            self.same_origin &= next.authority() == uri.authority() && next.scheme() == uri.scheme();
            uri = next;
        }
        Err(internal("too many redirections"))
    }

    fn left(&self) -> Result<Duration, NetError> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(NetError::Timeout) } else { Ok(left) }
    }

    fn one(&self, uri: &Uri) -> Result<HttpFetchResponse, NetError> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if !self.policy.allows_host(host) {
            return Err(NetError::NotAllowed(format!("{host} is not among the allowed hosts")));
        }
        let secure = uri.scheme() == Some(&Scheme::HTTPS);
        if !secure && uri.scheme() != Some(&Scheme::HTTP) {
            return Err(NetError::NotAllowed("only http and https can be fetched".to_owned()));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = self.address(host, port)?;
        let stream = TcpStream::connect_timeout(&address, self.left()?).map_err(|e| failed(&e))?;
        let stream = Timed { stream, until: self.until };
        if !secure {
            return self.exchange(stream, uri);
        }
        let mut config = trusting_the_system(self.verify).map_err(|e| internal(&e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned()).map_err(|e| NetError::TlsError(e.to_string()))?;
        let connection =
            ClientConnection::new(Arc::new(config), name).map_err(|e| NetError::TlsError(e.to_string()))?;
        self.exchange(StreamOwned::new(connection, stream), uri)
    }

    /// The address to connect to: looked at, and then used as it is.
    fn address(&self, host: &str, port: u16) -> Result<SocketAddr, NetError> {
        let mut found = (host, port).to_socket_addrs().map_err(|e| NetError::DnsFailure(e.to_string()))?;
        let mut refused = None;
        let own = |ip: IpAddr| shipote_egress::is_own(ip).then_some("it is this host's own");
        let why = |ip: IpAddr| shipote_egress::private(ip).or_else(|| own(ip));
        let named = |ip: IpAddr| self.policy.allowed_hosts.iter().any(|h| h.parse() == Ok(ip.to_canonical()));
        let good = found.find(|address| match why(address.ip()) {
            Some(why) if !named(address.ip()) => {
                refused = Some(format!("{host} is at {}: {why}; name that address in allowed_hosts", address.ip()));
                false
            }
            _ => true,
        });
        good.ok_or_else(|| refused.map_or_else(|| NetError::DnsFailure("no address".into()), NetError::NotAllowed))
    }

    fn exchange(&self, mut stream: impl Read + Write, uri: &Uri) -> Result<HttpFetchResponse, NetError> {
        let body: &[u8] = if self.with_body { &self.request.body } else { &[] };
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        let authority = authority.rsplit('@').next().unwrap_or_default();
        let mut text = format!("{} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n", self.method);
        for (name, value) in &self.request.headers {
            let name = name.to_ascii_lowercase();
            let framing = matches!(
                name.as_str(),
                "host" | "connection" | "content-length" | "transfer-encoding" | "upgrade" | "te" | "expect"
            );
            let secret = matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization");
            if !framing && (self.same_origin || !secret) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        if !body.is_empty() || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body)).map_err(|e| failed(&e))?;
        stream.flush().map_err(|e| failed(&e))?;
        self.answer(&mut stream)
    }

    fn answer(&self, stream: &mut impl Read) -> Result<HttpFetchResponse, NetError> {
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        let mut more = |bytes: &mut Vec<u8>| -> Result<usize, NetError> {
            let n = match stream.read(&mut piece) {
                // Many servers end without TLS's own farewell; a body with a length shows whether it is whole.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => 0,
                other => other.map_err(|e| failed(&e))?,
            };
            bytes.extend_from_slice(&piece[..n]);
            Ok(n)
        };
        let mut head = ResponseHead::default();
        let wrong = |e: crate::http1::Refusal| internal(e.reason);
        loop {
            if head.parse(&bytes, self.method == "HEAD").map_err(wrong)? {
                if head.status >= 200 {
                    break;
                }
                bytes.drain(..head.lines.length);
                continue;
            }
            if bytes.len() > HEAD || more(&mut bytes)? == 0 {
                return Err(internal("the answer has no end of its head"));
            }
        }
        let header = |(_, name, value): (_, &[u8], &[u8])| {
            (String::from_utf8_lossy(name).to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned())
        };
        let headers: Vec<(String, String)> = head.lines.iter(&bytes).map(header).collect();
        bytes.drain(..head.lines.length);
        let most = self.policy.max_body_size as usize;
        let mut body = Vec::new();
        match head.framing.unwrap_or(Framing::Empty) {
            Framing::Empty => {}
            Framing::Length(n) if n > most as u64 => return Err(NetError::BodyTooLarge),
            Framing::Length(n) => {
                while (bytes.len() as u64) < n {
                    if more(&mut bytes)? == 0 {
                        return Err(internal("the answer ended too early"));
                    }
                }
                bytes.truncate(usize::try_from(n).unwrap_or(usize::MAX));
                body = bytes;
            }
            Framing::UntilClose => {
                while more(&mut bytes)? > 0 {
                    if bytes.len() > most {
                        return Err(NetError::BodyTooLarge);
                    }
                }
                body = bytes;
            }
            Framing::Chunked => {
                let mut chunks = Chunks::new();
                loop {
                    let mut at = 0;
                    while at < bytes.len() {
                        match chunks.step(&bytes[at..]).map_err(wrong)? {
                            Step::Skip(n) => at += n,
                            Step::Data(n) => {
                                body.extend_from_slice(&bytes[at..at + n]);
                                at += n;
                            }
                            Step::End(_) => return Ok(HttpFetchResponse { status: head.status, headers, body }),
                        }
                        if body.len() > most {
                            return Err(NetError::BodyTooLarge);
                        }
                    }
                    bytes.clear();
                    if more(&mut bytes)? == 0 {
                        return Err(internal("the answer ended too early"));
                    }
                }
            }
        }
        if body.len() > most {
            return Err(NetError::BodyTooLarge);
        }
        Ok(HttpFetchResponse { status: head.status, headers, body })
    }
}

/// A stream whose every read and write ends with the time of the whole fetch.
struct Timed {
    stream: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn internal(text: &str) -> NetError {
    NetError::Internal(text.to_owned())
}

fn failed(error: &io::Error) -> NetError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => NetError::ConnectionRefused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => NetError::Timeout,
        // What rustls finds wrong comes as this.
        io::ErrorKind::InvalidData => NetError::TlsError(error.to_string()),
        _ => NetError::Internal(error.to_string()),
    }
}

/// Where a redirection leads: a whole address, or a path on the same host.
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let target: Uri = location.parse().ok()?;
    if target.host().is_some() && target.scheme().is_some() {
        return Some(target);
    }
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{}://{rest}", from.scheme_str()?).parse().ok();
    }
    let base = format!("{}://{}", from.scheme_str()?, from.authority()?);
    let path = if location.starts_with('/') {
        location.to_owned()
    } else if location.starts_with('?') {
        format!("{}{location}", from.path())
    } else {
        let dir = from.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{dir}/{location}")
    };
    format!("{base}{path}").parse().ok()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "threads of a test may wait")]
mod tests {
    use super::fetch as fetch_within;
    use super::*;

    fn fetch(
        policy: &HttpPolicy,
        request: &HttpFetchRequest,
    ) -> Result<Result<HttpFetchResponse, NetError>, Malformed> {
        fetch_within(policy, request, Duration::from_secs(60))
    }
    use std::net::TcpListener;

    /// Answers each connection with the next of these; what was asked comes back.
    fn server(answers: Vec<String>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                asked.push(String::from_utf8(head).unwrap());
                let _ = stream.write_all(answer.as_bytes());
            }
            asked
        });
        (port, asked)
    }

    fn ask(url: &str) -> HttpFetchRequest {
        HttpFetchRequest {
            method: "GET".into(),
            url: url.into(),
            headers: vec![("Authorization".into(), "secret".into()), ("X-A".into(), "b".into())],
            body: Vec::new(),
            timeout_ms: Some(5000),
            follow_redirects: None,
            verify_tls: None,
        }
    }

    fn allowing(hosts: &[&str]) -> HttpPolicy {
        HttpPolicy { allowed_hosts: hosts.iter().map(|&h| h.to_owned()).collect(), ..HttpPolicy::default() }
    }

    #[test]
    fn what_is_allowed_comes_back_whole() {
        for raw in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-B: c\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-B: c\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nX-B: c\r\n\r\nhello",
        ] {
            let (port, asked) = server(vec![raw.to_owned()]);
            let url = format!("http://127.0.0.1:{port}/x?y");
            let answer = fetch(&allowing(&["127.0.0.1"]), &ask(&url)).unwrap().unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hello"[..]));
            assert!(answer.headers.contains(&("x-b".into(), "c".into())));
            let asked = asked.join().unwrap().remove(0);
            assert!(asked.starts_with("GET /x?y HTTP/1.1\r\n") && asked.contains("x-a: b\r\n"), "{asked}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_not_even_connected_to() {
        let not_allowed = |r: Result<HttpFetchResponse, NetError>| matches!(r, Err(NetError::NotAllowed(_)));
        assert!(not_allowed(fetch(&allowing(&[]), &ask("http://a.example/")).unwrap()));
        assert!(not_allowed(fetch(&allowing(&["*.b.example"]), &ask("http://b.example/")).unwrap()));
        // A name that is allowed and leads home.
        assert!(not_allowed(fetch(&allowing(&["*"]), &ask("http://localhost:1/")).unwrap()));
        assert!(not_allowed(fetch(&allowing(&["*"]), &ask("http://169.254.169.254/latest")).unwrap()));
        assert!(not_allowed(fetch(&allowing(&["*"]), &ask("http://[::ffff:127.0.0.1]:1/")).unwrap()));
        assert!(not_allowed(fetch(&allowing(&["*"]), &ask("ftp://1.1.1.1/")).unwrap()));
        let insecure = HttpFetchRequest { verify_tls: Some(false), ..ask("https://127.0.0.1/") };
        assert_eq!(fetch(&allowing(&["*"]), &insecure).unwrap(), Err(NetError::InsecureRejected));
        for (method, url, header) in [("G T", "http://a/", "a"), ("GET", "/a", "a"), ("GET", "http://a/", "a\r\nb")] {
            let headers = vec![("x".to_owned(), header.to_owned())];
            let request = HttpFetchRequest { method: method.into(), headers, ..ask(url) };
            assert!(fetch(&allowing(&["*"]), &request).is_err(), "{method} {url}");
        }
    }

    #[test]
    fn every_hop_is_asked_about_and_secrets_stay() {
        let (second, asked_second) = server(vec!["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()]);
        let to = |where_to: String| format!("HTTP/1.1 302 Found\r\nLocation: {where_to}\r\nContent-Length: 0\r\n\r\n");
        let (first, asked) = server(vec![
            to("/there".into()),
            to(format!("http://127.0.0.1:{second}/other")),
            to("http://169.254.169.254/".into()),
            to("http://other.example/".into()),
        ]);
        let policy = allowing(&["127.0.0.1"]);
        let url = format!("http://127.0.0.1:{first}/here");
        assert_eq!(fetch(&policy, &ask(&url)).unwrap().unwrap().body, b"ok");
        for _ in 0..2 {
            assert!(matches!(fetch(&policy, &ask(&url)).unwrap(), Err(NetError::NotAllowed(_))));
        }
        let asked = asked.join().unwrap();
        assert!(asked[1].starts_with("GET /there ") && asked[1].contains("authorization"), "{asked:?}");
        assert!(!asked_second.join().unwrap()[0].contains("authorization"));
    }

    #[test]
    fn sizes_and_times_are_bounded() {
        let raw = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789".to_owned();
        let (port, _asked) = server(vec![raw]);
        let small = HttpPolicy { max_body_size: 8, ..allowing(&["127.0.0.1"]) };
        let url = format!("http://127.0.0.1:{port}/");
        assert_eq!(fetch(&small, &ask(&url)).unwrap(), Err(NetError::BodyTooLarge));
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let quick = HttpFetchRequest { timeout_ms: Some(50), ..ask(&url) };
        assert_eq!(fetch(&allowing(&["127.0.0.1"]), &quick).unwrap(), Err(NetError::Timeout));
    }
}
