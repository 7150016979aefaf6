//! QUIC as `h3` wants to see it: its traits, by `quinn`.
//!
//! Invariant: whoever drops the sending half of a stream before its end resets it. (`quinn` would end it, and the peer
//! take what was torn for whole.)

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use quinn::VarInt;

use super::frames::Frames;

/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

type Local<T> = Pin<Box<dyn Future<Output = T>>>;
type Opening<T> = Local<Result<T, quinn::ConnectionError>>;
type Pair = (quinn::SendStream, quinn::RecvStream);
type Stopped = Local<Result<Option<VarInt>, quinn::StoppedError>>;

/// For each stream of requests that came in: what becomes of its answer at the peer, and whether it was reset here.
pub(crate) type Watch = Rc<RefCell<HashMap<StreamId, (Stopped, Rc<Cell<bool>>)>>>;

/// Code of an error as QUIC carries it.
pub(crate) fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX)
}

/// A connection.
pub(crate) struct Quic {
    connection: quinn::Connection,
    requests: Opening<Pair>,
    others: Opening<quinn::RecvStream>,
    opener: Opener,
    watch: Watch,
}

impl Quic {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        let watch = Watch::default();
        Self {
            requests: next_request(&connection),
            others: next_other(&connection),
            opener: Opener::new(connection.clone()),
            watch,
            connection,
        }
    }

    pub(crate) fn watch(&self) -> Watch {
        Rc::clone(&self.watch)
    }
}

fn next_request(connection: &quinn::Connection) -> Opening<Pair> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_bi().await })
}

fn next_other(connection: &quinn::Connection) -> Opening<quinn::RecvStream> {
    let connection = connection.clone();
    Box::pin(async move { connection.accept_uni().await })
}

impl quic::Connection<Bytes> for Quic {
    type RecvStream = RecvHalf;
    type OpenStreams = Opener;

    fn poll_accept_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<RecvHalf, ConnectionErrorIncoming>> {
        let accepted = ready!(self.others.as_mut().poll(cx));
        self.others = next_other(&self.connection);
        let stream = accepted.map_err(lost)?;
        Poll::Ready(Ok(RecvHalf::new(self.connection.clone(), stream, Frames::of_one_way())))
    }

    fn poll_accept_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BothHalves, ConnectionErrorIncoming>> {
        let accepted = ready!(self.requests.as_mut().poll(cx));
        self.requests = next_request(&self.connection);
        let (send, recv) = accepted.map_err(lost)?;
        let mut halves = BothHalves::new(self.connection.clone(), send, recv);
        let stopped: Stopped = Box::pin(halves.send.stream.stopped());
        let entry = (stopped, Rc::clone(&halves.send.broken));
        self.watch.borrow_mut().insert(stream_id(halves.send.stream.id()), entry);
        halves.send.watch = Some(Rc::clone(&self.watch));
        Poll::Ready(Ok(halves))
    }

    fn opener(&self) -> Opener {
        self.opener.clone()
    }
}

impl quic::OpenStreams<Bytes> for Quic {
    type BidiStream = BothHalves;
    type SendStream = SendHalf;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BothHalves, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendHalf, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens streams on a connection.
pub(crate) struct Opener {
    connection: quinn::Connection,
    requests: Option<Opening<Pair>>,
    others: Option<Opening<quinn::SendStream>>,
}

impl Opener {
    fn new(connection: quinn::Connection) -> Self {
        Self { connection, requests: None, others: None }
    }
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self::new(self.connection.clone())
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BothHalves;
    type SendStream = SendHalf;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BothHalves, StreamErrorIncoming>> {
        let connection = self.connection.clone();
        let opening = self.requests.get_or_insert_with(|| Box::pin(async move { connection.open_bi().await }));
        let opened = ready!(opening.as_mut().poll(cx));
        self.requests = None;
        let (send, recv) = opened.map_err(lost_with_stream)?;
        Poll::Ready(Ok(BothHalves::new(self.connection.clone(), send, recv)))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendHalf, StreamErrorIncoming>> {
        let connection = self.connection.clone();
        let opening = self.others.get_or_insert_with(|| Box::pin(async move { connection.open_uni().await }));
        let opened = ready!(opening.as_mut().poll(cx));
        self.others = None;
        Poll::Ready(opened.map(SendHalf::new).map_err(lost_with_stream))
    }

    fn close(&mut self, error: Code, reason: &[u8]) {
        self.connection.close(code(error), reason);
    }
}

/// A stream that carries a request and its answer.
pub(crate) struct BothHalves {
    send: SendHalf,
    recv: RecvHalf,
}

impl BothHalves {
    fn new(connection: quinn::Connection, send: quinn::SendStream, recv: quinn::RecvStream) -> Self {
        Self { send: SendHalf::new(send), recv: RecvHalf::new(connection, recv, Frames::of_request()) }
    }
}

impl quic::BidiStream<Bytes> for BothHalves {
    type SendStream = SendHalf;
    type RecvStream = RecvHalf;

    fn split(self) -> (SendHalf, RecvHalf) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for BothHalves {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for BothHalves {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// The half that is written to.
pub(crate) struct SendHalf {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// It was ended, or reset.
    over: bool,
    /// It was reset.
    broken: Rc<Cell<bool>>,
    watch: Option<Watch>,
}

impl SendHalf {
    fn new(stream: quinn::SendStream) -> Self {
        Self { stream, writing: None, over: false, broken: Rc::default(), watch: None }
    }
}

impl quic::SendStream<Bytes> for SendHalf {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk())).map_err(|e| match e {
                    quinn::WriteError::Stopped(code) => {
                        StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() }
                    }
                    quinn::WriteError::ConnectionLost(e) => lost_with_stream(e),
                    other => StreamErrorIncoming::Unknown(Box::new(other)),
                })?;
                data.advance(written);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            // Whoever waited for the write before gave it up, and what is written now would follow half of it.
            return Err(StreamErrorIncoming::Unknown("a write was given up before it was through".into()));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.over = true;
        Poll::Ready(self.stream.finish().map_err(|e| StreamErrorIncoming::Unknown(Box::new(e))))
    }

    fn reset(&mut self, reset_code: u64) {
        self.over = true;
        self.broken.set(true);
        // One that is closed already needs no reset.
        let _ = self.stream.reset(VarInt::from_u64(reset_code).unwrap_or(VarInt::MAX));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.borrow_mut().remove(&stream_id(self.stream.id()));
        }
        if !self.over {
            self.broken.set(true);
            let _ = self.stream.reset(code(Code::H3_REQUEST_CANCELLED)); // As above.
        }
    }
}

/// The half that is read from.
pub(crate) struct RecvHalf {
    connection: quinn::Connection,
    stream: quinn::RecvStream,
    frames: Frames,
    /// What was read and not handed out.
    rest: BytesMut,
}

impl RecvHalf {
    fn new(connection: quinn::Connection, stream: quinn::RecvStream, frames: Frames) -> Self {
        Self { connection, stream, frames, rest: BytesMut::new() }
    }
}

impl quic::RecvStream for RecvHalf {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if self.rest.is_empty() {
            self.rest.resize(PIECE, 0);
            let read = self.stream.poll_read(cx, &mut self.rest);
            self.rest.truncate(if let Poll::Ready(Ok(n)) = read { n } else { 0 });
            match ready!(read) {
                Ok(0) => return Poll::Ready(Ok(None)),
                Ok(_) => {}
                Err(quinn::ReadError::Reset(code)) => {
                    let error_code = code.into_inner();
                    return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code }));
                }
                Err(quinn::ReadError::ConnectionLost(e)) => return Poll::Ready(Err(lost_with_stream(e))),
                Err(other) => return Poll::Ready(Err(StreamErrorIncoming::Unknown(Box::new(other)))),
            }
        }
        let Ok(n) = self.frames.piece(&self.rest) else {
            self.connection.close(code(Code::H3_EXCESSIVE_LOAD), b"a frame is too large");
            return Poll::Ready(Err(lost_with_stream(quinn::ConnectionError::LocallyClosed)));
        };
        Poll::Ready(Ok(Some(self.rest.split_to(n).freeze())))
    }

    fn stop_sending(&mut self, error_code: u64) {
        // One that is closed already has stopped.
        let _ = self.stream.stop(VarInt::from_u64(error_code).unwrap_or(VarInt::MAX));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

/// Every number of a stream fits: both count to 2^62.
fn stream_id(id: quinn::StreamId) -> StreamId {
    let number: u64 = VarInt::from(id).into_inner();
    StreamId::try_from(number).unwrap_or_else(|_| unreachable!("{number} is no number of a stream"))
}

fn lost(error: quinn::ConnectionError) -> ConnectionErrorIncoming {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        quinn::ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

fn lost_with_stream(error: quinn::ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}

/// What became of an answer at the client.
pub(crate) struct Fate {
    /// Ends when the client has all of it, or wants no more.
    stopped: RefCell<Option<Stopped>>,
    unwanted: Cell<bool>,
    /// It was reset here, of which nothing comes back.
    broken: Rc<Cell<bool>>,
}

impl Fate {
    pub(crate) fn of(watch: &Watch, id: StreamId) -> Rc<Self> {
        let (stopped, broken) = watch.borrow_mut().remove(&id).unzip();
        let (stopped, broken) = (RefCell::new(stopped), broken.unwrap_or_default());
        Rc::new(Self { stopped, unwanted: Cell::new(false), broken })
    }

    /// The client wants no more of it.
    pub(crate) fn is_unwanted(&self, cx: &mut Context<'_>) -> bool {
        let mut stopped = self.stopped.borrow_mut();
        if let Some(future) = &mut *stopped
            && let Poll::Ready(fate) = future.as_mut().poll(cx)
        {
            *stopped = None;
            self.unwanted.set(!matches!(fate, Ok(None)));
        }
        self.unwanted.get()
    }

    /// Waits until the client has all of it, or wants no more.
    pub(crate) async fn settled(&self) {
        poll_fn(|cx| {
            let over = self.broken.get() || self.is_unwanted(cx) || self.stopped.borrow().is_none();
            if over { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
