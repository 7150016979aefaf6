//! How a command or pipeline ended, as one line of JSON on a pipe.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::io::ioctl_fionread;
use shipote_bus::workspaces::Completion;
use ulid::Ulid;

/// Longest message; the whole line must fit into `PIPE_BUF` (4096) to be written at once.
const MESSAGE_MAX: usize = 2048;

/// Writes the line where an instance that was killed may not have come to it. Whoever has read the first one may find
/// a second.
pub(super) fn write_again(pipe: OwnedFd, id: Ulid, status: i32, reason: &str, message: &str) {
    if ioctl_fionread(&pipe).unwrap_or(0) == 0 {
        write(pipe, id, status, reason, message.to_owned());
    }
}

/// Writes the line and closes the pipe. A reader that went away is no error.
pub(super) fn write(pipe: OwnedFd, id: Ulid, status: i32, reason: &str, mut message: String) {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    let completion = Completion { id: id.to_string(), exit_status: status, reason: reason.to_owned(), message };
    match serde_json::to_string(&completion) {
        // an empty pipe takes a line below PIPE_BUF without blocking, pipe(7)
        Ok(mut line) => {
            line.push('\n');
            let _ = std::fs::File::from(pipe).write_all(line.as_bytes());
        }
        Err(error) => tracing::error!("encode the completion of {id}: {error}"),
    }
}
