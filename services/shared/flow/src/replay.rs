//! Which batches are kept, for whom, and who lags too far: pure accounting over batch numbers.
//!
//! ```text
//!   batch numbers   first ──────── window_start ──────────── end
//!                   │ kept for a   │ what a new subscriber   │ the next batch's number
//!                   │ laggard      │ begins with             │
//! ```

use std::collections::VecDeque;

use crate::CHUNK_BYTES;

/// A place in the stream, in bytes and in chunks from its beginning.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    bytes: u64,
    chunks: u64,
}

/// The lengths of the last batches of a stream and the limits on how much to keep.
#[derive(Debug, Clone)]
pub struct Replay {
    max_chunks: usize,
    /// 0 is no limit.
    max_bytes: u64,
    /// Where each kept batch begins.
    starts: VecDeque<Place>,
    /// Number of the oldest kept batch.
    first: u64,
    /// Number of the oldest batch in the replay.
    window: u64,
    /// Where the stream has come to.
    reached: Place,
}

impl Replay {
    /// Keeps the latest whole batches that are together no more than `max_chunks` chunks and
    /// `max_bytes` bytes (0 is no limit). A batch of n bytes counts as n / 64 KiB chunks, rounded
    /// up.
    #[must_use]
    pub fn new(max_chunks: usize, max_bytes: usize) -> Self {
        let (starts, reached) = (VecDeque::new(), Place::default());
        Self { max_chunks, max_bytes: max_bytes as u64, starts, first: 0, window: 0, reached }
    }

    /// Adds a batch of `len` bytes and gives its number. The window moves on, but nothing is
    /// forgotten before [`Replay::trim`].
    pub fn push(&mut self, len: usize) -> u64 {
        self.starts.push_back(self.reached);
        self.reached.bytes += len as u64;
        self.reached.chunks += chunks(len);
        self.slide();
        self.end() - 1
    }

    /// Keeps no more than the latest `batches` from now on.
    pub fn shrink(&mut self, batches: usize) {
        let from = self.end().saturating_sub(batches as u64);
        let chunks = self.reached.chunks - self.start(from).chunks;
        self.max_chunks = self.max_chunks.min(usize::try_from(chunks).unwrap_or(usize::MAX));
        self.slide();
    }

    fn slide(&mut self) {
        while self.exceeds(self.window, 0) {
            self.window += 1;
        }
    }

    /// Whether what there is from a batch on, and `more` bytes, is more than the replay may hold.
    fn exceeds(&self, from: u64, more: usize) -> bool {
        let start = self.start(from);
        let bytes = self.reached.bytes - start.bytes + more as u64;
        let chunks = self.reached.chunks - start.chunks + chunks(more);
        chunks > self.max_chunks as u64 || (self.max_bytes > 0 && bytes > self.max_bytes)
    }

    /// The number the next batch will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.starts.len() as u64
    }

    /// The number of the oldest kept batch.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number of the batch a new subscriber begins with; [`Replay::end`] if there is none.
    #[must_use]
    pub fn window_start(&self) -> u64 {
        self.window
    }

    /// Length in bytes of a kept batch; 0 for any other.
    #[must_use]
    pub fn len_of(&self, batch: u64) -> usize {
        usize::try_from(self.start(batch + 1).bytes - self.start(batch).bytes).unwrap_or(usize::MAX)
    }

    /// Bytes from the beginning of a batch to the end of the stream so far.
    #[must_use]
    pub fn bytes_from(&self, batch: u64) -> u64 {
        self.reached.bytes - self.start(batch).bytes
    }

    /// Whether a reader that needs batch `next`, and was handed the batches before `joined` as
    /// replay, has more live data ahead of it than the replay may hold.
    ///
    /// The replay itself doesn't count: whoever has just been handed a full one would be too late
    /// at once. A reader may always lag one batch.
    #[must_use]
    pub fn lags(&self, next: u64, joined: u64) -> bool {
        let from = next.max(joined);
        self.end() > from + 1 && self.exceeds(from, 0)
    }

    /// Whether that reader would lag after one more batch of up to `bytes`.
    #[must_use]
    pub fn would_lag(&self, next: u64, joined: u64, bytes: usize) -> bool {
        let from = next.max(joined);
        self.end() > from && self.exceeds(from, bytes)
    }

    /// Forgets the batches before the window that no reader needs, `needed` being the oldest one a
    /// reader does need. Gives how many were forgotten.
    pub fn trim(&mut self, needed: Option<u64>) -> usize {
        let keep = needed.map_or(self.window, |batch| batch.min(self.window)).max(self.first);
        let forgotten = usize::try_from(keep - self.first).unwrap_or(usize::MAX).min(self.starts.len());
        self.starts.drain(..forgotten);
        self.first += forgotten as u64;
        forgotten
    }

    fn start(&self, batch: u64) -> Place {
        let at = usize::try_from(batch.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.starts.get(at).copied().unwrap_or(self.reached)
    }
}

fn chunks(bytes: usize) -> u64 {
    bytes.div_ceil(CHUNK_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(max_chunks: usize, max_bytes: usize, lens: &[usize]) -> Replay {
        let mut replay = Replay::new(max_chunks, max_bytes);
        for len in lens {
            replay.push(*len);
        }
        replay
    }

    #[test]
    fn drops_by_chunks_then_by_bytes() {
        assert_eq!(filled(3, 0, &[1, 1, 1, 1, 1]).window_start(), 2);
        assert_eq!(filled(3, 10, &[4, 4, 4, 4, 4]).window_start(), 3, "two of 4 bytes fit in 10");
        assert_eq!(filled(3, 10, &[11]).window_start(), 1, "one too large leaves none");
        assert_eq!(filled(0, 0, &[1, 1]).window_start(), 2);
    }

    #[test]
    fn the_replay_handed_out_is_not_lag() {
        let mut replay = filled(3, 0, &[1, 1, 1]);
        let (next, joined) = (replay.window_start(), replay.end());
        for _ in 0..3 {
            replay.push(1);
            assert!(!replay.lags(next, joined));
        }
        assert!(replay.would_lag(next, joined, 1));
        replay.push(1);
        assert!(replay.lags(next, joined));
        assert_eq!(replay.bytes_from(next), 7);
    }

    #[test]
    fn a_batch_counts_as_its_chunks() {
        let batch = 4 * CHUNK_BYTES;
        let mut replay = filled(9, 0, &[batch, batch, batch]);
        assert_eq!(replay.window_start(), 1, "two are 8 chunks, three are 12");
        replay.push(CHUNK_BYTES + 1);
        assert_eq!(replay.window_start(), 2, "10 chunks are one too many");
        replay.shrink(1);
        assert_eq!(replay.window_start(), 3);
        replay.push(1);
        assert_eq!(replay.window_start(), 4, "2 chunks fit, 3 do not");
        replay.push(1);
        assert_eq!(replay.window_start(), 4);
    }

    #[test]
    fn without_a_replay_one_batch_of_lag_is_allowed() {
        let mut replay = filled(0, 0, &[5]);
        assert!(!replay.would_lag(1, 1, 5));
        replay.push(5);
        assert!(!replay.lags(1, 1));
        assert!(replay.would_lag(1, 1, 5));
        replay.push(5);
        assert!(replay.lags(1, 1));
    }

    proptest! {
        #[test]
        fn the_window_is_the_longest_tail_within_the_limits(
            lens in proptest::collection::vec(1_usize..100, 0..80),
            max_chunks in 0_usize..20,
            max_bytes in 0_usize..400,
            reader in 0_u64..80,
        ) {
            let mut replay = Replay::new(max_chunks, max_bytes);
            for (at, len) in lens.iter().enumerate() {
                prop_assert_eq!(replay.push(*len), at as u64);
                let fits = |from: usize| {
                    at + 1 - from <= max_chunks && (max_bytes == 0 || lens[from..=at].iter().sum::<usize>() <= max_bytes)
                };
                let expected = (0..=at + 1).find(|from| *from == at + 1 || fits(*from)).unwrap();
                prop_assert_eq!(replay.window_start(), expected as u64);
                let needed = (reader <= at as u64).then_some(reader);
                replay.trim(needed);
                prop_assert!(replay.first() <= replay.window_start());
                if let Some(needed) = needed.filter(|needed| *needed >= replay.first()) {
                    prop_assert_eq!(replay.len_of(needed), lens[usize::try_from(needed).unwrap()]);
                }
                for kept in replay.first()..replay.end() {
                    prop_assert_eq!(replay.len_of(kept), lens[usize::try_from(kept).unwrap()]);
                }
            }
        }
    }
}
