//! A client's connection: one request after the other.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use shipote_rules::{HeaderEdit, Terminator};

use super::compose::{self, Outgoing};
use super::exchange::{Ask, Ended, proxy};
use super::request::RequestHead;
use super::{Framing, Refusal};
use crate::flows::Entry;
use crate::io::{Buf, Io, IoError};
use crate::walk::{Edits, Peer, Verdict, response_edits, route};
use crate::worker::Worker;

/// How much of an unread body is thrown away so that the client gets to read the answer.
const LINGER_BYTES: usize = 256 << 10;

/// Serves a connection until it ends. `idle` tells the worker that no request is open.
pub(crate) async fn serve(worker: Rc<Worker>, client: Io, peer: Peer, idle: Rc<Cell<bool>>) {
    let mut connection = Connection { worker, client, peer, head: RequestHead::default(), log: Vec::new() };
    let mut buf = Buf::default();
    let mut first = true;
    loop {
        if buf.is_empty() {
            let settings = &connection.worker.settings;
            connection.client.slot().set(if first { settings.head_time } else { settings.idle_time });
            idle.set(true);
            if connection.client.readable().await.is_err() {
                break;
            }
            idle.set(false);
            buf = connection.worker.pool.head();
        }
        first = false;
        let next = connection.one(&mut buf).await;
        if buf.is_empty() {
            connection.worker.pool.give(std::mem::take(&mut buf));
        }
        match next {
            Next::Request => {}
            Next::Close => break,
            Next::Linger => {
                connection.linger().await;
                break;
            }
        }
    }
    connection.worker.pool.give(buf);
}

enum Next {
    /// Another request may come.
    Request,
    Close,
    /// Close, after what the client still sends was thrown away.
    Linger,
}

struct Connection {
    worker: Rc<Worker>,
    client: Io,
    peer: Peer,
    head: RequestHead,
    /// Method, host and path of the request, for the log: the buffer may hold something else by then.
    log: Vec<u8>,
}

impl Connection {
    async fn one(&mut self, buf: &mut Buf) -> Next {
        match self.read_head(buf).await {
            Ok(true) => {}
            Ok(false) => return Next::Close,
            Err(refusal) => return self.refuse(refusal).await,
        }
        let began = Instant::now();
        let worker = Rc::clone(&self.worker);
        let plan = worker.plan();
        let marks = self.note(buf);
        let mut edits = Edits::default();
        let verdict = route(&plan, &self.peer, &self.head, buf.filled(), &mut edits, &worker.plugins);
        let rule: &str;
        let (ended, next) = match verdict {
            Verdict::Close { rule: by } => {
                rule = by;
                (Ended { error: Some("refused by the rule".into()), ..Ended::default() }, Next::Close)
            }
            Verdict::Answer { response, rule: by, limited } => {
                rule = by;
                if limited {
                    worker.figures.limited.add(1);
                }
                self.answer(buf, response.status, &response.headers, &response.body, &[]).await
            }
            Verdict::Made { response, rule: by, error } => {
                rule = by;
                let (mut ended, next) = self.answer(buf, response.status, &response.headers, &response.body, &[]).await;
                ended.error = ended.error.or(error);
                (ended, next)
            }
            Verdict::Take { terminator, response } => {
                let entry = plan.graph.terminator(terminator);
                rule = &entry.rule;
                match &entry.terminator {
                    Terminator::HttpProxy(spec) => {
                        let (plan, peer, client, head) = (&*plan, &self.peer, &self.client, &self.head);
                        let ask = Ask { worker: &worker, plan, peer, client, head, terminator, response, spec };
                        let ended = proxy(&ask, buf, &edits).await;
                        self.after(ended, buf).await
                    }
                    Terminator::Static(fixed) => {
                        let edits = response_edits(&plan, response);
                        self.answer(buf, fixed.status, &fixed.headers, &fixed.body, &edits).await
                    }
                    Terminator::RedirectHttps(spec) => {
                        let edits = response_edits(&plan, response);
                        match self.location(buf, spec.port) {
                            Some(to) => self.answer(buf, spec.status, &[("location".into(), to)], b"", &edits).await,
                            None => self.answer(buf, 400, &[], b"no host to redirect to\n", &edits).await,
                        }
                    }
                    // Forwards of bytes are taken before a request is read, so only a reload leads here.
                    _ => (Ended::default(), Next::Close),
                }
            }
        };
        self.record(&ended, rule, marks, began);
        next
    }

    /// Reads until the head is whole; `false` if the client went away first.
    async fn read_head(&mut self, buf: &mut Buf) -> Result<bool, Refusal> {
        let limit = self.worker.settings.head_bytes;
        let mut seen = 0;
        let mut waited = false;
        loop {
            // Only a line feed can complete a head (or break it): a head that drips is not parsed at every byte.
            if memchr::memchr(b'\n', &buf.filled()[seen..]).is_some() && self.head.parse(buf.filled())? {
                let too_large = self.head.lines.length > limit;
                return if too_large { Err(too_large_head()) } else { Ok(true) };
            }
            seen = buf.len();
            if seen >= limit || buf.spare().is_empty() {
                return Err(too_large_head());
            }
            if !waited {
                self.client.slot().set(self.worker.settings.head_time);
                waited = true;
            }
            match self.client.fill_within(buf).await {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(IoError::TimedOut) if seen > 0 => {
                    self.worker.figures.timeouts.add(1);
                    return Err(Refusal { status: 408, reason: "the head took too long" });
                }
                Err(_) => return Ok(false),
            }
        }
    }

    /// Keeps what the log needs.
    fn note(&mut self, buf: &Buf) -> [usize; 2] {
        let bytes = buf.filled();
        self.log.clear();
        self.log.extend_from_slice(self.head.method(bytes));
        let method = self.log.len();
        self.log.extend_from_slice(self.head.host(bytes).unwrap_or_default());
        let host = self.log.len();
        self.log.extend_from_slice(self.head.path(bytes));
        [method, host]
    }

    fn record(&self, ended: &Ended, rule: &str, [method, host]: [usize; 2], began: Instant) {
        let now = Instant::now();
        let duration = now.saturating_duration_since(began);
        let figures = &self.worker.figures;
        figures.answered(ended.status, u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        figures.bytes_in.add(ended.bytes_in);
        figures.bytes_out.add(ended.bytes_out);
        if matches!(ended.status, 408 | 504) {
            figures.timeouts.add(1);
        }
        let entry = Entry {
            connection: self.peer.id,
            client: &self.peer.remote_text,
            rule,
            method: &self.log[..method],
            host: &self.log[method..host],
            path: &self.log[host..],
            status: ended.status,
            upstream: ended.upstream.as_ref().map_or("", |t| &t.name),
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            duration,
            error: ended.error.as_deref().unwrap_or(""),
        };
        self.worker.flows.push(&entry, now);
    }

    /// What follows an exchange with an upstream.
    async fn after(&mut self, ended: Ended, buf: &mut Buf) -> (Ended, Next) {
        if !ended.refuse {
            let next = if ended.reusable { Next::Request } else { Next::Close };
            return (ended, next);
        }
        // The exchange took the head out of the buffer, and the body is where it left it: not worth finding.
        let unread = self.head.facts.framing != Framing::Empty;
        let body = format!("{} {}\n", ended.status, compose::reason(ended.status));
        let all = if unread { buf.len() } else { 0 };
        buf.consume(all);
        let (sent, next) = self.send_own(ended.status, &[], body.as_bytes(), &[], !unread).await;
        (Ended { bytes_out: sent.bytes_out, ..ended }, next)
    }

    /// Answers by itself, after the request was taken out of the buffer.
    async fn answer(
        &mut self,
        buf: &mut Buf,
        status: u16,
        headers: &[(String, String)],
        body: &[u8],
        edits: &[&HeaderEdit],
    ) -> (Ended, Next) {
        buf.consume(self.head.lines.length);
        let read = match self.head.facts.framing {
            Framing::Empty => true,
            Framing::Length(n) if n <= buf.len() as u64 => {
                buf.consume(n as usize);
                true
            }
            _ => {
                let all = buf.len();
                buf.consume(all);
                false
            }
        };
        self.send_own(status, headers, body, edits, read).await
    }

    async fn send_own(
        &mut self,
        status: u16,
        headers: &[(String, String)],
        body: &[u8],
        edits: &[&HeaderEdit],
        read: bool,
    ) -> (Ended, Next) {
        let facts = self.head.facts;
        let keep_alive = facts.keep_alive && read && !self.worker.shared.draining();
        let outgoing = Outgoing { framing: Framing::Empty, keep_alive, one_one: facts.one_one, websocket: false };
        let mut out = self.worker.pool.text();
        compose::own(&mut out, status, headers, body, edits, outgoing, facts.is_head);
        self.client.slot().set(self.worker.settings.body_time);
        let written = self.client.write(&out).await;
        self.worker.pool.give_text(out);
        let bytes_out = if facts.is_head { 0 } else { body.len() as u64 };
        let ended =
            Ended { status, bytes_out, error: written.as_ref().err().map(ToString::to_string), ..Ended::default() };
        let next = match (written, keep_alive, read) {
            (Err(_), ..) | (Ok(()), false, true) => Next::Close,
            (Ok(()), true, _) => Next::Request,
            (Ok(()), false, false) => Next::Linger,
        };
        (ended, next)
    }

    /// Answers what is not a request.
    async fn refuse(&mut self, refusal: Refusal) -> Next {
        let began = Instant::now();
        self.log.clear();
        self.head.facts = super::request::Facts::default();
        let body = format!("{}\n", refusal.reason);
        let (mut ended, _) = self.send_own(refusal.status, &[], body.as_bytes(), &[], false).await;
        ended.error.get_or_insert_with(|| refusal.reason.to_owned());
        self.record(&ended, "", [0, 0], began);
        Next::Linger
    }

    /// The same place by HTTPS.
    fn location(&self, buf: &Buf, port: Option<u16>) -> Option<String> {
        let bytes = buf.filled();
        let host = std::str::from_utf8(self.head.host(bytes)?).ok()?;
        let bare = match host.rfind(']') {
            Some(end) => &host[..=end],
            None => host.split(':').next().unwrap_or(host),
        };
        let path = std::str::from_utf8(self.head.path(bytes)).ok()?;
        let query = self.head.query(bytes).and_then(|q| std::str::from_utf8(q).ok());
        let port = port.map(|p| format!(":{p}")).unwrap_or_default();
        let path = if path == "*" { "/" } else { path };
        Some(format!("https://{bare}{port}{path}{}{}", if query.is_some() { "?" } else { "" }, query.unwrap_or("")))
    }

    /// Closes so that the answer arrives: a close with unread bytes would reset the connection under it.
    async fn linger(&self) {
        self.client.slot().set(std::time::Duration::from_secs(2));
        if self.client.shutdown().await.is_err() {
            return;
        }
        let mut buf = self.worker.pool.head();
        let mut thrown = 0;
        while thrown < LINGER_BYTES {
            match self.client.fill_within(&mut buf).await {
                Ok(n) if n > 0 => thrown += n,
                _ => break,
            }
            let all = buf.len();
            buf.consume(all);
        }
        self.worker.pool.give(buf);
    }
}

fn too_large_head() -> Refusal {
    Refusal { status: 431, reason: "the head is too large" }
}
