//! A proxy in this process, upstreams in threads, and a client that reads strictly.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "each test takes what it needs"
)]

pub mod plugin;
pub mod three;
pub mod two;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use shipote_proxy::{Engine, Inherited, Settings};
use shipote_rules::{Source, compile};

pub struct Proxy {
    pub engine: Engine,
}

pub fn settings() -> Settings {
    Settings { workers: 2, drain_time: Duration::from_secs(5), ..Settings::default() }
}

impl Proxy {
    pub fn start(rules: &Json) -> Self {
        Self::start_with(settings(), rules)
    }

    pub fn start_with(settings: Settings, rules: &Json) -> Self {
        let proxy = Self { engine: Engine::start(settings, Inherited::default()).unwrap() };
        proxy.apply(rules).unwrap();
        proxy
    }

    pub fn apply(&self, rules: &Json) -> Result<(), String> {
        self.apply_with(rules, &[])
    }

    pub fn apply_with(&self, rules: &Json, plugins: &[shipote_proxy::PluginCode]) -> Result<(), String> {
        let graph =
            compile(&[Source::new("test.json", json!({"rules": rules}).to_string())]).map_err(|e| e.to_string())?;
        self.engine.apply_with(graph, plugins).map_err(|e| e.to_string())
    }

    /// The last flow with this status. It is told of after its client was answered.
    pub fn flow(&self, status: u16) -> shipote_proxy::Flow {
        until(|| self.engine.flows(100).into_iter().rev().find(|flow| flow.status == status))
    }
}

/// A proxy of one rule, and its port.
pub fn proxy_to(upstream: &Upstream) -> (Proxy, u16) {
    let port = free_port();
    let rule = json!({"name": "all", "listen": [format!("127.0.0.1:{port}")],
        "terminate": {"type": "http_proxy", "upstream": upstream.address()}});
    (Proxy::start(&json!([rule])), port)
}

/// A port that nobody listens on. Taken from the kernel, which does not hand out the same one again soon.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

#[derive(Debug, Default)]
pub struct Answer {
    /// 0: the connection was closed without an answer.
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn has(&self, name: &str, value: &str) -> bool {
        self.headers.iter().any(|(n, v)| n == name && v == value)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// Asks again until there is something.
pub fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(std::time::Instant::now() < end, "nothing came within 20 seconds");
        std::thread::yield_now();
    }
}

/// One request on a connection of its own.
pub fn ask(port: u16, request: &str) -> Answer {
    let mut client = connect(port);
    let _ = client.write_all(request.as_bytes());
    read_answer(&mut client, false)
}

pub fn read_answer(stream: &mut TcpStream, no_body: bool) -> Answer {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => {
                assert!(head.is_empty(), "a torn head: {:?}", String::from_utf8_lossy(&head));
                return Answer::default();
            }
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter(|l| !l.is_empty())
        .map(|l| l.split_once(": ").unwrap())
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: Vec::new() };
    if no_body || status == 204 || status == 304 {
    } else if let Some(length) = answer.header("content-length") {
        answer.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut answer.body).unwrap();
    } else if answer.has("transfer-encoding", "chunked") {
        loop {
            let size = usize::from_str_radix(&line(stream), 16).unwrap();
            let at = answer.body.len();
            answer.body.resize(at + size, 0);
            stream.read_exact(&mut answer.body[at..]).unwrap();
            assert_eq!(line(stream), "");
            if size == 0 {
                break;
            }
        }
    } else {
        stream.read_to_end(&mut answer.body).unwrap();
    }
    answer
}

fn line(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    text.truncate(text.len() - 2);
    String::from_utf8(text).unwrap()
}

/// A server with a thread per connection. It ends with the process.
pub struct Upstream {
    port: u16,
    pub accepted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
    requests: Arc<(Mutex<usize>, Condvar)>,
}

impl Upstream {
    fn start(serve: impl Fn(TcpStream, &Shared) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Shared::default();
        let upstream = Self {
            port,
            accepted: shared.accepted.clone(),
            seen: shared.seen.clone(),
            requests: shared.requests.clone(),
        };
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                shared.accepted.fetch_add(1, Relaxed);
                let (serve, shared) = (serve.clone(), shared.clone());
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        upstream
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// All that came in.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until so many requests came in.
    pub fn wait_for(&self, count: usize) {
        let (requests, changed) = &*self.requests;
        let guard = requests.lock().unwrap();
        let (guard, _) = changed.wait_timeout_while(guard, Duration::from_secs(20), |n| *n < count).unwrap();
        assert!(*guard >= count);
    }

    /// Answers with the whole request as its body.
    pub fn echo() -> Self {
        Self::start(|mut stream, shared| {
            while let Some((head, body)) = request(&mut stream, shared) {
                reply(&mut stream, &[head, body].concat());
            }
        })
    }

    /// Answers with the request's body, in pieces of its own.
    pub fn echo_body() -> Self {
        Self::start(|mut stream, shared| {
            while let Some((_, body)) = request(&mut stream, shared) {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for piece in body.chunks(100_000) {
                    let _ = write!(stream, "{:x}\r\n", piece.len());
                    let _ = stream.write_all(piece);
                    let _ = stream.write_all(b"\r\n");
                }
                let _ = stream.write_all(b"0\r\n\r\n");
            }
        })
    }

    pub fn slow(delay: Duration) -> Self {
        Self::start(move |mut stream, shared| {
            let mut first = true;
            while request(&mut stream, shared).is_some() {
                // The first connection answers at once, the others take their time.
                if !first || shared.accepted.load(Relaxed) > 1 || *shared.requests.0.lock().unwrap() > 1 {
                    let (lock, changed) = (Mutex::new(()), Condvar::new());
                    let _ = changed.wait_timeout(lock.lock().unwrap(), delay).unwrap();
                }
                first = false;
                reply(&mut stream, b"slow");
            }
        })
    }

    /// Says that the connection stays open, and closes it.
    pub fn one_request_then_close() -> Self {
        Self::start(|mut stream, shared| {
            if request(&mut stream, shared).is_some() {
                reply(&mut stream, b"once");
            }
        })
    }

    /// Answers the first request of each connection with `raw`, then closes.
    pub fn fixed(raw: &str) -> Self {
        let raw = raw.to_owned();
        Self::start(move |mut stream, shared| {
            if request(&mut stream, shared).is_some() {
                let _ = stream.write_all(raw.as_bytes());
            }
        })
    }

    /// Sends the head of each answer, then its body (`body`) once `wait` has returned.
    pub fn in_two(wait: impl Fn() + Send + Sync + 'static) -> Self {
        Self::start(move |mut stream, shared| {
            stream.set_nodelay(true).unwrap();
            while request(&mut stream, shared).is_some() {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
                wait();
                let _ = stream.write_all(b"body");
            }
        })
    }

    /// Answers 503 while it is ill, else `name`.
    pub fn moody(ill: Arc<std::sync::atomic::AtomicBool>, name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |mut stream, shared| {
            while request(&mut stream, shared).is_some() {
                if ill.load(Relaxed) {
                    let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
                } else {
                    reply(&mut stream, name.as_bytes());
                }
            }
        })
    }

    /// Reads, and never answers.
    pub fn silent() -> Self {
        Self::start(|mut stream, _| while matches!(stream.read(&mut [0; 4096]), Ok(1..)) {})
    }

    /// Sends back what comes.
    pub fn raw_echo() -> Self {
        Self::start(|mut stream, _| {
            let mut writer = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut writer);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        })
    }

    /// Switches protocols and sends back what comes.
    pub fn websocket() -> Self {
        Self::start(|mut stream, shared| {
            if let Some((head, _)) = request(&mut stream, shared) {
                assert!(String::from_utf8_lossy(&head).contains("Upgrade: websocket"));
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Server: ws\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes());
                let mut writer = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut writer);
            }
        })
    }
}

impl Upstream {
    /// Switches to WebSocket with the answer that fits the key, or with `answer`, and sends back what comes.
    pub fn websocket_by_key(answer: Option<&str>) -> Self {
        let fixed = answer.map(str::to_owned);
        Self::start(move |mut stream, shared| {
            let Some((head, _)) = request(&mut stream, shared) else { return };
            let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
            let key = String::from_utf8_lossy(&shared.seen.lock().unwrap()).into_owned();
            let key = key
                .lines()
                .rev()
                .find_map(|l| l.to_ascii_lowercase().starts_with("sec-websocket-key: ").then(|| l[19..].to_owned()));
            assert!(head.contains("upgrade: websocket") && head.starts_with("get "), "{head}");
            let text = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key.unwrap().trim());
            let sum = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
            let fit = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, sum);
            let accept = fixed.as_deref().unwrap_or(&fit);
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
            let mut writer = stream.try_clone().unwrap();
            let _ = std::io::copy(&mut stream, &mut writer);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        })
    }
}

#[derive(Clone, Default)]
struct Shared {
    accepted: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<u8>>>,
    requests: Arc<(Mutex<usize>, Condvar)>,
}

fn reply(stream: &mut TcpStream, body: &[u8]) {
    let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    let _ = stream.write_all(&answer);
}

/// Head and body of the next request.
fn request(stream: &mut TcpStream, shared: &Shared) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    shared.seen.lock().unwrap().extend_from_slice(&head);
    *shared.requests.0.lock().unwrap() += 1;
    shared.requests.1.notify_all();
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some(length) = text.split("content-length: ").nth(1) {
        body.resize(length.split("\r\n").next()?.parse().ok()?, 0);
        stream.read_exact(&mut body).ok()?;
    } else if text.contains("transfer-encoding: chunked") {
        loop {
            let size = usize::from_str_radix(&line(stream), 16).ok()?;
            let at = body.len();
            body.resize(at + size, 0);
            stream.read_exact(&mut body[at..]).ok()?;
            line(stream);
            if size == 0 {
                break;
            }
        }
    }
    Some((head, body))
}
