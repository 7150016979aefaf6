//! The admin listener: `/metrics` and `/health` over HTTP, on a Unix socket.
//!
//! A page for scrapers, nothing else: it reads one small request, answers and closes. Whoever may open the socket may
//! read the figures; changes go over the bus.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::engine::Engine;
use crate::metrics;

/// Binds the admin socket, in place of one that an earlier run left.
///
/// # Errors
/// The socket could not be bound.
pub fn bind(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Serves the admin socket until the task is aborted.
pub async fn serve(listener: UnixListener, engine: Arc<Engine>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let engine = Arc::clone(&engine);
                tokio::spawn(async move {
                    // A reader that is slow or goes away loses its page, and nobody else notices.
                    let _ = tokio::time::timeout(Duration::from_secs(5), answer(stream, &engine)).await;
                });
            }
            Err(e) => {
                tracing::warn!("accept on the admin socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, engine: &Engine) -> std::io::Result<()> {
    let mut bytes = vec![0; 4096];
    let mut have = 0;
    while !bytes[..have].windows(4).any(|w| w == b"\r\n\r\n") {
        if have == bytes.len() {
            return Ok(());
        }
        match stream.read(&mut bytes[have..]).await? {
            0 => return Ok(()),
            n => have += n,
        }
    }
    let line = bytes[..have].split(|b| *b == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line {
        l if l.starts_with(b"GET /metrics ") => {
            ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", metrics::render(engine))
        }
        l if l.starts_with(b"GET /health ") => ("200 OK", "text/plain", "ok\n".to_owned()),
        _ => ("404 Not Found", "text/plain", "there are /metrics and /health\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
