//! Sleeping until a descriptor or the clock says that there is something to do.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::edge::Edge;
use crate::event::EndReason;
use crate::run::{Run, Step};

/// Whose descriptor it is; numbers are positions in lists.
#[derive(Debug, Clone, Copy)]
enum Who {
    Wake,
    Source,
    Sink(usize),
    Listener(usize),
    Subscriber(usize, usize),
}

const GONE: PollFlags = PollFlags::ERR.union(PollFlags::HUP).union(PollFlags::NVAL);

impl Run {
    /// Sleeps, and notes what the descriptors said. Only looks if there was progress.
    pub(crate) fn wait(&mut self, step: &Step, now: Instant) {
        let timeout = if step.progress { Some(Duration::ZERO) } else { self.due(step, now) };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut who = Vec::new();
        let mut fds = Vec::new();
        self.list(step, now, |whose, fd, flags| {
            who.push(whose);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        });
        // Interrupted or out of memory: the next round tries again.
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return;
        }
        let said: Vec<(Who, PollFlags)> =
            who.into_iter().zip(fds.iter().map(PollFd::revents)).filter(|(_, flags)| !flags.is_empty()).collect();
        // From the back: a subscriber's removal moves those behind it.
        for (who, flags) in said.into_iter().rev() {
            self.note(who, flags, now);
        }
    }

    fn due(&self, step: &Step, now: Instant) -> Option<Duration> {
        let taps = self.edges.iter().filter_map(|edge| edge.tap.as_ref());
        let due = taps.filter_map(|tap| tap.due(now)).map(|due| due.saturating_duration_since(now)).min();
        [due, step.wait].into_iter().flatten().min()
    }

    fn list<'a>(&'a self, step: &Step, now: Instant, mut add: impl FnMut(Who, BorrowedFd<'a>, PollFlags)) {
        add(Who::Wake, self.control.wake.as_fd(), PollFlags::IN);
        if let Some(inlet) = self.inlet.as_ref().filter(|_| step.hungry && !self.has_full_sink()) {
            add(Who::Source, inlet.pollable(), PollFlags::IN);
        }
        for (at, edge) in self.edges.iter().enumerate() {
            if let Some(sink) = &edge.outlet.sink {
                let flags = if edge.outlet.full { PollFlags::OUT } else { PollFlags::empty() };
                add(Who::Sink(at), sink.as_fd(), flags);
            }
            let Some(tap) = &edge.tap else { continue };
            if let Some(listener) = tap.listening(now) {
                add(Who::Listener(at), listener.as_fd(), PollFlags::IN);
            }
            for (number, subscriber) in tap.subscribers.iter().enumerate() {
                let flags = if subscriber.is_blocked() { PollFlags::OUT } else { PollFlags::empty() };
                add(Who::Subscriber(at, number), subscriber.socket.as_fd(), flags);
            }
        }
    }

    /// A round that found the sink full is not hungry after all.
    fn has_full_sink(&self) -> bool {
        self.edges.iter().any(|edge| edge.is_live() && edge.outlet.full)
    }

    fn note(&mut self, who: Who, flags: PollFlags, now: Instant) {
        match who {
            Who::Wake => {
                let _ = rustix::io::read(&self.control.wake, &mut [0; 8]);
            }
            Who::Source => {}
            Who::Sink(at) => {
                let edge = &mut self.edges[at];
                edge.outlet.full = false;
                if flags.intersects(GONE) {
                    edge.end(EndReason::ConsumerClosed);
                    self.owed = if self.edges.iter().any(Edge::is_live) { self.owed } else { 0 };
                }
            }
            Who::Listener(at) => {
                if let Some(tap) = &mut self.edges[at].tap {
                    tap.accept_all(now);
                }
            }
            Who::Subscriber(at, number) => {
                if let Some(tap) = &mut self.edges[at].tap {
                    if flags.intersects(GONE) {
                        tap.remove(number);
                    } else {
                        tap.subscribers[number].unblock();
                    }
                }
            }
        }
    }
}
