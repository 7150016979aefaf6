//! A client's connection: one request after the other.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use shipote_rules::{HeaderEdit, Terminator};

use super::compose::{self, Outgoing};
use super::exchange::{Ask, Ended, proxy};
use super::request::RequestHead;
use super::{Framing, Refusal};
use crate::flows::Entry;
use crate::http::general::{Outcome, Request, run};
use crate::http::{Body, Client, Source, acquire};
use crate::http2;
use crate::io::{Buf, Io, IoError};
use crate::plan::Plan;
use crate::upstream::Key;
use crate::walk::{Edits, Peer, Verdict, compression, response_edits, route};
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
        let next = if std::mem::take(&mut first) { connection.first(&mut buf).await } else { Next::Request };
        if matches!(next, Next::Two) {
            let early = Bytes::copy_from_slice(buf.filled());
            let Connection { worker, client, peer, .. } = connection;
            worker.pool.give(buf);
            let slot = client.share_slot();
            let stream = client.into_stream();
            return Box::pin(http2::server::serve(worker, early, stream, peer, slot, idle)).await;
        }
        let next = if matches!(next, Next::Request) { connection.one(&mut buf).await } else { next };
        if buf.is_empty() {
            connection.worker.pool.give(std::mem::take(&mut buf));
        }
        match next {
            Next::Request => {}
            Next::Close | Next::Two => break,
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
    /// The client speaks HTTP/2.
    Two,
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
    /// Reads as far as it takes to tell HTTP/2 by its first bytes.
    async fn first(&mut self, buf: &mut Buf) -> Next {
        self.client.slot().set(self.worker.settings.head_time);
        loop {
            let n = buf.len().min(http2::PREFACE.len());
            if n == http2::PREFACE.len() && buf.filled().starts_with(http2::PREFACE) {
                return Next::Two;
            }
            if buf.filled()[..n] != http2::PREFACE[..n] {
                return Next::Request;
            }
            match self.client.fill_within(buf).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Next::Close,
            }
        }
    }

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
        let verdict = route(&plan, &self.peer, &self.head, buf.filled(), &mut edits, &worker.plugins, None);
        if self.takes_more(&plan, &verdict, &edits) {
            let outcome = self.general(&worker, &plan, verdict, &mut edits, buf).await;
            self.record(&outcome.ended, outcome.rule, marks, began);
            return match outcome.ended {
                Ended { reusable: true, .. } => Next::Request,
                Ended { unread: true, .. } => Next::Linger,
                _ => Next::Close,
            };
        }
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
                        let key = match acquire::key(spec, peer, head, buf.filled()) {
                            Key::Bytes(bytes) => Some(bytes.to_vec()),
                            Key::Address(_) => None,
                        };
                        let ask = Ask { worker: &worker, plan, peer, client, head, terminator, response, spec, key };
                        let ended = Box::pin(proxy(&ask, buf, &edits)).await;
                        self.after(ended, buf).await
                    }
                    Terminator::Static(fixed) => {
                        let edits = response_edits(&plan, response);
                        self.answer(buf, fixed.status, &fixed.headers, &fixed.body, &edits).await
                    }
                    Terminator::RedirectHttps(spec) => {
                        let edits = response_edits(&plan, response);
                        match self.head.location(buf.filled(), spec.port) {
                            Some(to) => self.answer(buf, spec.status, &[("location".into(), to)], b"", &edits).await,
                            None => self.answer(buf, 400, &[], b"no host to redirect to\n", &edits).await,
                        }
                    }
                    // Forwards of bytes are taken before a request is read, so only a reload leads here.
                    _ => (Ended::default(), Next::Close),
                }
            }
            // It was gone on with above.
            Verdict::Pause { .. } => {
                rule = "";
                (Ended::default(), Next::Close)
            }
        };
        self.record(&ended, rule, marks, began);
        next
    }

    /// Whether this takes more than one version of HTTP passed on as it is.
    fn takes_more(&self, plan: &Plan, verdict: &Verdict<'_>, edits: &Edits<'_>) -> bool {
        match verdict {
            Verdict::Pause { .. } => true,
            Verdict::Take { terminator, response } => {
                let websocket = self.head.facts.websocket && plan.takes_websocket(*terminator);
                let changes = !edits.after.is_empty() || compression(plan, *response).is_some();
                !websocket && (plan.takes_more(*terminator) || changes)
            }
            _ => false,
        }
    }

    /// Takes the way that every request can take.
    async fn general<'p>(
        &self,
        worker: &Worker,
        plan: &'p Plan,
        verdict: Verdict<'p>,
        edits: &mut Edits<'p>,
        buf: &mut Buf,
    ) -> Outcome<'p> {
        let facts = self.head.facts;
        let mut bytes = worker.pool.text();
        bytes.extend_from_slice(&buf.filled()[..self.head.lines.length]);
        buf.consume(bytes.len());
        let slot = self.client.share_slot();
        let request = Request { worker, plan, peer: &self.peer, head: &self.head, bytes: &bytes, slot: &slot };
        let mut body = Body::new(Source::one(&self.client, buf, facts.framing, facts.expects_continue));
        let mut client = Client::One { io: &self.client, facts };
        // Kept apart: an idle connection must not carry the room that the largest request takes.
        let outcome = Box::pin(run(&request, verdict, edits, &mut body, &mut client)).await;
        worker.pool.give_text(bytes);
        outcome
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
        self.worker.answered(ended, duration);
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
        let body = ended.own_body();
        let all = if unread { buf.len() } else { 0 };
        buf.consume(all);
        let (sent, next) = self.send_own(ended.status, &[], &body, &[], !unread).await;
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
