//! A tap at work: sample, history, and the subscribers that walk it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::history::History;
use crate::pipe::{Pipe, Trash};
use shipote_discern::Discernment;

use crate::event::{Events, FlowEvent};
use crate::sampler::Sampler;
use crate::stats::{CutOff, Shared};
use crate::subscriber::{Subscriber, Turn};
use crate::{Allow, BATCH_BYTES, CHUNK_BYTES, EdgeId, Replay, Tap, TapSpec};

/// How long no peer is let in after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Room in a subscriber's socket; the kernel caps it at its own limit.
const SOCKET_BYTES: usize = 1 << 20;

pub(crate) struct TapState {
    id: EdgeId,
    spec: TapSpec,
    listener: Option<UnixListener>,
    allow: Allow,
    sampler: Sampler,
    pub(crate) history: History,
    pub(crate) subscribers: Vec<Subscriber>,
    shared: Arc<Shared>,
    events: Events,
    /// The edge has ended: what is in the history is all there will be.
    pub(crate) ended: bool,
    paused_until: Option<Instant>,
    degraded: bool,
}

impl TapState {
    pub(crate) fn new(id: EdgeId, tap: Tap, trash: Rc<Trash>, shared: Arc<Shared>, events: Events) -> io::Result<Self> {
        let Tap { spec, listener, allow } = tap;
        listener.set_nonblocking(true)?;
        let history = History::new(Replay::new(spec.replay_chunks, spec.replay_bytes), trash);
        Ok(Self {
            id,
            spec,
            listener: Some(listener),
            allow,
            sampler: Sampler::new(spec.sample_bytes)?,
            history,
            subscribers: Vec::new(),
            shared,
            events,
            ended: false,
            paused_until: None,
            degraded: false,
        })
    }

    /// Bytes of a batch at most: no more than an eighth of the replay, so that dropping one takes
    /// away little of it, and a chunk at least as far as the limit in bytes allows.
    pub(crate) fn batch_bytes(&self) -> usize {
        let by_chunks = (self.spec.replay_chunks / 8).clamp(1, BATCH_BYTES / CHUNK_BYTES) * CHUNK_BYTES;
        match self.spec.replay_bytes {
            0 => by_chunks,
            bytes => (bytes / 8).clamp(1024, by_chunks),
        }
    }

    /// Whether peers are let in now.
    pub(crate) fn listening(&self, now: Instant) -> Option<&UnixListener> {
        self.listener.as_ref().filter(|_| self.paused_until.is_none_or(|until| now >= until))
    }

    /// When something is to be done though no descriptor says so.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let paused = self.paused_until.filter(|until| *until > now);
        [paused, self.sampler.due()].into_iter().flatten().min()
    }

    /// Lets in the peers that wait, some at a time.
    pub(crate) fn accept_all(&mut self, now: Instant) {
        for _ in 0..64 {
            if !self.accept(now) {
                break;
            }
        }
        self.recount();
    }

    /// Lets in one peer; whether there may be more.
    fn accept(&mut self, now: Instant) -> bool {
        let Some(listener) = &self.listener else { return false };
        let peer = match listener.accept() {
            Ok((peer, _)) => OwnedFd::from(peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => return true,
            // Level-triggered readiness would turn an error that stays into a busy loop.
            Err(error) => {
                tracing::warn!(edge = %self.id, %error, "accept subscriber");
                self.paused_until = Some(now + PAUSE);
                return false;
            }
        };
        self.paused_until = None;
        let credentials = rustix::net::sockopt::socket_peercred(&peer).ok();
        let uid = credentials.map(|peer| peer.uid.as_raw());
        if !uid.is_some_and(|uid| (self.allow)(uid)) {
            self.refuse(uid, "the peer's user may not subscribe to this flow".to_owned());
        } else if self.subscribers.len() >= self.spec.max_subscribers {
            self.refuse(uid, format!("the flow has {} subscribers already", self.subscribers.len()));
        } else {
            // As much as the kernel grants; it only saves wake-ups.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(&peer, SOCKET_BYTES);
            let ready = crate::inlet::set_nonblocking(peer.as_fd());
            match ready.and_then(|()| {
                Subscriber::new(peer, credentials.map(|peer| peer.pid.as_raw_nonzero().get()), &self.history)
            }) {
                Ok(subscriber) => self.subscribers.push(subscriber),
                Err(error) => self.refuse(uid, format!("prepare the subscriber: {error}")),
            }
        }
        true
    }

    fn refuse(&self, uid: Option<u32>, reason: String) {
        self.shared.refused.fetch_add(1, Relaxed);
        self.events.send(FlowEvent::SubscriberRefused { id: self.id, uid, reason });
    }

    /// Shows the sampler the first `len` bytes of `source`.
    pub(crate) fn look(&mut self, source: BorrowedFd<'_>, len: usize, now: Instant) {
        let found = self.sampler.look(source, len, now);
        self.sampled(found);
    }

    fn sampled(&self, found: Option<Discernment>) {
        if let Some(discernment) = found {
            self.events.send(FlowEvent::Sampled { id: self.id, discernment });
        }
    }

    /// Sends subscribers what they can take; whether any took something.
    pub(crate) fn serve(&mut self, now: Instant) -> bool {
        let found = self.sampler.tick(now);
        self.sampled(found);
        let mut progress = false;
        let (history, ended, id, events) = (&self.history, self.ended, self.id, &self.events);
        let before = self.subscribers.len();
        self.subscribers.retain_mut(|subscriber| match subscriber.turn(history) {
            Turn::Progress => {
                progress = true;
                true
            }
            // Closing the socket is how it learns of the end.
            Turn::Idle => !(ended && subscriber.unsent(history) == 0),
            Turn::Gone => false,
            Turn::Failed(errno) => {
                let reason = format!("send to a subscriber: {errno}; it was disconnected");
                events.send(FlowEvent::Failed { id, reason });
                false
            }
        });
        if self.subscribers.len() != before {
            self.recount();
            progress = true;
        }
        progress
    }

    /// Whether a subscriber that must not lose anything cannot take another batch.
    pub(crate) fn stalls(&self) -> bool {
        let batch = self.batch_bytes();
        self.spec.lossless && self.subscribers.iter().any(|subscriber| subscriber.would_lag(&self.history, batch))
    }

    /// After a batch was added: cuts off who lags, and forgets what nobody needs.
    pub(crate) fn settle(&mut self) {
        if !self.spec.lossless && self.subscribers.iter().any(|subscriber| subscriber.lags(&self.history)) {
            let (history, shared, id, events) = (&self.history, &self.shared, self.id, &self.events);
            self.subscribers.retain(|subscriber| {
                let lags = subscriber.lags(history);
                if lags {
                    let lost = subscriber.unsent(history);
                    shared.cut_off(CutOff { pid: subscriber.pid, lost });
                    events.send(FlowEvent::SubscriberDropped { id, lost });
                }
                !lags
            });
            self.recount();
        }
        let needed = self.subscribers.iter().map(Subscriber::needs).min();
        self.history.trim(needed);
        if !self.degraded && self.history.smallest() < CHUNK_BYTES {
            self.degrade(format!(
                "the kernel gives pipes of {} bytes, so chunks and the replay are smaller; raise \
                 fs.pipe-user-pages-soft",
                self.history.smallest()
            ));
        }
    }

    /// An empty pipe for the next batch. Where the process can open no more, the replay makes do
    /// with those it has; `None` if it has none, and the tap cannot go on.
    pub(crate) fn vacant(&mut self, bytes: usize) -> Option<Pipe> {
        let error = match self.history.vacant(bytes) {
            Ok(pipe) => return Some(pipe),
            Err(error) => error,
        };
        let kept = self.history.shrink();
        self.settle();
        self.degrade(format!(
            "the replay keeps {kept} batches: open another pipe: {error}; raise the limit of open files"
        ));
        self.history
            .vacant(bytes)
            .inspect_err(|error| self.fail(&format!("open a pipe for the next batch: {error}")))
            .ok()
    }

    pub(crate) fn fail(&self, reason: &str) {
        self.events.send(FlowEvent::Failed { id: self.id, reason: format!("{reason}; the tap is closed") });
    }

    fn degrade(&mut self, reason: String) {
        if !std::mem::replace(&mut self.degraded, true) {
            self.events.send(FlowEvent::Degraded { id: self.id, reason });
        }
    }

    /// The stream has ended. Subscribers get the rest, later ones the replay.
    pub(crate) fn end(&mut self) {
        self.ended = true;
        let found = self.sampler.end();
        self.sampled(found);
    }

    pub(crate) fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Nothing will ever be left to do.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.listener.is_none() && self.subscribers.is_empty()
    }

    pub(crate) fn remove(&mut self, at: usize) {
        self.subscribers.remove(at);
        self.recount();
    }

    fn recount(&self) {
        self.shared.subscribers.store(self.subscribers.len() as u64, Relaxed);
    }
}

impl Drop for TapState {
    fn drop(&mut self) {
        self.shared.subscribers.store(0, Relaxed);
    }
}
