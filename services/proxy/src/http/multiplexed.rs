//! What the requests of one connection share where it carries many at once, in HTTP/2 and HTTP/3.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use super::general::{Outcome, Request, run};
use super::{Body, Client, Source};
use crate::flows::Entry;
use crate::http1::Refusal;
use crate::http1::exchange::Ended;
use crate::http1::request::RequestHead;
use crate::http2::head;
use crate::io::Slot;
use crate::plan::Plan;
use crate::walk::{Edits, Peer, route};
use crate::worker::Worker;

/// Requests taken back after which a connection that takes back more than it lets finish is ended.
const TAKEN_BACK: u32 = 100;

/// What an exchange says that ended because the client reset its stream.
pub(crate) const TOOK_BACK: &str = "the client took the request back";

pub(crate) struct Multiplexed {
    pub(crate) worker: Rc<Worker>,
    pub(crate) peer: Peer,
    /// Requests that are open.
    pub(crate) open: Cell<u32>,
    finished: Cell<u32>,
    taken_back: Cell<u32>,
}

impl Multiplexed {
    pub(crate) fn new(worker: Rc<Worker>, peer: Peer) -> Rc<Self> {
        Rc::new(Self { worker, peer, open: Cell::new(0), finished: Cell::new(0), taken_back: Cell::new(0) })
    }

    /// A request begins.
    pub(crate) fn begin(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// A request, and what was to be done for it, has ended.
    pub(crate) fn end(&self) {
        self.open.set(self.open.get() - 1);
    }

    /// The client takes back more than it lets finish.
    pub(crate) fn is_abused(&self) -> bool {
        let taken_back = self.taken_back.get();
        taken_back > TAKEN_BACK && taken_back > self.finished.get()
    }

    /// A connection without a reason to end: it has open requests, rules that name its listener, and the proxy goes on.
    pub(crate) fn is_wanted(&self) -> bool {
        let Self { worker, peer, .. } = self;
        let listened = worker.plan().listener(peer.transport, peer.listener).is_some();
        self.open.get() > 0 && listened && !worker.shared.draining()
    }

    /// Counts a stream that its client reset before there was a request.
    pub(crate) fn took_back(&self) {
        self.taken_back.set(self.taken_back.get().saturating_add(1));
    }

    /// Serves one request. An answer to one that is refused is left to the caller: it is the error.
    pub(crate) async fn serve<'c>(
        &self,
        (parts, end): (&http::request::Parts, bool),
        (source, slot): (Source<'_>, &Rc<Slot>),
        client: impl FnOnce(bool) -> Client<'c>,
    ) -> Result<Ended, Refusal> {
        let began = Instant::now();
        let Self { worker, peer, .. } = self;
        let mut bytes = worker.pool.text();
        let mut head = RequestHead::default();
        let read = head::text(&mut bytes, parts, end).and_then(|()| head.parse(&bytes));
        let plan = worker.plan();
        let result = match read {
            Ok(true) => {
                let request = Request { worker, plan: &plan, peer, head: &head, bytes: &bytes, slot };
                let Outcome { ended, rule } = go(&request, &plan, source, client(head.facts.is_head)).await;
                self.record(&ended, rule, parts, began);
                Ok(ended)
            }
            refused => {
                let refusal = refused.err().unwrap_or(Refusal::bad("not a request"));
                let ended = Ended::broken(refusal.status, &refusal);
                self.record(&ended, "", parts, began);
                Err(refusal)
            }
        };
        worker.pool.give_text(bytes);
        result
    }

    fn record(&self, ended: &Ended, rule: &str, parts: &http::request::Parts, began: Instant) {
        let gone = ended.status == 0 && ended.upstream.is_some() || ended.error.as_deref() == Some(TOOK_BACK);
        let counter = if gone { &self.taken_back } else { &self.finished };
        counter.set(counter.get().saturating_add(1));
        let now = Instant::now();
        let duration = now.saturating_duration_since(began);
        let host = parts.uri.authority().map_or("", http::uri::Authority::as_str);
        self.worker.answered(ended, duration);
        let entry = Entry {
            connection: self.peer.id,
            client: &self.peer.remote_text,
            rule,
            method: parts.method.as_str().as_bytes(),
            host: host.as_bytes(),
            path: parts.uri.path().as_bytes(),
            status: ended.status,
            upstream: ended.upstream.as_ref().map_or("", |t| &t.name),
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            duration,
            error: ended.error.as_deref().unwrap_or(""),
        };
        self.worker.flows.push(&entry, now);
    }
}

async fn go<'p>(request: &Request<'_, 'p>, plan: &'p Plan, source: Source<'_>, mut client: Client<'_>) -> Outcome<'p> {
    let Request { worker, peer, head, bytes, .. } = *request;
    let mut edits = Edits::default();
    let verdict = route(plan, peer, head, bytes, &mut edits, &worker.plugins, None);
    let mut body = Body::new(source);
    run(request, verdict, &mut edits, &mut body, &mut client).await
}
