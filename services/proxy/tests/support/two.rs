//! A server of HTTP/2 in a thread, and raw frames.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// Answers with what it got: head as text, then the body as it comes, then trailers that say `grpc-status: 0`.
pub struct TwoUpstream {
    pub port: u16,
    pub accepted: Arc<AtomicUsize>,
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl TwoUpstream {
    pub fn start(tls: Option<rustls::ServerConfig>) -> Self {
        let (accepted, seen) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<Vec<String>>>::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (count, log) = (accepted.clone(), seen.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let acceptor = tls.map(|c| tokio_rustls::TlsAcceptor::from(Arc::new(c)));
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, Relaxed);
                    let (log, acceptor) = (log.clone(), acceptor.clone());
                    tokio::task::spawn_local(async move {
                        match acceptor {
                            None => serve(stream, log).await,
                            Some(acceptor) => {
                                if let Ok(stream) = acceptor.accept(stream).await {
                                    serve(stream, log).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        Self { port, accepted, seen }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S, log: Arc<Mutex<Vec<String>>>) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        if path == "/leave" {
            connection.graceful_shutdown();
        }
        let log = log.clone();
        tokio::task::spawn_local(async move {
            let (parts, mut body) = request.into_parts();
            let mut head = format!("{} {}\n", parts.method, parts.uri);
            for (name, value) in &parts.headers {
                head.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
            }
            log.lock().unwrap().push(head.clone());
            let refuse = parts.uri.path() == "/refused" && log.lock().unwrap().len() == 1;
            if refuse {
                return respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
            if path == "/hold" {
                return std::future::pending().await;
            }
            let status: u16 = path.trim_start_matches('/').parse().unwrap_or(200);
            let response = http::Response::builder().status(status).header("x-server", "two").body(()).unwrap();
            let Ok(mut stream) = respond.send_response(response, false) else { return };
            let _ = stream.send_data(Bytes::from(head), false);
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
                // Waits for room, so that large bodies are not piled up here.
                let mut piece = piece;
                while !piece.is_empty() {
                    stream.reserve_capacity(piece.len());
                    let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                    let _ = stream.send_data(piece.split_to(room.min(piece.len())), false);
                }
            }
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            if let Ok(Some(sent)) = body.trailers().await
                && let Some(value) = sent.get("x-sum")
            {
                trailers.insert("x-sum", value.clone());
            }
            let _ = stream.send_trailers(trailers);
        });
    }
}

/// Frames of RFC 9113, written and read by hand.
pub struct Raw {
    pub stream: TcpStream,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A field, neither indexed nor compressed.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        // Integers of RFC 7541, section 5.1, with a prefix of seven bits.
        let n = text.len();
        if n < 127 {
            out.push(n as u8);
        } else {
            out.push(127);
            let mut rest = n - 127;
            while rest >= 128 {
                out.push((rest % 128 + 128) as u8);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend(text.bytes());
    }
    out
}

pub fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter().flat_map(|(n, v)| field(n, v)).collect()
}

pub fn get(path: &str) -> Vec<u8> {
    fields(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)])
}

impl Raw {
    pub fn connect(port: u16) -> Self {
        let mut this = Self { stream: super::connect(port) };
        this.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        this.send(&frame(SETTINGS, 0, 0, &[]));
        this
    }

    /// The peer may have gone away; what it said before is still to be read.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next frame, or the end.
    pub fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// The first frame that says what became of the connection or of a stream: an end, a reset, or an answer.
    pub fn outcome(&mut self) -> Option<Frame> {
        while let Some(frame) = self.read() {
            if matches!(frame.kind, GOAWAY | RST_STREAM | HEADERS) {
                return Some(frame);
            }
        }
        None
    }
}

impl Frame {
    /// The code of a reset or a GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}
