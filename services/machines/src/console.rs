//! The last words of a guest's console, and of its monitor: what a machine says while nobody can ask it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes that are kept; what came before them is dropped. It is also what a pipe takes at once.
pub const KEPT: usize = 64 * 1024;

/// The end of a stream of text.
#[derive(Debug, Clone, Default)]
pub struct Console(Arc<Mutex<VecDeque<u8>>>);

impl Console {
    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to it.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        kept.extend(&bytes[bytes.len().saturating_sub(KEPT)..]);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    /// All that is kept.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
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

    /// Takes in a stream to its end.
    pub async fn follow(self, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            self.push(&buffer[..n]);
        }
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
}
