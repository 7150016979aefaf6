//! The caller's terminal while a command has one of its own: raw mode, bytes both ways,
//! size.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use anyhow::Context;
use rustix::termios::{OptionalActions, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Columns and rows of the caller's terminal; 80 by 24 where it has none.
pub(crate) fn size() -> (u16, u16) {
    let known = [tcgetwinsize(io::stdout()), tcgetwinsize(io::stdin())];
    // a terminal that nobody has given a size says 0 by 0
    let size = known.into_iter().flatten().find(|w| w.ws_col > 0 && w.ws_row > 0);
    size.map_or((80, 24), |w| (w.ws_col, w.ws_row))
}

/// Our terminal in raw mode; as it was once this is dropped.
pub(crate) struct Raw(Termios);

impl Raw {
    /// None where standard input is no terminal.
    pub(crate) fn enter() -> anyhow::Result<Option<Self>> {
        let Ok(saved) = tcgetattr(io::stdin()) else { return Ok(None) };
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("put the terminal into raw mode")?;
        Ok(Some(Raw(saved)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// A command's terminal, joined to ours.
pub(super) struct Session {
    master: OwnedFd,
    raw: Option<Raw>,
    output: JoinHandle<()>,
    window: tokio::sync::Mutex<Signal>,
}

impl Session {
    /// Puts our terminal (where there is one) into raw mode and copies both ways.
    pub(super) fn start(master: OwnedFd) -> anyhow::Result<Self> {
        let window = signal(SignalKind::window_change()).context("wait for SIGWINCH")?;
        let raw = Raw::enter()?;
        let to = File::from(master.try_clone()?);
        // this thread ends with the process: it may sit in a read of standard input
        std::thread::spawn(move || copy_input(to));
        let from = File::from(master.try_clone()?);
        let output = std::thread::spawn(move || copy_output(from));
        Ok(Session { master, raw, output, window: tokio::sync::Mutex::new(window) })
    }

    pub(super) async fn resized(&self) {
        self.window.lock().await.recv().await;
    }

    pub(super) fn resize(&self) {
        let (cols, rows) = size();
        let size = Winsize { ws_col: cols, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        // a terminal whose command has ended has no size any more
        let _ = tcsetwinsize(self.master.as_fd(), size);
    }

    /// Shows what is left of the output and gives our terminal back.
    pub(super) fn end(self) {
        let _ = self.output.join();
        drop(self.raw);
    }
}

fn copy_input(mut to: File) {
    let mut buffer = [0; 4096];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) | Err(_) => {
                // end of input is Ctrl-D to a terminal, termios(3) VEOF
                let _ = to.write_all(&[4]);
                return;
            }
            Ok(n) if to.write_all(&buffer[..n]).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// Ends with EIO when the last holder of the terminal is gone, pty(7).
fn copy_output(mut from: File) {
    let mut buffer = [0; 16 * 1024];
    let mut stdout = io::stdout().lock();
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || stdout.write_all(&buffer[..n]).and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}
