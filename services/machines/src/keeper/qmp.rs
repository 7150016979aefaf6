//! The monitor's own control connection (QEMU's docs/interop/qmp-spec.rst), as far as it is needed: why a guest
//! ended, and how much memory it has.
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
    /// Of the command that this answers.
    id: Option<String>,
    error: Option<Refusal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Data {
    reason: Option<String>,
    actual: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    desc: String,
}

/// The connection.
pub(super) struct Qmp {
    stream: UnixStream,
    input: Vec<u8>,
    /// Why the guest ended, once it has: `guest-shutdown`, `guest-reset`, `guest-panic`, …
    pub(super) shutdown: Option<String>,
    /// Memory that the guest has, bytes, once its balloon has said anything.
    pub(super) memory: Option<u64>,
    /// Why the monitor did not have the guest make do with what it was to, last.
    pub(super) refused: Option<String>,
    /// Memory that the guest is to have, bytes, which the monitor has not been told yet.
    wanted: Option<u64>,
    /// The monitor has not answered yet what it was told of that.
    waits: bool,
}

/// What commands about the balloon are known by.
const BALLOON: &str = "balloon";
/// Longest refusal that is passed on.
const REFUSAL_MAX: usize = 200;

impl Qmp {
    pub(super) fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        let input = Vec::new();
        let mut qmp = Self { stream, input, shutdown: None, memory: None, refused: None, wanted: None, waits: false };
        // Without this the monitor tells nothing. It fits into any socket's buffer.
        qmp.stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
        Ok(qmp)
    }

    /// Has the guest make do with so many bytes of memory, and give the rest back. One command waits for its answer at a
    /// time, however long a monitor that stands still lets it: of what is wanted meanwhile the newest counts.
    ///
    /// # Errors
    /// The monitor is gone.
    pub(super) fn give(&mut self, bytes: u64) -> std::io::Result<()> {
        self.wanted = Some(bytes);
        self.tell()
    }

    fn tell(&mut self) -> std::io::Result<()> {
        if self.waits {
            return Ok(());
        }
        let Some(bytes) = self.wanted.take() else { return Ok(()) };
        self.waits = true;
        // Beside the first command it is the only one that is under way: it fits as well.
        let command = format!("{{\"execute\":\"balloon\",\"arguments\":{{\"value\":{bytes}}},\"id\":\"{BALLOON}\"}}\n");
        self.stream.write_all(command.as_bytes())
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
            match line.event.as_deref() {
                Some("SHUTDOWN") => self.shutdown = line.data.reason,
                Some("BALLOON_CHANGE") => self.memory = line.data.actual,
                _ => {}
            }
            if line.id.as_deref() == Some(BALLOON) {
                self.waits = false;
                if let Some(Refusal { desc }) = line.error {
                    self.refused = Some(desc.escape_debug().take(REFUSAL_MAX).collect());
                }
                self.tell()?;
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
    fn of_the_memory_that_is_wanted_the_newest_counts_and_what_the_guest_has_is_known() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        let said = |theirs: &mut UnixStream| {
            let mut text = vec![0; 4096];
            let n = theirs.read(&mut text).unwrap();
            String::from_utf8(text[..n].to_vec()).unwrap()
        };
        // While the monitor stands still.
        for bytes in 0..100_000 {
            qmp.give(bytes).unwrap();
        }
        assert_eq!(said(&mut theirs).matches("balloon").count(), 2, "a command and its id");
        theirs.write_all(b"{\"return\": {}}\n{\"return\": {}, \"id\": \"balloon\"}\n").unwrap();
        qmp.listen().unwrap();
        assert!(said(&mut theirs).contains("\"value\":99999"));
        assert_eq!((qmp.memory, qmp.refused.take()), (None, None));
        theirs.write_all(b"{\"event\": \"BALLOON_CHANGE\", \"data\": {\"actual\": 7340032}}\n").unwrap();
        theirs.write_all(b"{\"id\": \"balloon\", \"error\": {\"class\": \"x\", \"desc\": \"no\\u001b\"}}\n").unwrap();
        qmp.listen().unwrap();
        assert_eq!((qmp.memory, qmp.refused.as_deref()), (Some(7 << 20), Some("no\\u{1b}")));
        qmp.give(1).unwrap();
        assert!(said(&mut theirs).contains("\"value\":1}"));
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
