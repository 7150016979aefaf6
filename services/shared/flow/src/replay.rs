//! Which chunks are kept, for whom, and who lags too far: pure accounting over chunk numbers.
//!
//! ```text
//!   chunk numbers   first ──────── window_start ──────────── end
//!                   │ kept for a   │ what a new subscriber   │ the next chunk's number
//!                   │ laggard      │ begins with             │
//! ```

use std::collections::VecDeque;

/// The lengths of the last chunks of a stream and the limits on how many to keep.
#[derive(Debug, Clone)]
pub struct Replay {
    max_chunks: usize,
    /// 0 is no limit.
    max_bytes: u64,
    /// Where in the stream each kept chunk begins.
    starts: VecDeque<u64>,
    /// Number of the oldest kept chunk.
    first: u64,
    /// Number of the oldest chunk in the replay.
    window: u64,
    /// Bytes of the stream so far.
    end_offset: u64,
}

impl Replay {
    /// Keeps up to `max_chunks` chunks, and of these as many of the latest as fit in `max_bytes`
    /// (0 is no limit).
    #[must_use]
    pub fn new(max_chunks: usize, max_bytes: usize) -> Self {
        Self { max_chunks, max_bytes: max_bytes as u64, starts: VecDeque::new(), first: 0, window: 0, end_offset: 0 }
    }

    /// Adds a chunk of `len` bytes and gives its number. The window moves on, but nothing is
    /// forgotten before [`Replay::trim`].
    pub fn push(&mut self, len: usize) -> u64 {
        self.starts.push_back(self.end_offset);
        self.end_offset += len as u64;
        self.slide();
        self.end() - 1
    }

    /// Keeps no more than `max_chunks` chunks from now on.
    pub fn shrink(&mut self, max_chunks: usize) {
        self.max_chunks = self.max_chunks.min(max_chunks);
        self.slide();
    }

    fn slide(&mut self) {
        let end = self.end();
        while end - self.window > self.max_chunks as u64
            || (self.max_bytes > 0 && self.end_offset - self.start(self.window) > self.max_bytes)
        {
            self.window += 1;
        }
    }

    /// The number the next chunk will have.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.first + self.starts.len() as u64
    }

    /// The number of the oldest kept chunk.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number of the chunk a new subscriber begins with; [`Replay::end`] if there is none.
    #[must_use]
    pub fn window_start(&self) -> u64 {
        self.window
    }

    /// Length in bytes of a kept chunk; 0 for any other.
    #[must_use]
    pub fn len_of(&self, chunk: u64) -> usize {
        usize::try_from(self.start(chunk + 1) - self.start(chunk)).unwrap_or(usize::MAX)
    }

    /// Bytes from the beginning of a chunk to the end of the stream so far.
    #[must_use]
    pub fn bytes_from(&self, chunk: u64) -> u64 {
        self.end_offset - self.start(chunk)
    }

    /// Whether a reader that needs chunk `next`, and was handed the chunks before `joined` as
    /// replay, has more live data ahead of it than the replay may hold.
    ///
    /// The replay itself doesn't count: whoever has just been handed a full one would be too late
    /// at once. A reader may always lag one chunk.
    #[must_use]
    pub fn lags(&self, next: u64, joined: u64) -> bool {
        self.exceeds(next.max(joined), 0)
    }

    /// Whether that reader would lag after one more chunk of up to `chunk_bytes`.
    #[must_use]
    pub fn would_lag(&self, next: u64, joined: u64, chunk_bytes: usize) -> bool {
        let from = next.max(joined);
        from < self.end() && self.exceeds(from, chunk_bytes)
    }

    fn exceeds(&self, from: u64, more: usize) -> bool {
        let extra = u64::from(more > 0);
        let chunks = self.end() - from + extra;
        let bytes = self.bytes_from(from) + more as u64;
        chunks > 1 && (chunks > self.max_chunks as u64 || (self.max_bytes > 0 && bytes > self.max_bytes))
    }

    /// Forgets the chunks before the window that no reader needs, `needed` being the oldest one a
    /// reader does need. Gives how many were forgotten.
    pub fn trim(&mut self, needed: Option<u64>) -> usize {
        let keep = needed.map_or(self.window, |chunk| chunk.min(self.window)).max(self.first);
        let forgotten = usize::try_from(keep - self.first).unwrap_or(usize::MAX).min(self.starts.len());
        self.starts.drain(..forgotten);
        self.first += forgotten as u64;
        forgotten
    }

    fn start(&self, chunk: u64) -> u64 {
        let at = usize::try_from(chunk.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.starts.get(at).copied().unwrap_or(self.end_offset)
    }
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
    fn without_a_replay_one_chunk_of_lag_is_allowed() {
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
