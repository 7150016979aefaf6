//! Where a junction's bytes come from: the read end of a pipe, or anything else by way of a pipe.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::CHUNK_BYTES;
use crate::pipe::{Moved, Pipe, enlarge, outcome, splice};

#[derive(Debug)]
pub(crate) struct Inlet {
    source: OwnedFd,
    /// For a source that isn't a pipe: the pipe it is moved into.
    via: Option<Via>,
}

#[derive(Debug)]
struct Via {
    reader: OwnedFd,
    /// Closed when the source has ended.
    writer: Option<OwnedFd>,
    copies: bool,
}

impl Inlet {
    pub(crate) fn new(source: OwnedFd, pipe_bytes: usize) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode);
        if kind == FileType::Fifo {
            enlarge(source.as_fd(), pipe_bytes);
            return Ok(Self { source, via: None });
        }
        if kind == FileType::Socket {
            set_nonblocking(source.as_fd())?;
        }
        let Pipe { reader, writer, .. } = Pipe::new()?;
        Ok(Self { source, via: Some(Via { reader, writer: Some(writer), copies: false }) })
    }

    /// The pipe to take bytes from.
    pub(crate) fn reader(&self) -> BorrowedFd<'_> {
        self.via.as_ref().map_or(self.source.as_fd(), |via| via.reader.as_fd())
    }

    /// What tells that there is more to take.
    pub(crate) fn pollable(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    /// Moves what there is of a source that isn't a pipe into the pipe. `Some` says, once, that
    /// the kernel refuses to splice it and that its bytes are copied.
    pub(crate) fn feed(&mut self) -> Result<Option<Errno>, Errno> {
        let Some(via) = &mut self.via else { return Ok(None) };
        let Some(writer) = &via.writer else { return Ok(None) };
        // A terminal would block in the middle of a splice.
        if !is_ready(self.source.as_fd()) {
            return Ok(None);
        }
        let mut refused = None;
        let mut moved = Moved::Later;
        if !via.copies {
            moved = splice(&self.source, writer, CHUNK_BYTES);
            if let Moved::Refused(errno @ (Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) = moved {
                via.copies = true;
                refused = Some(errno);
            }
        }
        if via.copies {
            moved = copy(self.source.as_fd(), writer.as_fd());
        }
        match moved {
            // What a terminal says when its other end is gone.
            Moved::End | Moved::Closed | Moved::Refused(Errno::IO) => via.writer = None,
            Moved::Refused(errno) => return Err(errno),
            Moved::Bytes(_) | Moved::Later => {}
        }
        Ok(refused)
    }
}

/// Copies a piece that is sure to fit into the pipe.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Moved {
    const PIECE: usize = 4096;
    // A pipe that polls as writable has room for a page.
    let mut poll = [PollFd::from_borrowed_fd(to, PollFlags::OUT)];
    if rustix::event::poll(&mut poll, Some(&Timespec::default())).unwrap_or(0) == 0 {
        return Moved::Later;
    }
    let mut buffer = [0; PIECE];
    match outcome(|| rustix::io::read(from, &mut buffer)) {
        Moved::Bytes(bytes) => outcome(|| rustix::io::write(to, &buffer[..bytes])),
        other => other,
    }
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    rustix::event::poll(&mut poll, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// For sockets, where the flag of splice(2) is not enough.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
