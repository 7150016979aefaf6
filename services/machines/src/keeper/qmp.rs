//! The monitor's own control connection (QEMU's docs/interop/qmp-spec.rst), as far as it is needed: why a guest ended.
//!
//! Pausing is not done through it: it would stop the vsock device too, which (vhost-device-vsock 0.3.0) does not take its
//! connections up again. The monitor's process is stopped instead.
//!
//! A guest that owns its monitor owns this end too: lines are bounded, and only their outermost keys are looked at.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use serde::Deserialize;

/// Longest line that is taken; more ends the connection.
const LINE_MAX: usize = 64 * 1024;

/// What a line is about.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    event: Option<String>,
    data: Data,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    reason: Option<String>,
}

/// The connection.
pub(super) struct Qmp {
    stream: UnixStream,
    input: Vec<u8>,
    /// Why the guest ended, once it has: `guest-shutdown`, `guest-reset`, `guest-panic`, …
    pub(super) shutdown: Option<String>,
}

impl Qmp {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let mut qmp = Self { stream, input: Vec::new(), shutdown: None };
        // Without this the monitor tells nothing. It fits into any socket's buffer.
        qmp.stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        Ok(qmp)
    }

    /// Takes in what came. An error ends the connection: it is of no further use.
    pub(super) fn listen(&mut self) -> std::io::Result<()> {
        let mut piece = [0; 4096];
        let mut ended = false;
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    ended = true;
                    break;
                }
                Ok(n) => self.input.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.input.len() > LINE_MAX {
                break;
            }
        }
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let line: Line = serde_json::from_slice(&line).map_err(std::io::Error::other)?;
            if line.event.as_deref() == Some("SHUTDOWN") {
                self.shutdown = line.data.reason;
            }
        }
        if ended {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if self.input.len() > LINE_MAX {
            return Err(std::io::Error::other("an endless line"));
        }
        Ok(())
    }
}

impl AsFd for Qmp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_has_a_reason_and_nonsense_ends_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        theirs.write_all(b"{\"QMP\": {}}\r\n{\"return\": {}}\r\n{\"event\": \"STOP\", \"data\": {}}\r\n{\"ev").unwrap();
        qmp.listen().unwrap();
        assert_eq!(qmp.shutdown, None);
        theirs.write_all(b"ent\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n").unwrap();
        qmp.listen().unwrap();
        assert_eq!(qmp.shutdown.as_deref(), Some("guest-reset"));
        theirs.write_all(b"rubbish\n").unwrap();
        assert!(qmp.listen().is_err());
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        let flood = std::thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        while qmp.listen().is_ok() {}
        assert!(qmp.input.len() < 2 * LINE_MAX);
        drop(qmp);
        flood.join().unwrap();
    }
}
