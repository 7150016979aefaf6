//! Ways into commands that nobody is connected to: standard input that is kept open, and terminals.
//!
//! ```text
//!   caller ── a pipe ──────────────────────────────▶ standard input     its keeper holds the same end
//!   caller ── a pipe ──▶ this service ──▶ master ──▶ terminal           its keeper holds the master
//!                        this service ◀── master: into the command's log, which callers follow
//! ```
//!
//! What a keeper holds outlives the service: the next instance takes it over. A caller that writes into a pipe of its
//! command's own does not notice; one that types into a terminal sees its pipe break, and asks anew.
//!
//! Invariant: no caller is given the master itself. Its flags are those of the log's thread too, which must never wait.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::termios::{Winsize, tcsetwinsize};
use shipote_sandbox::Keeper;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use ulid::Ulid;

use super::log::{LogStore, Stream};
use super::numbers;

/// Most callers that type into one terminal at a time.
const TYPING_MAX: usize = 16;

#[derive(Debug)]
enum Input {
    /// The end of its standard input that is written to; the keeper holds another under this owner's number.
    Pipe { write: Arc<OwnedFd>, keeper: Arc<Keeper>, owner: u64 },
    /// The terminal's master. Dropping `typing` ends those who copy into it.
    Terminal { master: Arc<OwnedFd>, typing: watch::Sender<()> },
}

/// The ways in, by command. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attachments(Arc<Mutex<HashMap<Ulid, Input>>>);

impl Attachments {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ulid, Input>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has(&self, command: Ulid) -> bool {
        self.lock().contains_key(&command)
    }

    pub(super) fn keep_pipe(&self, command: Ulid, write: Arc<OwnedFd>, keeper: Arc<Keeper>, owner: u64) {
        self.lock().insert(command, Input::Pipe { write, keeper, owner });
    }

    /// Has a terminal's output taken into the command's log, and lets callers type into it.
    pub(super) fn keep_terminal(&self, command: Ulid, master: OwnedFd, logs: &LogStore) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = Arc::new(master);
        logs.resume(command, vec![(Stream::Stdout, Arc::clone(&master))], false)?;
        self.lock().insert(command, Input::Terminal { master, typing: watch::Sender::new(()) });
        Ok(())
    }

    pub(super) fn forget(&self, command: Ulid) {
        self.lock().remove(&command);
    }

    /// A descriptor to write to, and whether it leads to a terminal; None for a command whose input was not kept.
    ///
    /// # Errors
    /// There are no descriptors left, or too many type already.
    pub(crate) fn open(&self, command: Ulid) -> io::Result<Option<(OwnedFd, bool)>> {
        let all = self.lock();
        match all.get(&command) {
            None => Ok(None),
            Some(Input::Pipe { write, .. }) => Ok(Some((write.try_clone()?, false))),
            Some(Input::Terminal { master, typing }) => {
                if typing.receiver_count() >= TYPING_MAX {
                    let text = format!("{TYPING_MAX} are attached to its terminal already; detach one");
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
                }
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&read, true)?;
                let read = pipe::Receiver::from_owned_fd(read)?;
                // no pipe, but written to in the same way
                let master = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
                // an error is a terminal that is gone, which its output tells everybody
                tokio::spawn(copy(read, master, typing.subscribe()));
                Ok(Some((write, true)))
            }
        }
    }

    /// Gives up what keeps the standard input of a command open: it ends when the callers' descriptors are closed.
    pub(crate) async fn close(&self, command: Ulid) {
        let input = {
            let mut all = self.lock();
            if !matches!(all.get(&command), Some(Input::Pipe { .. })) {
                return;
            }
            all.remove(&command)
        };
        if let Some(Input::Pipe { keeper, owner, .. }) = input {
            // a keeper that has ended holds nothing
            let _ = keeper.release(owner, numbers::TAG_INPUT).await;
        }
    }

    /// Gives a terminal another size, in characters; false where there is none.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn resize(&self, command: Ulid, cols: u16, rows: u16) -> io::Result<bool> {
        let all = self.lock();
        let Some(Input::Terminal { master, .. }) = all.get(&command) else { return Ok(false) };
        tcsetwinsize(master, Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 })?;
        Ok(true)
    }
}

/// Copies what one caller types, until it detaches or the command has ended.
async fn copy(mut from: pipe::Receiver, mut master: pipe::Sender, mut ended: watch::Receiver<()>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let typed = async {
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                read => master.write_all(&buffer[..read]).await?,
            }
        }
    };
    tokio::select! {
        done = typed => done,
        // nothing is ever sent: what sends was dropped
        _ = ended.changed() => Ok(()),
    }
}
