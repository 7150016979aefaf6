//! The decoder without the stream: bytes in, frames out.
//!
//! ```text
//!             length <= limit              length bytes there
//!   Header ───────────────────▶ (same) ────────────────────▶ frame, Header
//!     │ limit < length <= cap              length bytes gone
//!     ├───────────────────────▶ Draining ──────────────────▶ TooLarge (in step), Header
//!     │ length > cap, or not draining
//!     └───────────────────────▶ TooLarge (not in step), Broken ──▶ OutOfStep, for ever
//! ```

use bytes::{Buf as _, Bytes, BytesMut};

use crate::error::FrameError;
use crate::{HEADER, Oversize};

/// The least that is read at once: what fits a small frame and its successors.
const CHUNK: usize = 8 * 1024;

/// The most that is asked for at once, however much is still missing.
const LARGEST_CHUNK: usize = 1024 * 1024;

#[derive(Debug)]
enum State {
    Header,
    Draining { len: u64, left: u64 },
    Broken,
}

#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    oversize: Oversize,
    buffer: BytesMut,
    state: State,
}

impl Decoder {
    pub(crate) fn new(limit: usize, oversize: Oversize) -> Self {
        Self { limit, oversize, buffer: BytesMut::new(), state: State::Header }
    }

    /// The next frame, if all of it has arrived.
    pub(crate) fn pop(&mut self) -> Result<Option<Bytes>, FrameError> {
        if let State::Header = self.state
            && let Some(len) = self.announced()
        {
            if usize::try_from(len).is_ok_and(|len| len <= self.limit) {
                let end = HEADER + len as usize;
                if self.buffer.len() < end {
                    return Ok(None);
                }
                let mut frame = self.buffer.split_to(end);
                frame.advance(HEADER);
                return Ok(Some(frame.freeze()));
            }
            match self.oversize {
                Oversize::Drain { cap } if len <= cap => {
                    self.buffer.advance(HEADER);
                    self.state = State::Draining { len, left: len };
                }
                _ => {
                    self.state = State::Broken;
                    self.buffer = BytesMut::new();
                    return Err(FrameError::TooLarge { len, limit: self.limit, in_step: false });
                }
            }
        }
        match &mut self.state {
            State::Header => Ok(None),
            State::Broken => Err(FrameError::OutOfStep),
            State::Draining { len, left } => {
                let gone = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buffer.len());
                self.buffer.advance(gone);
                *left -= gone as u64;
                if *left > 0 {
                    return Ok(None);
                }
                let len = *len;
                self.state = State::Header;
                Err(FrameError::TooLarge { len, limit: self.limit, in_step: true })
            }
        }
    }

    /// The buffer to read into, with room: for what is missing, but never for more than has already come.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let missing = match self.state {
            State::Draining { left, .. } => usize::try_from(left).unwrap_or(usize::MAX),
            _ => self.announced().map_or(HEADER, |len| HEADER + len as usize).saturating_sub(self.buffer.len()),
        };
        let wanted = missing.min(self.buffer.len()).clamp(CHUNK, LARGEST_CHUNK);
        // Asking for it only when there is none keeps many small frames in one allocation.
        if self.buffer.capacity() == self.buffer.len() {
            self.buffer.reserve(wanted);
        }
        &mut self.buffer
    }

    pub(crate) fn between_frames(&self) -> bool {
        matches!(self.state, State::Header) && self.buffer.is_empty()
    }

    /// Whether the stream may end here; if not, how the frame is torn.
    pub(crate) fn end(&mut self) -> Result<(), FrameError> {
        let (have, want) = match self.state {
            State::Header if self.buffer.is_empty() => return Ok(()),
            State::Header => {
                let want = self.announced().map_or(HEADER as u64, |len| HEADER as u64 + len);
                (self.buffer.len() as u64, want)
            }
            State::Draining { len, left } => (HEADER as u64 + len - left, HEADER as u64 + len),
            State::Broken => return Err(FrameError::OutOfStep),
        };
        self.state = State::Broken;
        Err(FrameError::Torn { have, want })
    }

    /// What has been read beyond the frames that were taken.
    pub(crate) fn into_rest(self) -> BytesMut {
        self.buffer
    }

    fn announced(&self) -> Option<u64> {
        let header = self.buffer.first_chunk::<HEADER>()?;
        Some(u64::from(u32::from_be_bytes(*header)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(decoder: &mut Decoder, bytes: &[u8]) {
        for byte in bytes {
            decoder.room().extend_from_slice(&[*byte]);
        }
    }

    #[test]
    fn a_lying_length_reserves_nothing() {
        let mut decoder = Decoder::new(u32::MAX as usize, Oversize::Close);
        feed(&mut decoder, &u32::MAX.to_be_bytes());
        for arrived in [HEADER, 100, 10_000, 100_000, 3_000_000] {
            let more = arrived - decoder.buffer.len();
            feed(&mut decoder, &vec![0; more]);
            assert!(decoder.pop().expect("not yet").is_none());
            let reserved = decoder.room().capacity();
            assert!(reserved <= 2 * arrived + 2 * CHUNK, "{reserved} for {arrived}");
        }
    }

    #[test]
    fn draining_keeps_nothing() {
        let mut decoder = Decoder::new(10, Oversize::Drain { cap: u64::MAX });
        feed(&mut decoder, &50_000_000_u32.to_be_bytes());
        let mut left = 50_000_000;
        while left > 0 {
            let chunk = decoder.pop().map(|_| decoder.room().capacity() - decoder.buffer.len()).expect("draining");
            let chunk = chunk.min(left);
            decoder.buffer.extend_from_slice(&vec![0; chunk]);
            left -= chunk;
            assert!(decoder.buffer.capacity() <= 2 * CHUNK);
        }
        assert!(matches!(decoder.pop(), Err(FrameError::TooLarge { len: 50_000_000, limit: 10, in_step: true })));
        feed(&mut decoder, b"\0\0\0\x01x");
        assert_eq!(decoder.pop().expect("in step").as_deref(), Some(&b"x"[..]));
    }
}
