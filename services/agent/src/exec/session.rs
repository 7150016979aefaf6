//! A command that is talked to while it runs, over pipes or a terminal.
//!
//! Output is read only when there is room to send it, input is taken from the connection only when the last of it has
//! been written: a slow side slows the other down, and no buffer grows.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::termios::{Winsize, tcsetwinsize};
use shipote_agent_protocol::{AgentRequest, AgentResponse, codes};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;

use super::spawn::{Child, Streams};
use super::{TIMED_OUT, elapsed, more_or_end};
use crate::connection::{Connection, refusal};
use crate::inbox::Event;
use crate::outbox::{Gone, Outbox};

/// Bytes of one output frame.
const PIECE: usize = 24 * 1024;
/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: u8 = 4;

/// Where input goes: `None` where it has ended.
enum Input {
    Pipe(Option<pipe::Sender>),
    Terminal,
}

impl Input {
    /// The end of input: a pipe is closed, a terminal stays.
    fn end(&mut self) {
        if let Self::Pipe(pipe) = self {
            *pipe = None;
        }
    }
}

/// Input that the command hasn't taken yet.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
    /// It is the last.
    end: bool,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }
}

pub(super) async fn run(connection: &mut Connection, mut child: Child, timeout: Option<Duration>) -> Result<(), Gone> {
    let (mut stdout, mut stderr, terminal, mut input) = match std::mem::replace(&mut child.streams, Streams::None) {
        Streams::Pipes { stdin, stdout, stderr } => (Some(stdout), Some(stderr), None, Input::Pipe(stdin)),
        Streams::Terminal(terminal) => (None, None, Some(terminal), Input::Terminal),
        Streams::None => (None, None, None, Input::Pipe(None)),
    };
    let Connection { outbox, peer, events, .. } = connection;
    outbox.send(&AgentResponse::Started).await?;
    let mut pending = Pending::default();
    let (mut code, mut timed_out, mut input_open) = (None, false, true);
    let mut terminal_open = terminal.is_some();
    let expired = elapsed(timeout);
    let gone = peer.gone();
    tokio::pin!(expired, gone);
    while code.is_none() || stdout.is_some() || stderr.is_some() || terminal_open {
        tokio::select! {
            more = output(outbox, &mut stdout, code.is_some(), |data| AgentResponse::Stdout { data }), if stdout.is_some() => {
                if !more? { stdout = None; }
            }
            more = output(outbox, &mut stderr, code.is_some(), |data| AgentResponse::Stderr { data }), if stderr.is_some() => {
                if !more? { stderr = None; }
            }
            more = screen(outbox, terminal.as_ref(), code.is_some()), if terminal_open => terminal_open = more?,
            taken = feed(&mut input, terminal.as_ref(), &pending), if !pending.is_empty() => {
                if let Some(n) = taken {
                    pending.written += n;
                } else {
                    // The command has closed its input; what else comes is dropped.
                    pending = Pending { end: true, ..Pending::default() };
                }
                if pending.is_empty() && pending.end { input.end(); }
            }
            event = events.recv(), if input_open && pending.is_empty() => match event {
                Some(Event::Request(request, _memory)) => match *request {
                    AgentRequest::Stdin { data } if data.is_empty() => input.end(),
                    AgentRequest::Stdin { data } => pending = Pending { bytes: data, ..Pending::default() },
                    AgentRequest::Resize { cols, rows } => resize(terminal.as_ref(), cols, rows),
                    other => {
                        let message = format!("{} while a session runs on this connection; open another", other.method());
                        outbox.send(&AgentResponse::error(codes::INVALID_REQUEST, message)).await?;
                    }
                },
                Some(Event::EndOfInput) | None => {
                    input_open = false;
                    match input {
                        Input::Pipe(_) => input.end(),
                        Input::Terminal => {
                            pending = Pending { bytes: vec![END_OF_TRANSMISSION], written: 0, end: true };
                        }
                    }
                }
                Some(event) => outbox.send(&refusal(&event)).await?,
            },
            exit = &mut child.exited, if code.is_none() => code = Some(exit.map_or(255, |exit| exit.code)),
            () = &mut expired, if !timed_out && code.is_none() => {
                timed_out = true;
                child.kill();
            }
            () = &mut gone => return Err(Gone),
        }
    }
    let exit_code = if timed_out { TIMED_OUT } else { code.unwrap_or(255) };
    outbox.send(&AgentResponse::Exited { exit_code }).await?;
    if !input_open {
        // No request can follow the end of input.
        return Err(Gone);
    }
    Ok(())
}

/// Passes on the next piece of a pipe; `false` at its end.
async fn output(
    outbox: &Outbox,
    pipe: &mut Option<pipe::Receiver>,
    exited: bool,
    frame: impl FnOnce(Vec<u8>) -> AgentResponse,
) -> Result<bool, Gone> {
    let Some(pipe) = pipe else { return Ok(false) };
    let room = outbox.room().await?;
    let mut piece = vec![0; PIECE];
    let n = more_or_end(exited, pipe.read(&mut piece)).await;
    if n > 0 {
        piece.truncate(n);
        room.send(&frame(piece));
    }
    Ok(n > 0)
}

/// Passes on what the command wrote to its terminal; `false` once nobody has it open any more.
async fn screen(outbox: &Outbox, terminal: Option<&AsyncFd<OwnedFd>>, exited: bool) -> Result<bool, Gone> {
    let Some(terminal) = terminal else { return Ok(false) };
    let room = outbox.room().await?;
    let mut piece = vec![0; PIECE];
    let reading = terminal.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut piece[..])?));
    // A terminal that all have closed reads as an input/output error.
    let n = more_or_end(exited, reading).await;
    if n > 0 {
        piece.truncate(n);
        room.send(&AgentResponse::Stdout { data: piece });
    }
    Ok(n > 0)
}

/// Writes some of the input; `None` where the command takes no more.
async fn feed(input: &mut Input, terminal: Option<&AsyncFd<OwnedFd>>, pending: &Pending) -> Option<usize> {
    let left = &pending.bytes[pending.written..];
    match (input, terminal) {
        (Input::Pipe(Some(pipe)), _) => pipe.write(left).await.ok(),
        (Input::Terminal, Some(terminal)) => {
            terminal.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, left)?)).await.ok()
        }
        _ => None,
    }
}

fn resize(terminal: Option<&AsyncFd<OwnedFd>>, cols: u16, rows: u16) {
    if let Some(terminal) = terminal {
        // A terminal that has hung up has no size; the session is about to end.
        let _ = tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 });
    }
}
