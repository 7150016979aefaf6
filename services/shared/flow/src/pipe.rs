//! A pipe of our own, and moving bytes without reading them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

/// What came of trying to move bytes. Nothing here ever blocks on a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Bytes(usize),
    /// The source is empty and nobody can write to it any more.
    End,
    /// The source is empty or the sink is full.
    Later,
    /// Nobody reads the sink any more.
    Closed,
    Refused(Errno),
}

/// Moves up to `len` bytes from one descriptor to another; one of them is a pipe (splice(2)).
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, len: usize) -> Moved {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    outcome(|| rustix::pipe::splice(&from, None, &to, None, len, flags))
}

/// Copies references to up to `len` bytes from one pipe to another, which keeps them in the first
/// (tee(2)). Always begins at the oldest byte.
pub(crate) fn tee(from: impl AsFd, to: impl AsFd, len: usize) -> Moved {
    outcome(|| rustix::pipe::tee(&from, &to, len, SpliceFlags::NONBLOCK))
}

pub(crate) fn outcome(mut call: impl FnMut() -> rustix::io::Result<usize>) -> Moved {
    loop {
        return match call() {
            Ok(0) => Moved::End,
            Ok(bytes) => Moved::Bytes(bytes),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Moved::Later,
            Err(Errno::PIPE | Errno::CONNRESET) => Moved::Closed,
            Err(errno) => Moved::Refused(errno),
        };
    }
}

/// A pipe of our own, both ends.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
    /// In bytes, were every page of it full.
    pub(crate) capacity: usize,
}

impl Pipe {
    /// A pipe of the kernel's default size: 64 KiB, or less for a user over the limit of pages.
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let capacity = rustix::pipe::fcntl_getpipe_size(&reader)?;
        Ok(Self { reader, writer, capacity })
    }

    /// Enlarges the pipe to take `bytes`; whether it now can.
    pub(crate) fn make_room(&mut self, bytes: usize) -> bool {
        if self.capacity < bytes
            && let Ok(capacity) = rustix::pipe::fcntl_setpipe_size(&self.writer, bytes)
        {
            self.capacity = capacity;
        }
        self.capacity >= bytes
    }
}

/// Where bytes go that nobody wants any more.
#[derive(Debug)]
pub(crate) struct Trash(Option<OwnedFd>);

impl Trash {
    /// Without `/dev/null` (a confined process may lack it) full pipes are thrown away whole.
    pub(crate) fn open() -> Self {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
        Self(rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty()).ok())
    }

    /// Lets go of up to `len` bytes at the beginning of a pipe that holds them.
    pub(crate) fn drop_from(&self, pipe: BorrowedFd<'_>, len: usize) -> Moved {
        match &self.0 {
            Some(null) => splice(pipe, null, len),
            None => {
                let mut buffer = [0; 4096];
                let piece = len.min(buffer.len());
                outcome(|| rustix::io::read(pipe, &mut buffer[..piece]))
            }
        }
    }

    /// Empties a pipe that holds `bytes`, so that it can be used again; `None` if it can't be.
    pub(crate) fn empty(&self, pipe: Pipe, mut bytes: usize) -> Option<Pipe> {
        let null = self.0.as_ref()?;
        while bytes > 0 {
            match splice(&pipe.reader, null, bytes) {
                Moved::Bytes(moved) => bytes -= moved.min(bytes),
                _ => return None,
            }
        }
        Some(pipe)
    }
}

/// Asks for a larger pipe; a kernel that refuses leaves it as it is, which costs only speed.
pub(crate) fn enlarge(pipe: BorrowedFd<'_>, bytes: usize) {
    if rustix::pipe::fcntl_getpipe_size(pipe).is_ok_and(|size| size < bytes) {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, bytes);
    }
}
