//! Bodies in pieces: never more than a buffer of them in memory.

use std::io::Write as _;

use super::chunked::{Chunks, Step};
use super::{Framing, Refusal};
use crate::io::{Buf, Io, IoError};

/// Longest piece of a body that is copied behind its head, bytes.
const GATHERED: usize = 2048;

/// Why a body did not arrive whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Who sends it ended it, or took too long, or sent nonsense.
    #[error("read the body: {0}")]
    Source(#[from] SourceError),
    /// Who receives it went away.
    #[error("write the body: {0}")]
    Sink(IoError),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("it ended too early")]
    Short,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Io(#[from] IoError),
}

/// How pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As they are.
    Plain,
    /// In chunks.
    Chunked,
}

/// What a relayed body came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Relayed {
    /// Bytes of data.
    pub(crate) bytes: u64,
}

/// Sends `head`, then the body that begins in `buf` (what is in it belongs to the source) and goes on in `from`.
/// Bytes after the body stay in `buf`.
pub(crate) async fn relay(
    from: &Io,
    buf: &mut Buf,
    framing: Framing,
    to: &Io,
    head: &mut Vec<u8>,
    coding: Coding,
) -> Result<Relayed, BodyError> {
    match framing {
        Framing::Empty => {
            to.write(head).await.map_err(BodyError::Sink)?;
            Ok(Relayed::default())
        }
        Framing::Length(length) => plain(from, buf, Some(length), to, head, coding).await,
        Framing::UntilClose => plain(from, buf, None, to, head, coding).await,
        Framing::Chunked => chunked(from, buf, to, head, coding).await,
    }
}

/// A body with a length, or one that ends with its stream.
async fn plain(
    from: &Io,
    buf: &mut Buf,
    length: Option<u64>,
    to: &Io,
    head: &mut Vec<u8>,
    coding: Coding,
) -> Result<Relayed, BodyError> {
    let mut done = 0u64;
    loop {
        let left = length.map_or(u64::MAX, |length| length - done);
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let piece = &buf.filled()[..now];
        match coding {
            // One buffer and `send` cost less than `writev` of two as long as little is copied.
            Coding::Plain if now <= GATHERED => {
                head.extend_from_slice(piece);
                to.write(head).await.map_err(BodyError::Sink)?;
            }
            Coding::Plain => to.write_all([head, piece, b""]).await.map_err(BodyError::Sink)?,
            Coding::Chunked if now > 0 => {
                let _ = write!(head, "{now:x}\r\n"); // A vector takes everything.
                to.write_all([head, piece, b"\r\n"]).await.map_err(BodyError::Sink)?;
            }
            Coding::Chunked => to.write(head).await.map_err(BodyError::Sink)?,
        }
        head.clear();
        buf.consume(now);
        done += now as u64;
        if length == Some(done) {
            break;
        }
        if from.fill(buf).await.map_err(SourceError::Io)? == 0 {
            match length {
                Some(_) => return Err(SourceError::Short.into()),
                None => break,
            }
        }
    }
    if coding == Coding::Chunked {
        to.write(b"0\r\n\r\n").await.map_err(BodyError::Sink)?;
    }
    Ok(Relayed { bytes: done })
}

/// A body in chunks; they are checked, and written anew.
async fn chunked(from: &Io, buf: &mut Buf, to: &Io, head: &mut Vec<u8>, coding: Coding) -> Result<Relayed, BodyError> {
    let mut chunks = Chunks::new();
    let mut done = 0u64;
    loop {
        while !buf.is_empty() {
            match chunks.step(buf.filled()).map_err(SourceError::Refused)? {
                Step::Skip(n) => buf.consume(n),
                Step::Data(n) => {
                    // Gathered with the head and other chunks of the same read, and sent with one call.
                    if coding == Coding::Chunked {
                        let _ = write!(head, "{n:x}\r\n");
                    }
                    head.extend_from_slice(&buf.filled()[..n]);
                    if coding == Coding::Chunked {
                        head.extend_from_slice(b"\r\n");
                    }
                    buf.consume(n);
                    done += n as u64;
                }
                Step::End(n) => {
                    buf.consume(n);
                    if coding == Coding::Chunked {
                        head.extend_from_slice(b"0\r\n\r\n");
                    }
                    to.write(head).await.map_err(BodyError::Sink)?;
                    head.clear();
                    return Ok(Relayed { bytes: done });
                }
            }
        }
        to.write(head).await.map_err(BodyError::Sink)?;
        head.clear();
        if from.fill(buf).await.map_err(SourceError::Io)? == 0 {
            return Err(SourceError::Short.into());
        }
    }
}
