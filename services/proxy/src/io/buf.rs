//! Buffers that are zeroed once and used again.

use std::cell::RefCell;

/// Room for a message's head, bytes. A head larger than this is refused.
pub(crate) const HEAD_BYTES: usize = 32 << 10;
/// Room for a piece of a body, bytes: 64 KiB, which many bodies have, and the head before them.
pub(crate) const BODY_BYTES: usize = (64 + 4) << 10;

/// A fixed block; what was read and not yet used lies in `data[start..end]`.
#[derive(Debug, Default)]
pub(crate) struct Buf {
    data: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    fn new(size: usize) -> Self {
        Self { data: vec![0; size].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn filled(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// How much it can hold.
    pub(crate) fn size(&self) -> usize {
        self.data.len()
    }

    /// Forgets the first `n` bytes.
    pub(crate) fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len());
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for more, after what is there was moved to the front; empty if the block is full.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.data[self.end..]
    }

    /// Says that `n` bytes of [`Buf::spare`] were written.
    pub(crate) fn grew(&mut self, n: usize) {
        self.end += n;
        debug_assert!(self.end <= self.data.len());
    }
}

/// A worker's blocks that nobody uses right now. An idle connection holds none.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    heads: RefCell<Vec<Buf>>,
    bodies: RefCell<Vec<Buf>>,
    texts: RefCell<Vec<Vec<u8>>>,
}

/// Blocks of a kind that are kept when a burst is over.
const KEPT: usize = 64;

impl Pool {
    pub(crate) fn head(&self) -> Buf {
        self.heads.borrow_mut().pop().unwrap_or_else(|| Buf::new(HEAD_BYTES))
    }

    pub(crate) fn body(&self) -> Buf {
        self.bodies.borrow_mut().pop().unwrap_or_else(|| Buf::new(BODY_BYTES))
    }

    pub(crate) fn text(&self) -> Vec<u8> {
        self.texts.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(4096))
    }

    pub(crate) fn give_text(&self, mut text: Vec<u8>) {
        let mut texts = self.texts.borrow_mut();
        if texts.len() < KEPT && text.capacity() <= 2 * HEAD_BYTES {
            text.clear();
            texts.push(text);
        }
    }

    pub(crate) fn give(&self, mut buf: Buf) {
        let mut blocks = match buf.data.len() {
            HEAD_BYTES => self.heads.borrow_mut(),
            BODY_BYTES => self.bodies.borrow_mut(),
            _ => return,
        };
        if blocks.len() < KEPT {
            (buf.start, buf.end) = (0, 0);
            blocks.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_moves_to_the_front_when_room_is_asked_for() {
        let mut buf = Buf::new(8);
        buf.spare().copy_from_slice(b"abcdefgh");
        buf.grew(8);
        assert!(buf.spare().is_empty());
        buf.consume(6);
        assert_eq!(buf.spare().len(), 6);
        assert_eq!(buf.filled(), b"gh");
        buf.consume(2);
        assert!(buf.is_empty());
    }
}
