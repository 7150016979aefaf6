//! Commands: started in a session, process group and cgroup of their own, ended as a whole.

mod cgroup;
mod collect;
mod program;
mod session;
pub(crate) mod spawn;

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::{AgentResponse, codes};

use crate::connection::Connection;
use crate::outbox::Gone;

pub(crate) use cgroup::{Cgroup, Cgroups};

/// Exit code of a command that ran out of time, as `timeout(1)` has it.
const TIMED_OUT: i32 = 124;
/// How long an open but silent stream is waited for after the command ended and its group was killed: who still holds
/// it has left the group, which only helps where there are no cgroups.
const DRAIN: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Default)]
pub(crate) struct Command {
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) workdir: Option<String>,
    pub(crate) timeout: Option<Duration>,
    /// Where it runs, other than in the agent's own root.
    pub(crate) jail: Option<Jail>,
    /// What a command in the background is answered with instead of its pid.
    pub(crate) id: Option<String>,
}

/// A root of its own, and who the command is there.
#[derive(Clone)]
pub(crate) struct Jail {
    pub(crate) root: PathBuf,
    /// Working directory within it.
    pub(crate) directory: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// What must stay for as long as the command lives: dropped when it has been reaped.
    pub(crate) keep: Arc<dyn Any + Send + Sync>,
}

/// How to run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To its end; the output in one answer.
    Collect,
    /// Answer with its pid at once.
    Background,
    /// Input and output as they come, over pipes.
    Pipes,
    /// The same over a terminal.
    Terminal,
}

impl Mode {
    /// A session goes before the background where a request asks for both.
    pub(crate) fn of(interactive: bool, tty: bool, background: bool) -> Self {
        match (interactive, tty, background) {
            (_, true, _) => Self::Terminal,
            (true, false, _) => Self::Pipes,
            (false, false, true) => Self::Background,
            (false, false, false) => Self::Collect,
        }
    }
}

/// Runs a command for a connection.
pub(crate) async fn run(connection: &mut Connection, command: Command, mode: Mode) -> Result<(), Gone> {
    if command.argv.first().is_none_or(String::is_empty) {
        let refusal = AgentResponse::error(codes::INVALID_REQUEST, "the command is empty");
        return connection.outbox.send(&refusal).await;
    }
    let timeout = command.timeout;
    let spawned = match spawn::spawn(&connection.agent, &command, mode) {
        Ok(spawned) => spawned,
        Err(error) => {
            let message = format!("start {}: {error}", command.argv[0]);
            return connection.outbox.send(&AgentResponse::error(codes::SPAWN_FAILED, message)).await;
        }
    };
    match mode {
        Mode::Background => background(connection, spawned, timeout, command.id).await,
        Mode::Collect => collect::run(connection, spawned, timeout).await,
        Mode::Pipes | Mode::Terminal => session::run(connection, spawned, timeout).await,
    }
}

async fn background(
    connection: &Connection,
    child: spawn::Child,
    timeout: Option<Duration>,
    id: Option<String>,
) -> Result<(), Gone> {
    let stdout = id.unwrap_or_else(|| child.pid.to_string()).into_bytes();
    if let Some(timeout) = timeout {
        tokio::spawn(async move {
            let mut child = child;
            if tokio::time::timeout(timeout, &mut child.exited).await.is_err() {
                child.kill();
            }
            child.leave();
        });
    } else {
        child.leave();
    }
    let answer = AgentResponse::Completed { exit_code: 0, stdout, stderr: vec![], truncated: false };
    connection.outbox.send(&answer).await
}

/// Completes after `timeout`, or never.
async fn elapsed(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

/// How much a read brought; 0 at the stream's end, on an error, or where the command has ended and nothing comes.
pub(crate) async fn more_or_end(exited: bool, reading: impl Future<Output = std::io::Result<usize>>) -> usize {
    if exited {
        tokio::time::timeout(DRAIN, reading).await.unwrap_or(Ok(0)).unwrap_or(0)
    } else {
        reading.await.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Mode;

    #[test]
    fn a_session_goes_before_the_background() {
        for (interactive, tty, background, mode) in [
            (false, false, false, Mode::Collect),
            (false, false, true, Mode::Background),
            (true, false, true, Mode::Pipes),
            (false, true, true, Mode::Terminal),
            (true, true, false, Mode::Terminal),
        ] {
            assert_eq!(Mode::of(interactive, tty, background), mode);
        }
    }
}
