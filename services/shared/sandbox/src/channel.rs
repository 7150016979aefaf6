//! Messages with descriptors between two processes of ours: a sequenced-packet socket with whole messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

use crate::sys;
use crate::wire::{self, Packet};

/// One end of a connection. Its calls block; see [`Channel::into_async`].
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A message with the descriptors that came along.
#[derive(Debug)]
pub struct Message<T> {
    /// The message.
    pub body: T,
    /// The descriptors, in the order in which they were given.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Most descriptors that go with one message.
    pub const DESCRIPTORS_MAX: usize = wire::DESCRIPTORS - 1;

    /// Two connected ends.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = crate::spawner::pair()?;
        Ok((Self(a), Self(b)))
    }

    /// The end that this descriptor, an open sequenced-packet socket, is.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// The same end, for the runtime that is running.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn into_async(self) -> io::Result<AsyncChannel> {
        rustix::io::ioctl_fionbio(&self.0, true)?;
        Ok(AsyncChannel(sys::register(self.0)?))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The other end is closed, the message is too large, or (from a descriptor that does not block) there is no
    /// room: then nothing was sent.
    pub fn send(&self, body: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        Packet::new(body)?.send(self.0.as_fd(), descriptors)
    }

    /// Receives one message; `None` at the end of the connection.
    ///
    /// # Errors
    /// What came is no message of this type.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Message<T>>> {
        Ok(wire::receive(self.0.as_fd())?.map(|(body, descriptors)| Message { body, descriptors }))
    }
}

/// One end of a connection, whose calls wait without blocking the thread. Descriptions are shared: an end of which
/// somebody holds a duplicate does not block there either.
#[derive(Debug)]
pub struct AsyncChannel(AsyncFd<OwnedFd>);

impl AsyncChannel {
    /// As [`Channel::send`].
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub async fn send(&self, body: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let packet = Packet::new(body)?;
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(sent) = ready.try_io(|socket| packet.send(socket.as_fd(), descriptors)) {
                return sent;
            }
        }
    }

    /// As [`Channel::receive`].
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<Message<T>>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|socket| wire::receive(socket.as_fd())) {
                return Ok(received?.map(|(body, descriptors)| Message { body, descriptors }));
            }
        }
    }
}

impl AsFd for AsyncChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
