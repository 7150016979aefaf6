//! Frames as they come: in any pieces, too large, torn, with a liar at the other end.
#![allow(missing_docs)]

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;
use shipote_framing::{Codec, FrameError, MessageError, Oversize, Reader, read_message, write_frame, write_message};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that gives its pieces one by one, saying "not yet" before each.
struct Pieces {
    pieces: VecDeque<Vec<u8>>,
    waited: bool,
}

impl Pieces {
    fn new(pieces: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), waited: false }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.waited = !self.waited;
        if self.waited {
            return Poll::Pending;
        }
        if let Some(mut piece) = self.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(buffer.remaining()));
            buffer.put_slice(&piece);
            if !rest.is_empty() {
                self.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A sink that takes three bytes at first, later half of what it has.
#[derive(Default)]
struct Narrow(Vec<u8>);

impl AsyncWrite for Narrow {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let taken = bytes.len().min(3 + self.0.len() / 2);
        self.0.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a future that never waits for anything but [`Pieces`].
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

/// The next frame, where each wait of the stream drops the call and a new one goes on.
fn next_cancelled(reader: &mut Reader<Pieces>) -> Result<Option<Bytes>, FrameError> {
    loop {
        let mut future = pin!(reader.next());
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

fn wire(bodies: &[Vec<u8>]) -> Vec<u8> {
    let mut sink = Narrow::default();
    for body in bodies {
        run(write_frame(&mut sink, body, usize::MAX)).expect("written");
    }
    sink.0
}

#[test]
fn golden_bytes() {
    assert_eq!(wire(&[b"ab".to_vec(), Vec::new(), vec![0; 258]])[..12], *b"\0\0\0\x02ab\0\0\0\0\0\0");
    assert_eq!(wire(&[vec![7; 0x0001_0203]])[..5], [0, 1, 2, 3, 7]);
    let mut reader = Reader::new(Pieces::new([b"\0\0\0\x02ab\0\0\0\0".to_vec()]), 2);
    assert_eq!(run(reader.next()).expect("read").as_deref(), Some(&b"ab"[..]));
    assert_eq!(run(reader.next()).expect("read").as_deref(), Some(&b""[..]));
    assert_eq!(run(reader.next()).expect("end"), None);
    assert_eq!(run(reader.next()).expect("still the end"), None);
}

#[test]
fn every_split_gives_the_same_frames() {
    let bodies = [b"hello".to_vec(), Vec::new(), b"world!".to_vec()];
    let bytes = wire(&bodies);
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]].map(<[u8]>::to_vec);
            let mut reader = Reader::new(Pieces::new(pieces), 6);
            for body in &bodies {
                assert_eq!(next_cancelled(&mut reader).expect("read").as_deref(), Some(body.as_slice()));
            }
            assert_eq!(next_cancelled(&mut reader).expect("end"), None);
        }
    }
}

#[test]
fn every_cut_is_a_torn_frame() {
    let bytes = wire(&[b"hello".to_vec()]);
    for cut in 1..bytes.len() {
        let mut reader = Reader::new(Pieces::new([bytes[..cut].to_vec()]), 5);
        let want_expected = if cut < 4 { 4 } else { 9 };
        match run(reader.next()) {
            Err(FrameError::Torn { have, want }) => assert_eq!((have, want), (cut as u64, want_expected)),
            other => panic!("{cut}: {other:?}"),
        }
        assert!(matches!(run(reader.next()), Err(FrameError::OutOfStep)));
    }
}

#[test]
fn too_large_closes_or_is_read_past() {
    let bytes = wire(&[vec![1; 10], b"ok".to_vec()]);
    let mut reader = Reader::new(Pieces::new([bytes.clone()]), 9);
    let error = run(reader.next()).expect_err("too large");
    assert!(matches!(error, FrameError::TooLarge { len: 10, limit: 9, in_step: false }) && !error.in_step());
    assert!(matches!(run(reader.next()), Err(FrameError::OutOfStep)));

    for split in 0..=bytes.len() {
        let pieces = [bytes[..split].to_vec(), bytes[split..].to_vec()];
        let mut reader = Reader::with_oversize(Pieces::new(pieces), 9, Oversize::Drain { cap: 10 });
        let error = next_cancelled(&mut reader).expect_err("too large");
        assert!(matches!(error, FrameError::TooLarge { len: 10, limit: 9, in_step: true }) && error.in_step());
        assert_eq!(next_cancelled(&mut reader).expect("in step").as_deref(), Some(&b"ok"[..]));
        assert_eq!(next_cancelled(&mut reader).expect("end"), None);
    }

    let mut reader = Reader::with_oversize(Pieces::new([bytes.clone()]), 9, Oversize::Drain { cap: 9 });
    assert!(matches!(run(reader.next()), Err(FrameError::TooLarge { in_step: false, .. })));

    let mut reader = Reader::with_oversize(Pieces::new([bytes[..8].to_vec()]), 9, Oversize::Drain { cap: 10 });
    assert!(matches!(run(reader.next()), Err(FrameError::Torn { have: 8, want: 14 })));
}

#[test]
fn nothing_is_written_of_what_is_too_large() {
    let mut sink = Narrow::default();
    let error = run(write_frame(&mut sink, b"abc", 2)).expect_err("too large");
    assert!(matches!(error, FrameError::TooLarge { len: 3, limit: 2, in_step: true }));
    assert!(sink.0.is_empty());
}

#[test]
fn what_follows_a_frame_can_be_had() {
    let mut reader = Reader::new(Pieces::new([b"\0\0\0\x01xraw".to_vec(), b" and more".to_vec()]), 9);
    assert_eq!(run(reader.next()).expect("read").as_deref(), Some(&b"x"[..]));
    let (stream, rest) = reader.into_parts();
    assert_eq!((&rest[..], stream.pieces.len()), (&b"raw"[..], 1));
}

/// A codec for the tests: decimal numbers.
struct Decimal;

impl Codec<u32> for Decimal {
    type Error = std::num::ParseIntError;
    fn encode(&self, message: &u32) -> Result<Vec<u8>, Self::Error> {
        Ok(message.to_string().into_bytes())
    }
    fn decode(&self, body: &[u8]) -> Result<u32, Self::Error> {
        String::from_utf8_lossy(body).parse()
    }
}

#[test]
fn messages() {
    let mut sink = Narrow::default();
    run(write_message(&mut sink, &Decimal, &4711, 4)).expect("written");
    let error = run(write_message(&mut sink, &Decimal, &47110, 4)).expect_err("too large");
    assert!(matches!(error, MessageError::Frame(FrameError::TooLarge { .. })) && error.in_step());
    run(write_frame(&mut sink, b"x", 4)).expect("written");
    let mut reader = Reader::new(Pieces::new([sink.0]), 4);
    assert_eq!(run(read_message(&mut reader, &Decimal)).expect("read"), Some(4711));
    let error = run(read_message(&mut reader, &Decimal)).expect_err("no number");
    assert!(matches!(error, MessageError::Decode(_)) && error.in_step());
    assert_eq!(run(read_message(&mut reader, &Decimal)).expect("end"), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_written_is_read(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20_000), 0..4),
        sizes in prop::collection::vec(1..15_000_usize, 1..8),
    ) {
        let bytes = wire(&bodies);
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = after;
        }
        let mut reader = Reader::new(Pieces::new(pieces), 40_000);
        for body in &bodies {
            prop_assert_eq!(next_cancelled(&mut reader).expect("read"), Some(Bytes::from(body.clone())));
        }
        prop_assert_eq!(next_cancelled(&mut reader).expect("end"), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_end_or_an_error(
        pieces in prop::collection::vec(prop::collection::vec(prop_oneof![3 => Just(0), 1 => any::<u8>()], 0..40), 0..20),
        limit in 0..64_usize,
        cap in 0..100_000_u64,
    ) {
        let total: usize = pieces.iter().map(Vec::len).sum();
        let mut reader = Reader::with_oversize(Pieces::new(pieces), limit, Oversize::Drain { cap });
        let mut taken = 0;
        loop {
            match next_cancelled(&mut reader) {
                Ok(Some(frame)) => {
                    prop_assert!(frame.len() <= limit);
                    taken += 4 + frame.len();
                }
                Ok(None) => break,
                Err(FrameError::TooLarge { len, in_step: true, .. }) => {
                    prop_assert!(len > limit as u64 && len <= cap);
                    taken += 4 + usize::try_from(len).expect("small");
                }
                Err(_) => return Ok(()),
            }
        }
        prop_assert_eq!(taken, total, "a clean end means that every byte was accounted for");
    }
}
