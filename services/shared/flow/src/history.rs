//! The batches of a tap: one pipe for each, holding references to its pages.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use crate::pipe::{Pipe, Trash};
use crate::{CHUNK_BYTES, Replay};

/// Emptied pipes kept for the next batches.
const SPARE: usize = 4;

#[derive(Debug)]
pub(crate) struct History {
    replay: Replay,
    /// As many as the replay has batches, in the same order.
    segments: VecDeque<Pipe>,
    spare: Vec<Pipe>,
    trash: Rc<Trash>,
    /// The size of the smallest pipe the kernel has given so far.
    smallest: usize,
}

impl History {
    pub(crate) fn new(replay: Replay, trash: Rc<Trash>) -> Self {
        Self { replay, segments: VecDeque::new(), spare: Vec::new(), trash, smallest: CHUNK_BYTES }
    }

    pub(crate) fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Less than a chunk where the kernel has given pipes too small for one.
    pub(crate) fn smallest(&self) -> usize {
        self.smallest
    }

    /// An empty pipe for the next batch, for `bytes` if the kernel gives one so large; to be handed
    /// to [`History::commit`] or [`History::give_back`].
    pub(crate) fn vacant(&mut self, bytes: usize) -> io::Result<Pipe> {
        // A flow that isn't busy any more has no need of large pipes, which count towards the
        // user's limit full or empty.
        let mut pipe = match self.spare.pop().filter(|pipe| pipe.capacity <= 2 * bytes) {
            Some(pipe) => pipe,
            None => Pipe::new()?,
        };
        pipe.make_room(bytes);
        self.smallest = self.smallest.min(pipe.capacity);
        Ok(pipe)
    }

    pub(crate) fn give_back(&mut self, pipe: Pipe) {
        if self.spare.len() < SPARE {
            self.spare.push(pipe);
        }
    }

    /// Makes a pipe that was filled with `len` bytes the newest batch.
    pub(crate) fn commit(&mut self, pipe: Pipe, len: usize) {
        self.segments.push_back(pipe);
        self.replay.push(len);
    }

    /// The pipe and the length of a batch.
    pub(crate) fn batch(&self, number: u64) -> Option<(&Pipe, usize)> {
        let at = usize::try_from(number.checked_sub(self.replay.first())?).ok()?;
        Some((self.segments.get(at)?, self.replay.len_of(number)))
    }

    /// Forgets batches that neither the replay nor a reader needs; `needed` is the oldest that a
    /// reader does.
    pub(crate) fn trim(&mut self, needed: Option<u64>) {
        let first = self.replay.first();
        let mut lens: [usize; 8] = [0; 8];
        let known = lens.len();
        for (at, len) in lens.iter_mut().enumerate() {
            *len = self.replay.len_of(first + at as u64);
        }
        let forgotten = self.replay.trim(needed);
        for (at, pipe) in self.segments.drain(..forgotten).enumerate() {
            // After a long lag many go at once; the first few are enough to go on with.
            if at < known && self.spare.len() < SPARE {
                self.spare.extend(self.trash.empty(pipe, lens[at]));
            }
        }
    }

    /// Keeps one batch fewer from now on, so that its pipe can be used for the next one; gives how
    /// many that leaves.
    pub(crate) fn shrink(&mut self) -> usize {
        let kept = self.segments.len().saturating_sub(1);
        self.replay.shrink(kept);
        kept
    }
}
