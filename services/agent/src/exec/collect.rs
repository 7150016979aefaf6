//! A command run to its end, its output in one answer.

use std::time::Duration;

use shipote_agent_protocol::{AgentResponse, COMPLETED_STREAM_MAX, codes};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

use super::spawn::{Child, Streams};
use super::{TIMED_OUT, elapsed, more_or_end};
use crate::connection::Connection;
use crate::outbox::Gone;

/// What one stream brought, up to the limit.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    ended: bool,
    truncated: bool,
}

impl Kept {
    /// Reads on; past the limit, to keep the command from blocking, without keeping what comes.
    async fn read(&mut self, pipe: &mut pipe::Receiver, exited: bool) {
        let mut buffer = [0; 16 * 1024];
        let n = more_or_end(exited, pipe.read(&mut buffer)).await;
        let room = (COMPLETED_STREAM_MAX - self.bytes.len()).min(n);
        self.bytes.extend_from_slice(&buffer[..room]);
        self.truncated |= room < n;
        self.ended = n == 0;
    }
}

pub(super) async fn run(connection: &Connection, mut child: Child, timeout: Option<Duration>) -> Result<(), Gone> {
    let Streams::Pipes { mut stdout, mut stderr, .. } = std::mem::replace(&mut child.streams, Streams::None) else {
        let error = AgentResponse::error(codes::INTERNAL_ERROR, "the command has no pipes");
        return connection.outbox.send(&error).await;
    };
    let (mut out, mut err) = (Kept::default(), Kept::default());
    let (mut code, mut timed_out) = (None, false);
    let expired = elapsed(timeout);
    let gone = connection.peer.gone();
    tokio::pin!(expired, gone);
    while code.is_none() || !out.ended || !err.ended {
        tokio::select! {
            () = out.read(&mut stdout, code.is_some()), if !out.ended => {}
            () = err.read(&mut stderr, code.is_some()), if !err.ended => {}
            exit = &mut child.exited, if code.is_none() => code = Some(exit.map_or(255, |exit| exit.code)),
            () = &mut expired, if !timed_out && code.is_none() => {
                timed_out = true;
                child.kill();
            }
            () = &mut gone => return Err(Gone),
        }
    }
    let exit_code = if timed_out { TIMED_OUT } else { code.unwrap_or(255) };
    let truncated = out.truncated || err.truncated;
    connection
        .outbox
        .send(&AgentResponse::Completed { exit_code, stdout: out.bytes, stderr: err.bytes, truncated })
        .await
}
