//! One subscriber: a socket, its position in the history, and a stage pipe for the chunk it is at.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::history::History;
use crate::pipe::{Moved, Pipe, splice, tee};

/// Chunks sent to one subscriber before others have their turn.
const TURN: usize = 8;

/// What became of a subscriber's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It was sent something.
    Progress,
    /// There is nothing to send, or it doesn't take more now.
    Idle,
    /// It has hung up.
    Gone,
    Failed(Errno),
}

#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) socket: OwnedFd,
    stage: Pipe,
    /// Bytes in the stage.
    staged: usize,
    /// The next chunk to stage.
    next: u64,
    /// The first chunk that was live, not replay, when it came.
    joined: u64,
    /// The socket took no more; wait until it says that it does.
    blocked: bool,
}

impl Subscriber {
    /// Begins with the replay as it is now.
    pub(crate) fn new(socket: OwnedFd, history: &History) -> io::Result<Self> {
        let stage = Pipe::new()?;
        // An empty stage has to take a chunk whole: half of one could not be told from all of it.
        if stage.capacity < history.largest() {
            return Err(io::Error::other("the kernel gives pipes too small to stage a chunk"));
        }
        let replay = history.replay();
        Ok(Self { socket, stage, staged: 0, next: replay.window_start(), joined: replay.end(), blocked: false })
    }

    pub(crate) fn turn(&mut self, history: &History) -> Turn {
        let mut turn = Turn::Idle;
        if self.blocked {
            return turn;
        }
        for _ in 0..TURN {
            if self.staged == 0 {
                let Some((chunk, len)) = history.chunk(self.next) else { break };
                match tee(&chunk.reader, &self.stage.writer, len) {
                    Moved::Bytes(bytes) if bytes == len => self.staged = len,
                    Moved::Refused(errno) => return Turn::Failed(errno),
                    _ => return Turn::Failed(Errno::NOBUFS),
                }
                self.next += 1;
            }
            match splice(&self.stage.reader, &self.socket, self.staged) {
                Moved::Bytes(bytes) => {
                    self.staged -= bytes.min(self.staged);
                    turn = Turn::Progress;
                }
                Moved::Later => {
                    self.blocked = true;
                    break;
                }
                Moved::Closed | Moved::End => return Turn::Gone,
                Moved::Refused(errno) => return Turn::Failed(errno),
            }
        }
        turn
    }

    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The oldest chunk it still needs.
    pub(crate) fn needs(&self) -> u64 {
        self.next
    }

    pub(crate) fn lags(&self, history: &History) -> bool {
        history.replay().lags(self.next, self.joined)
    }

    pub(crate) fn would_lag(&self, history: &History, chunk_bytes: usize) -> bool {
        history.replay().would_lag(self.next, self.joined, chunk_bytes)
    }

    /// Bytes of the stream so far that it has not been sent.
    pub(crate) fn unsent(&self, history: &History) -> u64 {
        self.staged as u64 + history.replay().bytes_from(self.next)
    }
}
