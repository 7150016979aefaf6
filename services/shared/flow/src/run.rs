//! The thread of a junction: take a batch, hand it on, serve subscribers, sleep.
//!
//! ```text
//!            ┌──────────────────────────────────────────────────┐
//!            ▼                                                  │ progress
//!   deliver what is owed ─▶ serve subscribers ─▶ take the next ─┤
//!   to consumers                                 batch, if      │ none
//!                                                · all was      ▼
//!                                                  delivered   poll(2): source, sinks (for room
//!                                                · no lossless  and for their readers' end),
//!                                                  tap stalls   listeners, sockets, wake-up,
//!                                                · the bucket   the bucket's and the sample's
//!                                                  has tokens   due time
//! ```

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bucket::TokenBucket;
use crate::edge::Edge;
use crate::event::EndReason;
use crate::inlet::Inlet;
use crate::junction::Control;
use crate::pipe::Trash;
use crate::subscriber::Subscriber;
use crate::take::Taken;
use crate::tap::TapState;

/// Rounds between two looks at listeners and hang-ups while bytes flow without a pause.
const ROUNDS: usize = 8;

pub(crate) struct Run {
    /// Closed when the source has ended or no consumer is left.
    pub(crate) inlet: Option<Inlet>,
    pub(crate) edges: Vec<Edge>,
    /// Bytes at the beginning of the source that are in the taps' histories already and that the
    /// one consumer has still to be given.
    pub(crate) owed: usize,
    /// The last batch was as large as a chunk: larger ones are worth their pipes.
    pub(crate) busy: bool,
    pub(crate) bucket: Option<TokenBucket>,
    pub(crate) trash: Rc<Trash>,
    pub(crate) control: Arc<Control>,
}

/// What a round came to.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) progress: bool,
    /// The next batch is wanted as soon as there is one.
    pub(crate) hungry: bool,
    /// The bucket has to fill first.
    pub(crate) wait: Option<Duration>,
}

impl Run {
    pub(crate) fn run(mut self) {
        let mut rounds = 0;
        loop {
            self.obey();
            let now = Instant::now();
            let step = self.advance(now);
            if self.is_over() {
                return;
            }
            if step.progress && rounds < ROUNDS && !self.has_blocked_subscriber() {
                rounds += 1;
                continue;
            }
            rounds = 0;
            self.wait(&step, now);
        }
    }

    fn obey(&mut self) {
        if self.control.taps_are_to_close() {
            for edge in &mut self.edges {
                edge.tap = None;
            }
        }
        if self.inlet.is_none() && self.control.is_to_finish() {
            let now = Instant::now();
            for tap in self.edges.iter_mut().filter_map(|edge| edge.tap.as_mut()) {
                // Who has connected in time is in the queue.
                tap.accept_all(now);
                tap.stop_listening();
            }
        }
    }

    fn is_over(&self) -> bool {
        self.inlet.is_none() && self.edges.iter().all(|edge| edge.tap.as_ref().is_none_or(TapState::is_over))
    }

    /// Its socket may have room again any time, and only poll(2) tells.
    fn has_blocked_subscriber(&self) -> bool {
        let mut taps = self.edges.iter().filter_map(|edge| edge.tap.as_ref());
        taps.any(|tap| tap.subscribers.iter().any(Subscriber::is_blocked))
    }

    fn live(&self) -> usize {
        self.edges.iter().filter(|edge| edge.is_live()).count()
    }

    fn advance(&mut self, now: Instant) -> Step {
        let mut step = Step { progress: self.deliver(), ..Step::default() };
        for tap in self.edges.iter_mut().filter_map(|edge| edge.tap.as_mut()) {
            step.progress |= tap.serve(now);
        }
        let live = self.live();
        if live == 0 {
            // The producer learns of it by SIGPIPE or EPIPE.
            step.progress |= self.inlet.take().is_some();
        }
        let idle = self.owed == 0 && self.edges.iter().all(|edge| !edge.is_live() || edge.outlet.is_idle());
        let stalled = self.edges.iter_mut().filter_map(Edge::live_tap).any(|tap| tap.stalls());
        if self.inlet.is_none() || !idle || stalled {
            return step;
        }
        let limit = match self.bucket.as_mut().map_or(Ok(u64::MAX), |bucket| bucket.allowance(now)) {
            Ok(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX),
            Err(wait) => {
                step.wait = Some(wait);
                return step;
            }
        };
        step.hungry = true;
        match self.take(limit, live, now) {
            Taken::Nothing => {}
            Taken::Bytes(bytes) => {
                step.progress = true;
                if let Some(bucket) = &mut self.bucket {
                    bucket.spend(bytes as u64);
                }
            }
            Taken::End => {
                step.progress = true;
                self.inlet = None;
                for edge in &mut self.edges {
                    edge.end(EndReason::Eof);
                }
            }
        }
        step
    }

    /// Hands consumers what they are owed; whether any took something.
    fn deliver(&mut self) -> bool {
        let mut progress = false;
        for edge in self.edges.iter_mut().filter(|edge| edge.is_live()) {
            loop {
                let moved = match &self.inlet {
                    Some(inlet) if self.owed > 0 => edge.outlet.push(Some(inlet.reader()), self.owed),
                    _ if !edge.outlet.is_idle() => edge.outlet.drain(),
                    _ => break,
                };
                let took = edge.took(moved);
                self.owed -= took.min(self.owed);
                progress |= took > 0 || !edge.is_live();
                if took == 0 {
                    break;
                }
            }
            if !edge.is_live() {
                self.owed = 0;
            }
        }
        progress
    }
}
