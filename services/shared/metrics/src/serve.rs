//! Answering.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::Bound;

/// How long one reader may take for all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest request head.
const HEAD_MAX: usize = 8 * 1024;
/// Most header fields of a request.
const FIELDS_MAX: usize = 64;
/// Readers at once; more wait.
const READERS: usize = 32;

/// Serves until the task is aborted. `page` makes the text of `/metrics`; what it cannot say is an error 503.
///
/// # Errors
/// The listener cannot be used in this runtime.
pub async fn serve<F, P>(bound: Bound, page: F) -> io::Result<()>
where
    F: Fn() -> P + Send + Sync + 'static,
    P: Future<Output = Result<String, String>> + Send + 'static,
{
    let (page, seats) = (Arc::new(page), Arc::new(Semaphore::new(READERS)));
    match bound {
        Bound::Unix(listener) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                attend(accepted, &page, &seats).await;
            }
        }
        Bound::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                attend(accepted, &page, &seats).await;
            }
        }
    }
}

async fn attend<S, F, P>(accepted: io::Result<S>, page: &Arc<F>, seats: &Arc<Semaphore>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn() -> P + Send + Sync + 'static,
    P: Future<Output = Result<String, String>> + Send + 'static,
{
    match accepted {
        Ok(stream) => {
            let Ok(seat) = Arc::clone(seats).acquire_owned().await else { return };
            let page = Arc::clone(page);
            tokio::spawn(async move {
                // whoever is slow or goes away loses the page
                let _ = tokio::time::timeout(PATIENCE, answer(stream, page.as_ref())).await;
                drop(seat);
            });
        }
        Err(error) => {
            tracing::warn!("accept on the admin page: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer<S, F, P>(mut stream: S, page: &F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn() -> P,
    P: Future<Output = Result<String, String>>,
{
    let mut head = Vec::new();
    let asked = loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
        match request(&head) {
            Some(asked) => break asked,
            None if head.len() > HEAD_MAX => break Asked::Nonsense,
            None => {}
        }
    };
    let (status, kind, body) = match asked {
        Asked::Metrics => match page().await {
            Ok(text) => ("200 OK", "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
            Err(reason) => ("503 Service Unavailable", "text/plain", format!("{reason}\n")),
        },
        Asked::Health => ("200 OK", "text/plain", "ok\n".to_owned()),
        Asked::Other => ("404 Not Found", "text/plain", "there are /metrics and /health\n".to_owned()),
        Asked::Method => ("405 Method Not Allowed", "text/plain", "the page can only be read, by GET\n".to_owned()),
        Asked::Nonsense => ("400 Bad Request", "text/plain", "this is no HTTP/1.1 request\n".to_owned()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Metrics,
    Health,
    Other,
    Method,
    Nonsense,
}

/// What a head asks for; `None`: it is not whole.
fn request(head: &[u8]) -> Option<Asked> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) if request.method != Some("GET") => Some(Asked::Method),
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            Some(match path.split_once('?').map_or(path, |(path, _)| path) {
                "/metrics" => Asked::Metrics,
                "/health" => Asked::Health,
                _ => Asked::Other,
            })
        }
        Err(_) => Some(Asked::Nonsense),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        for (head, want) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some(Asked::Metrics)),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", Some(Asked::Metrics)),
            ("GET /health HTTP/1.1\r\n\r\n", Some(Asked::Health)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Asked::Other)),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some(Asked::Method)),
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n", None),
            ("", None),
            ("\x16\x03\x01garbage\r\n\r\n", Some(Asked::Nonsense)),
        ] {
            assert_eq!(request(head.as_bytes()), want, "{head:?}");
        }
    }

    async fn exchange(sent: &[u8], page: Result<&'static str, &'static str>) -> String {
        let (mut ours, theirs) = tokio::io::duplex(64 * 1024);
        let page = move || async move { page.map(str::to_owned).map_err(str::to_owned) };
        let served = tokio::spawn(async move { answer(theirs, &page).await });
        ours.write_all(sent).await.unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).await.unwrap();
        served.await.unwrap().unwrap();
        text
    }

    #[tokio::test]
    async fn the_page_is_answered_and_the_connection_closed() {
        let got = exchange(b"GET /metrics HTTP/1.1\r\n\r\n", Ok("a 1\n# EOF\n")).await;
        assert!(got.starts_with("HTTP/1.1 200 OK\r\n") && got.ends_with("\r\n\r\na 1\n# EOF\n"), "{got}");
        let got = exchange(b"GET /metrics HTTP/1.1\r\n\r\n", Err("busy")).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.ends_with("busy\n"), "{got}");
        let long = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &vec![b'x'; HEAD_MAX]].concat();
        assert!(exchange(&long, Ok("")).await.starts_with("HTTP/1.1 400 "));
    }
}
