//! One command of port 5000, from its start to its `Exit`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use shipote_agent_protocol::GuestMessage;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;

use crate::agent::Agent;
use crate::exec::spawn::{Child, Streams, spawn};
use crate::exec::{Command, Mode, more_or_end};
use crate::outbox::{Gone, Outbox};
use crate::reaper::Exit;

/// Bytes of one output message.
const PIECE: usize = 24 * 1024;

/// What is to be run.
pub(super) struct Wanted {
    pub(super) argv: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) workdir: Option<String>,
    pub(super) tty: bool,
}

/// Takes a command off the list of those that run, however it is left.
struct Listed {
    agent: Arc<Agent>,
    pid: i32,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.agent.workload.running().remove(&self.pid);
        self.agent.workload.ended.notify_waiters();
    }
}

/// Starts a command; its process, and what follows it to its end. Dropped before that, it is killed.
pub(super) fn start(
    agent: &Arc<Agent>,
    request: u64,
    wanted: &Wanted,
    outbox: Outbox,
) -> Result<(i32, impl Future<Output = u64> + use<>), String> {
    let command = Command {
        argv: wanted.argv.clone(),
        env: wanted.env.clone(),
        workdir: wanted.workdir.clone(),
        ..Command::default()
    };
    if command.argv.first().is_none_or(String::is_empty) {
        return Err("the command is empty".to_owned());
    }
    let mode = if wanted.tty { Mode::Terminal } else { Mode::Collect };
    let child = spawn(agent, &command, mode).map_err(|error| format!("start {}: {error}", command.argv[0]))?;
    let listed = Listed { agent: Arc::clone(agent), pid: child.pid };
    Ok((child.pid, async move {
        let speaker = Speaker { request, outbox, agent: Arc::clone(&listed.agent) };
        // Where nobody listens any more the command is killed when it is dropped.
        let _ = follow(child, &speaker).await;
        drop(listed);
        request
    }))
}

struct Speaker {
    request: u64,
    outbox: Outbox,
    agent: Arc<Agent>,
}

impl Speaker {
    /// To the connection, as it takes it, and to everybody on port 5001.
    async fn say(&self, message: GuestMessage) -> Result<(), Gone> {
        let message = Arc::new(message);
        // Nobody may be listening there.
        let _ = self.agent.workload.said.send(Arc::clone(&message));
        self.outbox.send_any(&*message).await
    }

    async fn out(&self, data: Vec<u8>) -> Result<(), Gone> {
        self.say(GuestMessage::Stdout { request_id: self.request, data, truncated: false }).await
    }

    async fn err(&self, data: Vec<u8>) -> Result<(), Gone> {
        self.say(GuestMessage::Stderr { request_id: self.request, data, truncated: false }).await
    }
}

async fn follow(mut child: Child, speaker: &Speaker) -> Result<(), Gone> {
    let (mut stdout, mut stderr, mut terminal) = match std::mem::replace(&mut child.streams, Streams::None) {
        Streams::Pipes { stdout, stderr, .. } => (Some(stdout), Some(stderr), None),
        Streams::Terminal(terminal) => (None, None, Some(terminal)),
        Streams::None => (None, None, None),
    };
    let mut exit = None;
    while exit.is_none() || stdout.is_some() || stderr.is_some() || terminal.is_some() {
        tokio::select! {
            piece = read(stdout.as_mut(), exit.is_some()), if stdout.is_some() => match piece {
                Some(piece) => speaker.out(piece).await?,
                None => stdout = None,
            },
            piece = read(stderr.as_mut(), exit.is_some()), if stderr.is_some() => match piece {
                Some(piece) => speaker.err(piece).await?,
                None => stderr = None,
            },
            piece = screen(terminal.as_ref(), exit.is_some()), if terminal.is_some() => match piece {
                Some(piece) => speaker.out(piece).await?,
                None => terminal = None,
            },
            ended = &mut child.exited, if exit.is_none() => exit = Some(ended.unwrap_or(Exit::UNKNOWN)),
        }
    }
    let Exit { code, signal } = exit.unwrap_or(Exit::UNKNOWN);
    let reason = signal.map_or_else(|| "exited".to_owned(), |signal| format!("signal {signal}"));
    speaker.say(GuestMessage::Exit { request_id: speaker.request, code, reason }).await
}

/// The next piece of a pipe; `None` at its end.
async fn read(pipe: Option<&mut pipe::Receiver>, exited: bool) -> Option<Vec<u8>> {
    let mut piece = vec![0; PIECE];
    let n = more_or_end(exited, pipe?.read(&mut piece)).await;
    piece.truncate(n);
    (n > 0).then_some(piece)
}

/// The next piece of a terminal; `None` once nobody has it open any more, which reads as an error.
async fn screen(terminal: Option<&AsyncFd<OwnedFd>>, exited: bool) -> Option<Vec<u8>> {
    let mut piece = vec![0; PIECE];
    let reading = terminal?.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut piece[..])?));
    let n = more_or_end(exited, reading).await;
    piece.truncate(n);
    (n > 0).then_some(piece)
}
