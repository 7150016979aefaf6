//! Where an edge's bytes go: a consumer's pipe, or anything else that can be written to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::inlet::set_nonblocking;
use crate::pipe::{Moved, Pipe, enlarge, outcome, splice};
use crate::stats::Shared;
use crate::{CHUNK_BYTES, EdgeId};

#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) id: EdgeId,
    /// Closed when the edge has ended.
    pub(crate) sink: Option<OwnedFd>,
    /// This consumer's own references to the current batch, where several consumers get it.
    stage: Option<Pipe>,
    pub(crate) staged: usize,
    /// The sink took no more; wait until it says that it does.
    pub(crate) full: bool,
    copying: Option<Copying>,
    /// Why the sink's bytes are copied, to be told once.
    pub(crate) refused: Option<Errno>,
    pub(crate) shared: Arc<Shared>,
}

/// Bytes read from a pipe and not yet written to a sink that cannot be spliced to.
#[derive(Debug)]
struct Copying {
    buffer: Vec<u8>,
    written: usize,
}

impl Outlet {
    pub(crate) fn new(id: EdgeId, sink: OwnedFd, pipe_bytes: usize, shared: Arc<Shared>) -> io::Result<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(&sink)?.st_mode) {
            FileType::Fifo => enlarge(sink.as_fd(), pipe_bytes),
            FileType::Socket => set_nonblocking(sink.as_fd())?,
            _ => {}
        }
        let sink = Some(sink);
        Ok(Self { id, sink, stage: None, staged: 0, full: false, copying: None, refused: None, shared })
    }

    /// Everything it was given has been written.
    pub(crate) fn is_idle(&self) -> bool {
        self.staged == 0 && !self.full && self.copying.as_ref().is_none_or(Copying::is_empty)
    }

    /// This consumer's empty stage, opened the first time it is needed; goes back by
    /// [`Outlet::put_stage`].
    pub(crate) fn take_stage(&mut self, bytes: usize) -> Result<Pipe, Errno> {
        let made = || Pipe::new().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NFILE));
        let mut stage = self.stage.take().map_or_else(made, Ok)?;
        stage.make_room(bytes);
        Ok(stage)
    }

    /// Gives back the stage, with `staged` bytes in it.
    pub(crate) fn put_stage(&mut self, stage: Pipe, staged: usize) {
        self.stage = Some(stage);
        self.staged = staged;
    }

    /// Moves what is staged for this consumer on to it.
    pub(crate) fn drain(&mut self) -> Moved {
        if self.staged == 0 {
            return self.push(None, 0);
        }
        let Some(stage) = self.stage.take() else { return Moved::Closed };
        let moved = self.push(Some(stage.reader.as_fd()), self.staged);
        if let Moved::Bytes(bytes) = moved {
            self.staged -= bytes.min(self.staged);
        }
        self.stage = Some(stage);
        moved
    }

    /// Moves up to `len` bytes from a pipe to the consumer; `Bytes` are those that left the pipe.
    pub(crate) fn push(&mut self, from: Option<BorrowedFd<'_>>, len: usize) -> Moved {
        let Some(sink) = &self.sink else { return Moved::Closed };
        if self.full {
            return Moved::Later;
        }
        if let Some(copying) = &mut self.copying {
            let moved = copying.step(sink.as_fd(), from, len, &self.shared);
            self.full = moved == Moved::Later && !copying.is_empty();
            return moved;
        }
        let Some(from) = from else { return Moved::Later };
        match splice(from, sink, len) {
            Moved::Bytes(bytes) => {
                self.shared.count(bytes);
                Moved::Bytes(bytes)
            }
            // Either nothing is there, or there is no room for it.
            Moved::Later => {
                self.full = rustix::io::ioctl_fionread(from).unwrap_or(0) > 0;
                Moved::Later
            }
            // Files opened to append and some devices; /dev/full and the like fail when written.
            Moved::Refused(errno @ (Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)) => {
                self.refused = Some(errno);
                self.copying = Some(Copying { buffer: Vec::new(), written: 0 });
                self.push(Some(from), len)
            }
            other => other,
        }
    }
}

impl Copying {
    fn is_empty(&self) -> bool {
        self.written == self.buffer.len()
    }

    fn step(&mut self, sink: BorrowedFd<'_>, from: Option<BorrowedFd<'_>>, len: usize, shared: &Shared) -> Moved {
        if !self.is_empty() {
            return self.write(sink, shared).err().unwrap_or(Moved::Later);
        }
        let Some(from) = from else { return Moved::Later };
        // The read end may be shared with its other holders and so be blocking.
        match rustix::io::ioctl_fionread(from) {
            Ok(0) => return if is_hung_up(from) { Moved::End } else { Moved::Later },
            Ok(_) => {}
            Err(errno) => return Moved::Refused(errno),
        }
        self.buffer.resize(len.min(CHUNK_BYTES), 0);
        self.written = 0;
        let taken = outcome(|| rustix::io::read(from, &mut self.buffer[..]));
        self.buffer.truncate(if let Moved::Bytes(bytes) = taken { bytes } else { 0 });
        match self.write(sink, shared) {
            Err(end @ (Moved::Closed | Moved::Refused(_))) => end,
            _ => taken,
        }
    }

    fn write(&mut self, sink: BorrowedFd<'_>, shared: &Shared) -> Result<(), Moved> {
        while !self.is_empty() {
            match outcome(|| rustix::io::write(sink, &self.buffer[self.written..])) {
                Moved::Bytes(bytes) => {
                    self.written += bytes;
                    shared.count(bytes);
                }
                Moved::Refused(errno) => return Err(Moved::Refused(errno)),
                Moved::Closed => return Err(Moved::Closed),
                Moved::Later | Moved::End => return Err(Moved::Later),
            }
        }
        Ok(())
    }
}

fn is_hung_up(pipe: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        && fds[0].revents().contains(PollFlags::HUP)
        && !fds[0].revents().contains(PollFlags::IN)
}
