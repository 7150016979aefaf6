//! One type for every kind of stream, and reads and writes that know their connection's deadline.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::{Buf, Slot};

/// A stream of bytes.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// From a client, decrypted here.
    Tls(Box<TlsStream<TcpStream>>),
    /// To an upstream, encrypted here.
    Secure(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// To a program and back.
    Pipes(Box<Pipes>),
}

/// A program's standard input, until it is shut, and output.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) input: Option<pipe::Sender>,
    pub(crate) output: pipe::Receiver,
}

impl Pipes {
    fn poll_input<T>(&mut self, f: impl FnOnce(Pin<&mut pipe::Sender>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut self.input {
            Some(input) => f(Pin::new(input)),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }
}

/// Why a read or a write did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IoError {
    #[error("a time limit passed")]
    TimedOut,
    #[error(transparent)]
    System(#[from] io::Error),
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
            Self::Secure(s) => Pin::new(s).poll_read(cx, buf),
            Self::Pipes(s) => Pin::new(&mut s.output).poll_read(cx, buf),
        }
    }

    fn poll_write_vectored(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, parts),
            Self::Unix(s) => Pin::new(s).poll_write_vectored(cx, parts),
            Self::Tls(s) => Pin::new(s).poll_write_vectored(cx, parts),
            Self::Secure(s) => Pin::new(s).poll_write_vectored(cx, parts),
            Self::Pipes(s) => s.poll_input(|input| input.poll_write_vectored(cx, parts)),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Unix(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Tls(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Secure(s) => Pin::new(s).poll_write(cx, bytes),
            Self::Pipes(s) => s.poll_input(|input| input.poll_write(cx, bytes)),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
            Self::Secure(s) => Pin::new(s).poll_shutdown(cx),
            Self::Pipes(s) => {
                s.input = None;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Sends what encryption still holds back.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::Pipes(_) => Poll::Ready(Ok(())),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
            Self::Secure(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_read_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_read_ready(cx),
            Self::Unix(s) => s.poll_read_ready(cx),
            Self::Tls(s) => {
                let (tcp, session) = s.get_mut();
                // What was decrypted already makes no noise on the socket.
                match session.process_new_packets() {
                    Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {
                        tcp.poll_read_ready(cx)
                    }
                    _ => Poll::Ready(Ok(())),
                }
            }
            // Nobody waits for the first byte of an upstream without a buffer.
            Self::Secure(_) | Self::Pipes(_) => Poll::Ready(Ok(())),
        }
    }

    /// Whether an idle stream is still good: nothing came in, not even its end.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let read = match self {
            Self::Tcp(s) => s.try_read(&mut byte),
            Self::Unix(s) => s.try_read(&mut byte),
            // What a program wrote is never used again.
            Self::Tls(_) | Self::Pipes(_) => return false,
            Self::Secure(s) => {
                // Tickets that came after the handshake are taken in; data or the end make it ready.
                let mut cx = Context::from_waker(std::task::Waker::noop());
                return Pin::new(s).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending();
            }
        };
        matches!(read, Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// The same with a question to the kernel, for requests that cannot be repeated.
    pub(crate) fn is_quiet_for_sure(&mut self) -> bool {
        use std::os::fd::AsFd as _;
        if matches!(self, Self::Secure(_)) && !self.is_quiet() {
            return false;
        }
        let mut byte = [0u8];
        let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
        let fd = match &*self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
            Self::Tls(_) | Self::Pipes(_) => return false,
            Self::Secure(s) => s.get_ref().0.as_fd(),
        };
        matches!(rustix::net::recv(fd, &mut byte, flags), Err(rustix::io::Errno::AGAIN))
    }
}

/// For the libraries that speak HTTP/2.
impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Self::poll_read(self.get_mut(), cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Self::poll_write_vectored(self.get_mut(), cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_shutdown(self.get_mut(), cx)
    }
}

/// A stream that several futures of one task use in turn, each poll for itself, under one deadline.
#[derive(Debug)]
pub(crate) struct Io {
    stream: RefCell<Stream>,
    slot: Rc<Slot>,
}

impl Io {
    pub(crate) fn new(stream: Stream, slot: Rc<Slot>) -> Self {
        Self { stream: RefCell::new(stream), slot }
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The slot, for another stream under the same deadline.
    pub(crate) fn share_slot(&self) -> Rc<Slot> {
        Rc::clone(&self.slot)
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream.into_inner()
    }

    /// Reads once into the buffer's spare room; 0 at the end of the stream. The time limit counts from then again.
    pub(crate) async fn fill(&self, buf: &mut Buf) -> Result<usize, IoError> {
        let n = poll_fn(|cx| self.poll_fill(cx, buf)).await?;
        self.slot.touch();
        Ok(n)
    }

    /// The same, leaving the deadline where it is.
    pub(crate) async fn fill_within(&self, buf: &mut Buf) -> Result<usize, IoError> {
        poll_fn(|cx| self.poll_fill(cx, buf)).await
    }

    /// Reads until the buffer, which has room for them, holds so many bytes, or this time has passed. An end is read again
    /// later, and an error is one then.
    pub(crate) async fn fill_soon(&self, buf: &mut Buf, bytes: usize, within: Duration) {
        let rest = async { while buf.len() < bytes && matches!(self.fill(buf).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(within, rest).await;
    }

    fn poll_fill(&self, cx: &mut Context<'_>, buf: &mut Buf) -> Poll<Result<usize, IoError>> {
        let mut room = ReadBuf::new(buf.spare());
        debug_assert!(room.remaining() > 0, "a full buffer looks like the end of the stream");
        match self.stream.borrow_mut().poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let n = room.filled().len();
                buf.grew(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e.into())),
            Poll::Pending => self.expired(cx),
        }
    }

    fn expired<T>(&self, cx: &mut Context<'_>) -> Poll<Result<T, IoError>> {
        if self.slot.poll_expired(cx) { Poll::Ready(Err(IoError::TimedOut)) } else { Poll::Pending }
    }

    /// Waits until there is something to read (or the end), holding no buffer meanwhile.
    pub(crate) async fn readable(&self) -> Result<(), IoError> {
        poll_fn(|cx| {
            let ready = self.stream.borrow_mut().poll_read_ready(cx);
            match ready {
                Poll::Ready(result) => Poll::Ready(result.map_err(IoError::from)),
                Poll::Pending => self.expired(cx),
            }
        })
        .await
    }

    /// Writes all of `bytes`.
    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), IoError> {
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match self.stream.borrow_mut().poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(closed())),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e.into())),
                    Poll::Pending => return self.expired(cx),
                }
                self.slot.touch();
            }
            self.poll_flush(cx)
        })
        .await
    }

    /// Writes three pieces, one after the other, with as few calls as the kernel allows.
    pub(crate) async fn write_all(&self, pieces: [&[u8]; 3]) -> Result<(), IoError> {
        let total: usize = pieces.iter().map(|p| p.len()).sum();
        let mut done = 0;
        poll_fn(|cx| {
            while done < total {
                let n = ready!(self.poll_write_from(cx, &pieces, done))?;
                if n == 0 {
                    return Poll::Ready(Err(closed()));
                }
                done += n;
                self.slot.touch();
            }
            self.poll_flush(cx)
        })
        .await
    }

    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), IoError>> {
        match self.stream.borrow_mut().poll_flush(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(IoError::from)),
            Poll::Pending => self.expired(cx),
        }
    }

    fn poll_write_from(&self, cx: &mut Context<'_>, pieces: &[&[u8]; 3], done: usize) -> Poll<Result<usize, IoError>> {
        let mut skip = done;
        let mut rest = [IoSlice::new(&[]); 3];
        let mut used = 0;
        for piece in pieces {
            if skip >= piece.len() {
                skip -= piece.len();
            } else {
                rest[used] = IoSlice::new(&piece[skip..]);
                used += 1;
                skip = 0;
            }
        }
        let mut stream = self.stream.borrow_mut();
        let written = match &rest[..used] {
            [one] => stream.poll_write(cx, one),
            many => stream.poll_write_vectored(cx, many),
        };
        match written {
            Poll::Ready(result) => Poll::Ready(result.map_err(IoError::from)),
            Poll::Pending => self.expired(cx),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) async fn shutdown(&self) -> Result<(), IoError> {
        poll_fn(|cx| match self.stream.borrow_mut().poll_shutdown(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(IoError::from)),
            Poll::Pending => self.expired(cx),
        })
        .await
    }
}

fn closed() -> IoError {
    IoError::System(io::ErrorKind::WriteZero.into())
}
