//! The last words of a guest's console, and of its monitor: what a machine says while nobody can ask it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are kept; what came before them is dropped. It is also what a pipe takes at once.
pub const KEPT: usize = 64 * 1024;

/// Bytes that are handed on at once.
const PIECE: usize = 16 * 1024;

/// The end of a stream of text.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// Bytes that came before those.
    dropped: u64,
}

/// How far somebody has read; the beginning by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Position(u64);

impl Console {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to it.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        let skipped = bytes.len().saturating_sub(KEPT);
        kept.bytes.extend(&bytes[skipped..]);
        let excess = kept.bytes.len().saturating_sub(KEPT);
        kept.bytes.drain(..excess);
        kept.dropped += (skipped + excess) as u64;
    }

    /// The next piece for one who has read up to there; what was dropped meanwhile is passed over.
    #[must_use]
    pub fn after(&self, position: &mut Position) -> Option<Vec<u8>> {
        let kept = self.lock();
        let from = position.0.saturating_sub(kept.dropped) as usize;
        let piece: Vec<u8> = kept.bytes.iter().skip(from).take(PIECE).copied().collect();
        position.0 = position.0.max(kept.dropped) + piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }

    /// Whether there is such a piece.
    #[must_use]
    pub fn has_after(&self, position: &Position) -> bool {
        let kept = self.lock();
        position.0 < kept.dropped + kept.bytes.len() as u64
    }

    /// All that is kept.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.iter().copied().collect()
    }

    /// The last line that is not empty, as text without control characters.
    #[must_use]
    pub fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.bytes()).into_owned();
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).take(300).collect())
    }

    /// Whether the kept text has `words` in it.
    #[must_use]
    pub fn contains(&self, words: &str) -> bool {
        self.bytes().windows(words.len()).any(|window| window == words.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let console = Console::default();
        console.push(b"begin\n");
        console.push(&vec![b'x'; KEPT]);
        console.push(b"\nlast words\x1b\r\n\n");
        assert_eq!(console.bytes().len(), KEPT);
        assert_eq!(console.last_line().as_deref(), Some("last words"));
        assert!(console.contains("last words") && !console.contains("begin"));
    }

    #[test]
    fn readers_get_each_byte_once_and_skip_what_was_dropped() {
        let (console, mut position) = (Console::default(), Position::default());
        console.push(b"one");
        assert_eq!(console.after(&mut position).as_deref(), Some(&b"one"[..]));
        assert!(!console.has_after(&position) && console.after(&mut position).is_none());
        console.push(&vec![b'x'; 2 * KEPT]);
        console.push(b"two");
        let mut rest = Vec::new();
        while let Some(piece) = console.after(&mut position) {
            rest.extend(piece);
        }
        assert_eq!(rest, console.bytes());
    }
}
