//! Taking the next batch from the source: who is to have it gets references to it.

use std::time::Instant;

use crate::edge::Edge;
use crate::event::FlowEvent;
use crate::pipe::{Moved, Pipe, tee};
use crate::run::Run;
use crate::{BATCH_BYTES, CHUNK_BYTES};

/// Moved at once where nothing has to be kept.
const UNTAPPED_BYTES: usize = 1 << 20;

/// What came of taking from the source.
pub(crate) enum Taken {
    Bytes(usize),
    Nothing,
    End,
}

/// A pipe that the next batch goes into: an edge's stage, or its tap's history.
struct Target {
    edge: usize,
    stage: bool,
    pipe: Pipe,
}

impl Run {
    /// Takes up to `limit` bytes from the source.
    pub(crate) fn take(&mut self, limit: usize, live: usize, now: Instant) -> Taken {
        let Some(inlet) = &mut self.inlet else { return Taken::Nothing };
        match inlet.feed() {
            Ok(None) => {}
            Ok(Some(errno)) => {
                for edge in &self.edges {
                    let reason = format!("the source cannot be spliced from: {errno}");
                    edge.events.send(FlowEvent::Copied { id: edge.outlet.id, reason });
                }
            }
            Err(errno) => return self.fail("read from the source", errno),
        }
        let batch = self.edges.iter_mut().filter_map(Edge::live_tap).map(|tap| tap.batch_bytes()).min();
        match batch {
            None if live == 1 => self.pass(limit.min(UNTAPPED_BYTES)),
            _ => {
                let worth = if self.busy { batch.unwrap_or(BATCH_BYTES) } else { CHUNK_BYTES };
                self.take_batch(limit.min(batch.unwrap_or(BATCH_BYTES)).min(worth), live, now)
            }
        }
    }

    /// One consumer and no tap: nothing has to be kept.
    fn pass(&mut self, limit: usize) -> Taken {
        let (Some(inlet), Some(edge)) = (&self.inlet, self.edges.iter_mut().find(|edge| edge.is_live())) else {
            return Taken::Nothing;
        };
        let moved = edge.outlet.push(Some(inlet.reader()), limit);
        match (moved, edge.took(moved)) {
            (Moved::End, _) => Taken::End,
            (_, 0) => Taken::Nothing,
            (_, bytes) => Taken::Bytes(bytes),
        }
    }

    fn take_batch(&mut self, limit: usize, live: usize, now: Instant) -> Taken {
        let mut targets = self.targets(live, limit.max(CHUNK_BYTES));
        let Some(inlet) = &self.inlet else { return Taken::Nothing };
        // What fits into the smallest pipe fits into all.
        targets.sort_by_key(|target| target.pipe.capacity);
        let mut len = None;
        let mut end = Taken::Nothing;
        for target in &targets {
            match tee(inlet.reader(), &target.pipe.writer, len.unwrap_or(limit)) {
                Moved::Bytes(bytes) if len.is_none() => len = Some(bytes),
                Moved::Bytes(bytes) if len == Some(bytes) => {}
                Moved::End if len.is_none() => {
                    end = Taken::End;
                    break;
                }
                Moved::Later if len.is_none() => break,
                other => {
                    self.put_back(targets, None);
                    return self.fail_by(other);
                }
            }
        }
        self.put_back(targets, len);
        let Some(len) = len else { return end };
        self.busy = len >= CHUNK_BYTES;
        self.look(len, now);
        if live == 1 {
            self.owed = len;
        } else if let Some(moved) = self.drop_from_source(len) {
            return self.fail_by(moved);
        }
        for tap in self.edges.iter_mut().filter_map(Edge::live_tap) {
            tap.settle();
        }
        Taken::Bytes(len)
    }

    /// An empty pipe for each tap and, with several consumers, for each of those.
    fn targets(&mut self, live: usize, bytes: usize) -> Vec<Target> {
        let mut targets = Vec::with_capacity(self.edges.len() * 2);
        for (at, edge) in self.edges.iter_mut().enumerate().filter(|(_, edge)| edge.is_live()) {
            if let Some(tap) = &mut edge.tap {
                match tap.vacant(bytes) {
                    Some(pipe) => targets.push(Target { edge: at, stage: false, pipe }),
                    None => edge.tap = None,
                }
            }
            if live > 1 {
                match edge.outlet.take_stage(bytes) {
                    Ok(pipe) => targets.push(Target { edge: at, stage: true, pipe }),
                    Err(errno) => edge.fail("open a pipe for the consumer's bytes", errno),
                }
            }
        }
        targets
    }

    /// Puts the pipes where they belong, with the `len` bytes of a batch in them or empty.
    fn put_back(&mut self, targets: Vec<Target>, len: Option<usize>) {
        for Target { edge, stage, pipe } in targets {
            let edge = &mut self.edges[edge];
            match (stage, edge.tap.as_mut()) {
                (true, _) => edge.outlet.put_stage(pipe, len.unwrap_or(0)),
                (false, Some(tap)) => match len {
                    Some(len) => tap.history.commit(pipe, len),
                    None => tap.history.give_back(pipe),
                },
                (false, None) => {}
            }
        }
    }

    /// Lets samplers see what has just been taken and is still in the source.
    fn look(&mut self, len: usize, now: Instant) {
        let Some(inlet) = &self.inlet else { return };
        for edge in &mut self.edges {
            if let Some(tap) = edge.live_tap() {
                tap.look(inlet.reader(), len, now);
            }
        }
    }

    /// With several consumers all have references of their own; the source's are let go.
    fn drop_from_source(&mut self, mut len: usize) -> Option<Moved> {
        let inlet = self.inlet.as_ref()?;
        while len > 0 {
            match self.trash.drop_from(inlet.reader(), len) {
                Moved::Bytes(bytes) => len -= bytes.min(len),
                other => return Some(other),
            }
        }
        None
    }

    fn fail_by(&mut self, moved: Moved) -> Taken {
        let errno = match moved {
            Moved::Refused(errno) => errno,
            _ => rustix::io::Errno::NOBUFS,
        };
        self.fail("copy references to a batch", errno)
    }

    fn fail(&mut self, what: &str, errno: rustix::io::Errno) -> Taken {
        for edge in &mut self.edges {
            if edge.is_live() {
                edge.fail(what, errno);
            }
        }
        self.inlet = None;
        Taken::Nothing
    }
}
