//! The host's end of a command in a guest: what it is asked for with, what its frames become, what a refusal means.
//!
//! Not for: the connection, terminals and signals, which are their owner's.

use std::io::{Error, Write};

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use crate::{AgentRequest, AgentResponse, FrameError, codes, read_message};

/// Exit status where the command could not be run, as env(1) and docker-run(1) leave it.
pub const STATUS_FAILED: u8 = 125;
/// Where its program cannot be executed.
pub const STATUS_NOT_EXECUTABLE: u8 = 126;
/// Where its program is not there.
pub const STATUS_NOT_FOUND: u8 = 127;

/// Bytes of a frame of input.
const CHUNK: usize = 64 * 1024;

/// A command in a guest whose input and output are somebody's.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Program and arguments; with an image, what that names by default.
    pub command: Vec<String>,
    /// The image that it is run in; without one the agent's own root.
    pub image: Option<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Working folder.
    pub workdir: Option<String>,
    /// Milliseconds after which it is ended.
    pub timeout_ms: Option<u64>,
    /// It has a terminal.
    pub tty: bool,
}

impl Session {
    /// What the agent is asked for.
    #[must_use]
    pub fn request(self) -> AgentRequest {
        let Self { command, image, env, workdir, timeout_ms, tty } = self;
        let (interactive, background) = (true, false);
        match image {
            None => AgentRequest::VmExec { command, env, workdir, timeout_ms, interactive, tty, background },
            Some(image) => AgentRequest::Run {
                image,
                command,
                env,
                workdir,
                user: None,
                mounts: vec![],
                timeout_ms,
                interactive,
                tty,
                detached: false,
                persistent_overlay_id: None,
                background,
            },
        }
    }
}

/// What env(1) would leave with where the agent refuses to start a command.
#[must_use]
pub fn status_of_refusal(code: Option<&str>, message: &str) -> u8 {
    match code {
        Some(codes::SPAWN_FAILED) if message.contains("os error 2)") => STATUS_NOT_FOUND,
        Some(codes::SPAWN_FAILED) if message.contains("os error 13)") => STATUS_NOT_EXECUTABLE,
        _ => STATUS_FAILED,
    }
}

/// Why the output of a command could not be shown to its end.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// What the guest sends is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Whoever reads the output has gone, or cannot take it.
    #[error("write to {0}: {1}")]
    Write(&'static str, Error),
    /// The connection ended before the command.
    #[error("the machine went away")]
    Gone,
}

/// Writes what comes, up to the exit status.
///
/// # Errors
/// [`ShowError`]; the command is ended by the agent when the connection is.
pub async fn show(
    reader: &mut (impl AsyncRead + Unpin),
    mut out: impl Write,
    mut err: impl Write,
) -> Result<u8, ShowError> {
    loop {
        match read_message(reader).await? {
            Some(AgentResponse::Stdout { data }) => {
                let written = out.write_all(&data).and_then(|()| out.flush());
                written.map_err(|error| ShowError::Write("standard output", error))?;
            }
            Some(AgentResponse::Stderr { data }) => {
                err.write_all(&data).map_err(|error| ShowError::Write("standard error", error))?;
            }
            Some(AgentResponse::Exited { exit_code }) => return Ok((exit_code & 0xff) as u8),
            Some(AgentResponse::Error { message, .. }) => {
                writeln!(err, "shipote: {message}").map_err(|error| ShowError::Write("standard error", error))?;
            }
            Some(_) => {}
            None => return Err(ShowError::Gone),
        }
    }
}

/// Reads standard input on a thread of its own, piece by piece; an empty piece is its end, and the last.
///
/// # Errors
/// No thread can be started.
pub fn input() -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = std::io::Read::read(&mut std::io::stdin().lock(), &mut buffer).unwrap_or(0);
            if sender.blocking_send(buffer[..n].to_vec()).is_err() || n == 0 {
                return;
            }
        }
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shown(frames: &[AgentResponse], out: impl Write) -> (Result<u8, ShowError>, String) {
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| crate::encode(frame).unwrap()).collect();
        let mut err = Vec::new();
        let status = show(&mut &bytes[..], out, &mut err).await;
        (status, String::from_utf8(err).unwrap())
    }

    #[tokio::test]
    async fn frames_become_output_and_an_exit_status() {
        let data = |text: &str| text.as_bytes().to_vec();
        let frames = [
            AgentResponse::Stdout { data: data("one") },
            AgentResponse::Stderr { data: data("two\n") },
            AgentResponse::error("X", "three"),
            AgentResponse::Exited { exit_code: 256 + 7 },
            AgentResponse::Stdout { data: data("after the end") },
        ];
        let mut out = Vec::new();
        let (status, err) = shown(&frames, &mut out).await;
        assert_eq!((status.unwrap(), &out[..], err.as_str()), (7, &b"one"[..], "two\nshipote: three\n"));
        assert!(matches!(shown(&frames[..2], std::io::sink()).await.0, Err(ShowError::Gone)));
        // no room for a byte: as a pipe whose reader has gone
        let (status, _) = shown(&frames, &mut [0_u8; 0][..]).await;
        assert!(matches!(status, Err(ShowError::Write("standard output", _))), "{status:?}");
    }

    #[test]
    fn refusals_mean_what_they_mean_to_env() {
        for (code, message, status) in [
            (Some(codes::SPAWN_FAILED), "start x: No such file or directory (os error 2)", STATUS_NOT_FOUND),
            (Some(codes::SPAWN_FAILED), "start x: Permission denied (os error 13)", STATUS_NOT_EXECUTABLE),
            (Some(codes::SPAWN_FAILED), "start x: no memory (os error 12)", STATUS_FAILED),
            (Some(codes::INVALID_REQUEST), "(os error 2)", STATUS_FAILED),
            (None, "", STATUS_FAILED),
        ] {
            assert_eq!(status_of_refusal(code, message), status, "{message}");
        }
    }
}
