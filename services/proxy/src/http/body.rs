//! Bodies as they come in, from any version of HTTP, a piece at a time; and bodies that are held in memory because
//! a rule or a plugin looks at them.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;

use crate::cgi::Output;
use crate::http1::body::SourceError;
use crate::http1::chunked::{Chunks, Step};
use crate::http1::{Framing, Refusal};
use crate::http3::stream::{Receiving, broken};
use crate::io::{Buf, Io, IoError, Slot};

/// Waits for `future` until the slot's deadline.
pub(crate) async fn within<F: Future>(slot: &Slot, future: F) -> Result<F::Output, IoError> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Ok(value)),
        Poll::Pending if slot.poll_expired(cx) => Poll::Ready(Err(IoError::TimedOut)),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Where a body comes from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    Empty,
    /// All of it is in memory.
    Whole(Bytes),
    One(One<'a>),
    Two(Two<'a>),
    Three(Box<Three<'a>>),
    Program(Box<Output<'a>>),
}

/// A body of HTTP/1.1.
#[derive(Debug)]
pub(crate) struct One<'a> {
    io: &'a Io,
    buf: &'a mut Buf,
    rest: Rest,
    /// The sender waits for `100 Continue`.
    asked: bool,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    UntilClose,
    Chunks(Chunks),
    Done,
}

/// A body of HTTP/2.
#[derive(Debug)]
pub(crate) struct Two<'a> {
    stream: RecvStream,
    slot: &'a Slot,
    /// Bytes that were handed out and that the sender may not yet replace by others.
    owed: usize,
}

/// A body of HTTP/3.
#[derive(Debug)]
pub(crate) struct Three<'a> {
    stream: Receiving,
    slot: &'a Slot,
    /// A piece that came with the head.
    early: Option<Bytes>,
    /// How long it says it is, and how much of it came. (Nobody else compares the two.)
    declared: Option<u64>,
    came: u64,
    /// All of it was read, trailers too.
    over: bool,
}

impl<'a> Source<'a> {
    /// What of a body is in `buf` belongs to it, and the rest follows in `io`. With `asked`, the sender is told to go
    /// on before anything is read.
    pub(crate) fn one(io: &'a Io, buf: &'a mut Buf, framing: Framing, asked: bool) -> Self {
        let rest = match framing {
            Framing::Empty | Framing::Length(0) => return Self::Empty,
            Framing::Length(n) => Rest::Length(n),
            Framing::Chunked => Rest::Chunks(Chunks::new()),
            Framing::UntilClose => Rest::UntilClose,
        };
        Self::One(One { io, buf, rest, asked })
    }

    pub(crate) fn two(stream: RecvStream, slot: &'a Slot) -> Self {
        if stream.is_end_stream() { Self::Empty } else { Self::Two(Two { stream, slot, owed: 0 }) }
    }

    pub(crate) fn three(stream: Receiving, slot: &'a Slot, declared: Option<u64>, early: Option<Bytes>) -> Self {
        Self::Three(Box::new(Three { stream, slot, early, declared, came: 0, over: false }))
    }

    /// Trailers may follow the data.
    fn has_trailers(&self) -> bool {
        matches!(self, Self::Two(_) | Self::Three(_))
    }

    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        match self {
            Self::Empty => Ok(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Ok((!bytes.is_empty()).then_some(bytes))
            }
            Self::One(one) => one.next().await,
            Self::Two(two) => two.next().await,
            Self::Three(three) => three.next().await,
            Self::Program(output) => output.next().await,
        }
    }

    /// Nothing comes after what was handed out, not even trailers.
    fn is_over(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::One(one) => matches!(one.rest, Rest::Done),
            Self::Two(two) => two.stream.is_end_stream(),
            Self::Three(three) => three.over,
            Self::Program(output) => output.is_over(),
        }
    }

    async fn trailers(&mut self) -> Result<Option<HeaderMap>, SourceError> {
        match self {
            Self::Two(two) => Ok(within(two.slot, poll_fn(|cx| two.stream.poll_trailers(cx))).await??),
            Self::Three(three) if !three.over => {
                let (slot, stream) = (three.slot, &mut three.stream);
                let trailers = within(slot, poll_fn(|cx| stream.poll_trailers(cx))).await?;
                three.over = true;
                Ok(trailers.map_err(broken)?)
            }
            _ => Ok(None),
        }
    }
}

impl One<'_> {
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if matches!(self.rest, Rest::Done) {
                return Ok(None);
            }
            if self.buf.is_empty() {
                if std::mem::take(&mut self.asked) {
                    self.io.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
                if self.io.fill(self.buf).await? == 0 {
                    if matches!(self.rest, Rest::UntilClose) {
                        self.rest = Rest::Done;
                        return Ok(None);
                    }
                    return Err(SourceError::Short);
                }
            }
            let here = self.buf.filled();
            let piece = match &mut self.rest {
                Rest::Length(left) => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(here.len());
                    let piece = Bytes::copy_from_slice(&here[..n]);
                    *left -= n as u64;
                    if *left == 0 {
                        self.rest = Rest::Done;
                    }
                    piece
                }
                Rest::UntilClose => Bytes::copy_from_slice(here),
                Rest::Chunks(chunks) => {
                    let piece = match chunks.step(here)? {
                        Step::Data(n) => Bytes::copy_from_slice(&here[..n]),
                        Step::Skip(n) => {
                            self.buf.consume(n);
                            continue;
                        }
                        Step::End(n) => {
                            self.buf.consume(n);
                            self.rest = Rest::Done;
                            return Ok(None);
                        }
                    };
                    self.buf.consume(piece.len());
                    return Ok(Some(piece));
                }
                Rest::Done => return Ok(None),
            };
            self.buf.consume(piece.len());
            return Ok(Some(piece));
        }
    }
}

impl Two<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let owed = std::mem::take(&mut self.owed);
            if owed > 0 {
                self.stream.flow_control().release_capacity(owed)?;
            }
            match within(self.slot, poll_fn(|cx| self.stream.poll_data(cx))).await? {
                None => return Ok(None),
                Some(bytes) => {
                    let bytes = bytes?;
                    self.owed = bytes.len();
                    self.slot.touch();
                    if !bytes.is_empty() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

impl Three<'_> {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            let piece = match self.early.take() {
                Some(early) => Some(early),
                None if self.over => None,
                None => within(self.slot, poll_fn(|cx| self.stream.poll_data(cx))).await?.map_err(broken)?,
            };
            self.came += piece.as_ref().map_or(0, |p| p.len() as u64);
            match (self.declared, &piece) {
                (Some(declared), _) if self.came > declared => {
                    return Err(Refusal::bad("the body is longer than it says").into());
                }
                (Some(declared), None) if self.came < declared => return Err(SourceError::Short),
                _ => self.slot.touch(),
            }
            match piece {
                Some(empty) if empty.is_empty() => {}
                piece => return Ok(piece),
            }
        }
    }
}

/// A body, of which the beginning may be held.
#[derive(Debug)]
pub(crate) struct Body<'a> {
    source: Source<'a>,
    held: Vec<Bytes>,
    /// How many of the held pieces were handed out.
    given: usize,
    /// Pieces were handed out that are not held.
    streamed: bool,
    ended: bool,
    /// Something took the place of a body that was not read to its end: the rest may still come.
    pub(crate) abandoned: bool,
    /// Bytes that came in.
    pub(crate) bytes: u64,
}

impl<'a> Body<'a> {
    pub(crate) fn new(source: Source<'a>) -> Self {
        let ended = matches!(source, Source::Empty);
        Self { source, held: Vec::new(), given: 0, streamed: false, ended, abandoned: false, bytes: 0 }
    }

    /// Everything was read from the sender.
    pub(crate) fn is_read(&self) -> bool {
        self.ended || self.source.is_over()
    }

    /// There is nothing more to hand out.
    pub(crate) fn is_over(&self) -> bool {
        // Held data does not mean that the trailers are there, too.
        let trailers = self.source.has_trailers() && !self.source.is_over();
        self.given == self.held.len() && (self.ended || self.source.is_over()) && !trailers
    }

    /// Whether all that was handed out can be handed out again.
    pub(crate) fn can_repeat(&self) -> bool {
        self.ended && !self.streamed
    }

    /// Whether what was handed out so far, if anything, can be handed out again before the rest.
    pub(crate) fn is_held(&self) -> bool {
        !self.streamed
    }

    pub(crate) fn repeat(&mut self) {
        self.given = 0;
    }

    async fn read(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.ended {
            return Ok(None);
        }
        let piece = self.source.next().await?;
        match &piece {
            Some(piece) => self.bytes += piece.len() as u64,
            // Trailers are still to come, but no data.
            None => self.ended = true,
        }
        if matches!(self.source, Source::Empty) || (self.source.is_over() && !self.source.has_trailers()) {
            self.ended = true;
        }
        Ok(piece)
    }

    /// Reads until the end or until there are more than `limit` bytes, and keeps all of it; whether that was the end.
    pub(crate) async fn hold(&mut self, limit: u64) -> Result<bool, SourceError> {
        while !self.ended && self.bytes <= limit {
            if let Some(piece) = self.read().await? {
                self.held.push(piece);
            }
        }
        Ok(self.ended && self.bytes <= limit)
    }

    /// At most `limit` bytes of what is held, and whether there was more.
    pub(crate) fn view(&self, limit: usize) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        for piece in &self.held {
            let room = limit - all.len();
            all.extend_from_slice(&piece[..piece.len().min(room)]);
        }
        (all, !self.ended || self.bytes > limit as u64)
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        if let Some(piece) = self.held.get(self.given) {
            self.given += 1;
            return Ok(Some(piece.clone()));
        }
        let piece = self.read().await?;
        self.streamed |= piece.is_some();
        Ok(piece)
    }

    /// Something else takes its place; what it was is not read on.
    pub(crate) fn replace(&mut self, source: Source<'a>) {
        let abandoned = self.abandoned || !self.is_read();
        *self = Self { bytes: self.bytes, abandoned, ..Self::new(source) };
    }

    /// What follows the data.
    pub(crate) async fn trailers(&mut self) -> Result<Option<HeaderMap>, SourceError> {
        self.source.trailers().await
    }
}
