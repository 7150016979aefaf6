//! The chunks of a tap: one small pipe for each, holding references to its pages.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use crate::pipe::{Pipe, Trash};
use crate::{CHUNK_BYTES, Replay};

/// Emptied pipes kept for the next chunks.
const SPARE: usize = 4;

#[derive(Debug)]
pub(crate) struct History {
    replay: Replay,
    /// As many as the replay has chunks, in the same order.
    segments: VecDeque<Pipe>,
    spare: Vec<Pipe>,
    trash: Rc<Trash>,
    /// The sizes of the smallest and the largest pipe the kernel has given so far.
    smallest: usize,
    largest: usize,
}

impl History {
    pub(crate) fn new(replay: Replay, trash: Rc<Trash>) -> Self {
        Self { replay, segments: VecDeque::new(), spare: Vec::new(), trash, smallest: CHUNK_BYTES, largest: 0 }
    }

    pub(crate) fn replay(&self) -> &Replay {
        &self.replay
    }

    /// Less than a chunk where the kernel has given pipes too small for one.
    pub(crate) fn smallest(&self) -> usize {
        self.smallest
    }

    /// What a stage has to hold so that any chunk fits into it.
    pub(crate) fn largest(&self) -> usize {
        self.largest
    }

    /// An empty pipe for the next chunk, to be handed to [`History::commit`] or
    /// [`History::give_back`].
    pub(crate) fn vacant(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Ok(pipe);
        }
        let pipe = Pipe::new()?;
        self.smallest = self.smallest.min(pipe.capacity);
        self.largest = self.largest.max(pipe.capacity);
        Ok(pipe)
    }

    pub(crate) fn give_back(&mut self, pipe: Pipe) {
        if self.spare.len() < SPARE {
            self.spare.push(pipe);
        }
    }

    /// Makes a pipe that was filled with `len` bytes the newest chunk.
    pub(crate) fn commit(&mut self, pipe: Pipe, len: usize) {
        self.segments.push_back(pipe);
        self.replay.push(len);
    }

    /// The pipe and the length of a chunk.
    pub(crate) fn chunk(&self, number: u64) -> Option<(&Pipe, usize)> {
        let at = usize::try_from(number.checked_sub(self.replay.first())?).ok()?;
        Some((self.segments.get(at)?, self.replay.len_of(number)))
    }

    /// Forgets chunks that neither the replay nor a reader needs; `needed` is the oldest that a
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

    /// Keeps one chunk fewer from now on, so that its pipe can be used for the next chunk; gives
    /// how many chunks that leaves.
    pub(crate) fn shrink(&mut self) -> usize {
        let kept = self.segments.len().saturating_sub(1);
        self.replay.shrink(kept);
        kept
    }
}
