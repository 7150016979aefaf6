//! One subscriber: a socket, its position in the history, and a stage pipe for the batch it is at.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::history::History;
use crate::pipe::{Moved, Pipe, splice, tee};

/// Batches sent to one subscriber before others have their turn.
const TURN: usize = 4;

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
    /// The process that connected.
    pub(crate) pid: Option<i32>,
    stage: Pipe,
    /// Bytes in the stage.
    staged: usize,
    /// The next batch to stage.
    next: u64,
    /// The first batch that was live, not replay, when it came.
    joined: u64,
    /// The socket took no more; wait until it says that it does.
    blocked: bool,
}

impl Subscriber {
    /// Begins with the replay as it is now.
    pub(crate) fn new(socket: OwnedFd, pid: Option<i32>, history: &History) -> io::Result<Self> {
        let stage = Pipe::new()?;
        let replay = history.replay();
        Ok(Self { socket, pid, stage, staged: 0, next: replay.window_start(), joined: replay.end(), blocked: false })
    }

    pub(crate) fn turn(&mut self, history: &History) -> Turn {
        let mut turn = Turn::Idle;
        if self.blocked {
            return turn;
        }
        for _ in 0..TURN {
            if self.staged == 0 {
                let Some((batch, len)) = history.batch(self.next) else { break };
                // An empty stage with as many pages takes the batch whole. Half of it would be of
                // no use: tee always begins at the beginning.
                if !self.stage.make_room(batch.capacity) {
                    return Turn::Failed(Errno::NOBUFS);
                }
                match tee(&batch.reader, &self.stage.writer, len) {
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

    /// The oldest batch it still needs.
    pub(crate) fn needs(&self) -> u64 {
        self.next
    }

    pub(crate) fn lags(&self, history: &History) -> bool {
        history.replay().lags(self.next, self.joined)
    }

    pub(crate) fn would_lag(&self, history: &History, bytes: usize) -> bool {
        history.replay().would_lag(self.next, self.joined, bytes)
    }

    /// Bytes of the stream so far that it has not been sent.
    pub(crate) fn unsent(&self, history: &History) -> u64 {
        self.staged as u64 + history.replay().bytes_from(self.next)
    }
}
