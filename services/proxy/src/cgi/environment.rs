//! The variables of a request (RFC 3875, section 4.1), and the few beside them that programs have come to expect.

use percent_encoding::percent_decode;
use shipote_rules::CgiSpec;

use crate::http1::Refusal;
use crate::http1::head::MAX_LINES;
use crate::walk::{Peer, canonical};

/// What is told besides the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) peer: &'a Peer,
    /// Path and query as the client asked for them.
    pub(super) target: &'a [u8],
    /// As `HTTP/1.1`.
    pub(super) protocol: &'static str,
    /// Bytes of the body.
    pub(super) length: u64,
}

/// Headers that a program does not get: those that have a variable of their own, those about the connection, the client's
/// secrets (RFC 3875, section 4.1.18), and `Proxy`, which would be taken for the program's own setting.
const KEPT_BACK: [&str; 7] = [
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "authorization",
    "proxy-authorization",
    "proxy",
];

const TEXT: Refusal = Refusal::bad("the program takes headers and paths in UTF-8 only");

/// The variables of the request whose head, as an upstream would get it, is `text`.
pub(super) fn variables(spec: &CgiSpec, text: &[u8], about: &About<'_>) -> Result<Vec<String>, Refusal> {
    let mut slots = vec![httparse::EMPTY_HEADER; 2 * MAX_LINES];
    let mut head = httparse::Request::new(&mut slots);
    if !matches!(head.parse(text), Ok(httparse::Status::Complete(_))) {
        return Err(Refusal { status: 500, reason: "the request cannot be told to a program" });
    }
    let path = head.path.unwrap_or("/");
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut env = Variables(Vec::with_capacity(32 + head.headers.len()));
    env.set("GATEWAY_INTERFACE", "CGI/1.1");
    env.set("SERVER_SOFTWARE", concat!("shipote/", env!("CARGO_PKG_VERSION")));
    env.set("SERVER_PROTOCOL", about.protocol);
    env.set("REQUEST_METHOD", head.method.unwrap_or_default());
    env.set("REQUEST_URI", std::str::from_utf8(about.target).map_err(|_| TEXT)?);
    env.set("QUERY_STRING", query);
    env.set("SCRIPT_NAME", &spec.script_name);
    env.set("SCRIPT_FILENAME", &spec.command[0]);
    env.set("PATH_INFO", &path_info(spec, path)?);
    let client = canonical(about.peer.remote.ip()).to_string();
    env.set("REMOTE_ADDR", &client);
    // The name is not looked up, and then it is the address (section 4.1.9).
    env.set("REMOTE_HOST", &client);
    env.set("REMOTE_PORT", &about.peer.remote.port().to_string());
    let here = canonical(about.peer.local.ip()).to_string();
    env.set("SERVER_ADDR", &here);
    env.set("SERVER_PORT", &about.peer.local.port().to_string());
    let scheme = if about.peer.tls.is_some() { "https" } else { "http" };
    env.set("REQUEST_SCHEME", scheme);
    if scheme == "https" {
        env.set("HTTPS", "on");
    }
    if about.length > 0 {
        env.set("CONTENT_LENGTH", &about.length.to_string());
    }
    let mut server = None;
    let mut given: Vec<(String, String)> = Vec::new();
    for header in head.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        let value = std::str::from_utf8(header.value).map_err(|_| TEXT)?;
        match name.as_str() {
            "host" => server = Some(without_port(value).to_owned()),
            "content-type" => env.set("CONTENT_TYPE", value),
            _ => {}
        }
        if KEPT_BACK.contains(&name.as_str()) || spec.block_headers.contains(&name) {
            continue;
        }
        match given.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => {
                all.push_str(if name == "cookie" { "; " } else { ", " });
                all.push_str(value);
            }
            None => given.push((name, value.to_owned())),
        }
    }
    env.set("SERVER_NAME", server.as_ref().filter(|name| !name.is_empty()).unwrap_or(&here));
    for (name, value) in &given {
        // Names that hold `_` were left out before, so that no two are the same here.
        env.set(&format!("HTTP_{}", name.to_ascii_uppercase().replace('-', "_")), value);
    }
    for (name, value) in &spec.env {
        env.set(name, value);
    }
    Ok(env.0)
}

struct Variables(Vec<String>);

impl Variables {
    fn set(&mut self, name: &str, value: &str) {
        self.0.push(format!("{name}={value}"));
    }
}

/// What follows the program's part of the path, decoded. Where decoding would blur the bounds of its segments, or end it
/// early, it is refused.
fn path_info(spec: &CgiSpec, path: &str) -> Result<String, Refusal> {
    const ELSEWHERE: Refusal = Refusal { status: 404, reason: "the path is not below the rule's script_name" };
    let rest = match path.strip_prefix(&spec.script_name) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => return Err(ELSEWHERE),
    };
    let lower = rest.to_ascii_lowercase();
    if lower.contains("%2f") || lower.contains("%00") {
        return Err(Refusal::bad("the path holds an encoded slash or NUL, which a program cannot be told"));
    }
    let decoded = percent_decode(rest.as_bytes()).decode_utf8().map_err(|_| TEXT)?;
    Ok(decoded.into_owned())
}

fn without_port(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shipote_rules::{Source, Terminator, compile};

    use super::*;

    fn spec(more: &serde_json::Value) -> CgiSpec {
        let mut terminate = json!({"type": "cgi", "command": ["/srv/app", "-x"], "script_name": "/app"});
        terminate.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rules = json!({"rules": [{"name": "a", "listen": ["127.0.0.1:1"], "terminate": terminate}]});
        let graph = compile(&[Source::new("a.json", rules.to_string())]).unwrap();
        let spec = graph.terminators.iter().find_map(|t| match &t.terminator {
            Terminator::Cgi(spec) => Some(spec.clone()),
            _ => None,
        });
        spec.unwrap()
    }

    fn told(more: &serde_json::Value, text: &str, length: u64) -> Result<Vec<String>, u16> {
        let peer = Peer::for_tests("192.0.2.7:1234".parse().unwrap(), "192.0.2.1:8080".parse().unwrap());
        let target = text.split(' ').nth(1).unwrap().as_bytes();
        let about = About { peer: &peer, target, protocol: "HTTP/1.1", length };
        variables(&spec(more), text.as_bytes(), &about).map_err(|r| r.status)
    }

    #[test]
    fn a_request_as_variables() {
        let text = "POST /app/a%20b/c?x=1&y HTTP/1.1\r\nHost: web.example:81\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\
                    X-A: 1\r\nX-A: 2\r\nCookie: a\r\nCookie: b\r\nAuthorization: Basic c2VjcmV0\r\nProxy: evil\r\nReferer: r\r\n\r\n";
        let env = told(&json!({"env": {"APP": "z"}, "block_headers": ["Referer"]}), text, 3).unwrap();
        for want in [
            "GATEWAY_INTERFACE=CGI/1.1",
            "REQUEST_METHOD=POST",
            "REQUEST_URI=/app/a%20b/c?x=1&y",
            "SCRIPT_NAME=/app",
            "SCRIPT_FILENAME=/srv/app",
            "PATH_INFO=/a b/c",
            "QUERY_STRING=x=1&y",
            "REMOTE_ADDR=192.0.2.7",
            "REMOTE_HOST=192.0.2.7",
            "SERVER_NAME=web.example",
            "SERVER_PORT=8080",
            "SERVER_PROTOCOL=HTTP/1.1",
            "CONTENT_LENGTH=3",
            "CONTENT_TYPE=text/plain",
            "HTTP_HOST=web.example:81",
            "HTTP_X_A=1, 2",
            "HTTP_COOKIE=a; b",
            "APP=z",
        ] {
            assert!(env.iter().any(|e| e == want), "{want}: {env:?}");
        }
        for no in ["HTTP_AUTHORIZATION", "HTTP_PROXY", "HTTP_REFERER", "HTTP_CONTENT", "HTTPS", "AUTH_TYPE"] {
            assert!(!env.iter().any(|e| e.starts_with(no)), "{no}: {env:?}");
        }
        let names: std::collections::HashSet<_> = env.iter().map(|e| e.split('=').next().unwrap()).collect();
        assert_eq!(names.len(), env.len(), "each is there once: {env:?}");
    }

    #[test]
    fn what_a_program_cannot_be_told_is_refused() {
        for (path, want) in [
            ("/app", Ok("PATH_INFO=")),
            ("/app/", Ok("PATH_INFO=/")),
            ("/apple", Err(404)),
            ("/", Err(404)),
            ("/app/a%2Fb", Err(400)),
            ("/app/a%00b", Err(400)),
            ("/app/%ff", Err(400)),
            ("/app/%c3%a4", Ok("PATH_INFO=/ä")),
        ] {
            let got = told(&json!({}), &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
            match want {
                Ok(want) => assert!(got.unwrap().iter().any(|e| e == want), "{path}"),
                Err(status) => assert_eq!(got.unwrap_err(), status, "{path}"),
            }
        }
    }
}
