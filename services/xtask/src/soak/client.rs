//! A client that keeps its connection, and holds each answer to what it should be.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// What the proxy answers by itself.
pub(super) const OWN: &str = "the proxy's own";
/// What a workspace and machines serve.
pub(super) const PAGE: &str = "a page of the soak";
/// The header that the plugin sets.
pub(super) const STAMP: &str = "x-stamp";

/// How long an answer may take: one of a machine that is woken, on a busy host.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest answer.
const ANSWER_MAX: usize = 16 * 1024;

/// How a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody took the connection.
    #[error("connect: {0}")]
    Refused(std::io::Error),
    /// The connection was taken and broke off, or nothing came.
    #[error("it was cut off: {0}")]
    Cut(std::io::Error),
    /// Another answer than the right one.
    #[error("{0}")]
    Wrong(String),
}

/// One connection, made anew when it has ended.
#[derive(Debug)]
pub(super) struct Client {
    port: u16,
    stream: Option<TcpStream>,
    /// Each answer carries the plugin's stamp.
    stamped: bool,
    body: &'static str,
}

impl Client {
    pub(super) fn new(port: u16) -> Self {
        Self { port, stream: None, stamped: false, body: "" }
    }

    /// One that takes only this body, with the plugin's stamp or without.
    pub(super) fn strict(port: u16, body: &'static str, stamped: bool) -> Self {
        Self { port, stream: None, stamped, body }
    }

    /// One request.
    pub(super) fn ask(&mut self) -> Result<(), Failure> {
        let outcome = self.exchange();
        if !matches!(outcome, Ok(true)) {
            self.stream = None;
        }
        outcome.map(|_| ())
    }

    /// Whether the connection can carry another one.
    fn exchange(&mut self) -> Result<bool, Failure> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(("127.0.0.1", self.port)).map_err(Failure::Refused)?;
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .and_then(|()| stream.set_nodelay(true))
                    .map_err(Failure::Cut)?;
                none.insert(stream)
            }
        };
        stream.write_all(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n").map_err(Failure::Cut)?;
        let mut answer = Vec::new();
        loop {
            if let Some((head, have)) = split(&answer) {
                let Some(length) = header(head, "content-length").and_then(|text| text.parse::<usize>().ok()) else {
                    return Err(Failure::Wrong(format!("an answer without a length: {head}")));
                };
                if have.len() >= length {
                    return self.judge(head, &have[..length]);
                }
            }
            if answer.len() > ANSWER_MAX {
                return Err(Failure::Wrong("an answer without an end".to_owned()));
            }
            let mut piece = [0; 2048];
            match stream.read(&mut piece) {
                Ok(0) => return Err(Failure::Cut(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => answer.extend_from_slice(&piece[..n]),
                Err(error) => return Err(Failure::Cut(error)),
            }
        }
    }

    fn judge(&self, head: &str, body: &[u8]) -> Result<bool, Failure> {
        let body = String::from_utf8_lossy(body);
        let first = head.lines().next().unwrap_or_default();
        if !first.starts_with("HTTP/1.1 200 ") {
            return Err(Failure::Wrong(format!("{first}: {}", body.trim_end())));
        }
        if !self.body.is_empty() && body.trim_end() != self.body {
            return Err(Failure::Wrong(format!("another page: {body}")));
        }
        if self.stamped && header(head, STAMP).is_none() {
            return Err(Failure::Wrong("an answer that no plugin has seen".to_owned()));
        }
        Ok(header(head, "connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")))
    }
}

/// Head and what there is of the body.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]))
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn against(answer: &'static str) -> Result<(), Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 512]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let outcome = Client::strict(port, PAGE, true).ask();
        served.join().unwrap();
        outcome
    }

    #[test]
    fn only_the_right_answer_is_good() {
        let good = "HTTP/1.1 200 OK\r\nX-Stamp: 1\r\nContent-Length: 18\r\n\r\na page of the soak";
        assert!(against(good).is_ok());
        for (bad, says) in [
            ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nwhy\n", "503 Service Unavailable: why"),
            ("HTTP/1.1 200 OK\r\nX-Stamp: 1\r\nContent-Length: 4\r\n\r\nelse", "another page"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\na page of the soak", "no plugin"),
            ("HTTP/1.1 200 OK\r\n\r\n", "without a length"),
            ("HTTP/1.1 200 OK\r\nX-Stamp: 1\r\nContent-Length: 19\r\n\r\na page of the soak", "cut off"),
            ("", "cut off"),
        ] {
            let error = against(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
