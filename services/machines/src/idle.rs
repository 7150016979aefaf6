//! When a machine counts as idle, and what is done with one that is.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::published::Published;
use crate::stats;

/// Above this share of one processor a machine is busy, percent. A guest that only waits takes less, emulated too.
const BUSY: u64 = 5;

/// The rule for one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Seconds in which nobody needed it, 1 to 604,800.
    #[serde(deserialize_with = "shipote_units::seconds")]
    pub after_s: u32,
    /// What is done then.
    pub then: How,
}

/// How a machine sleeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Its processors stand still; its memory stays where it is.
    #[default]
    Pause,
    /// It is shut down, and started again when somebody needs it.
    Stop,
}

impl How {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Stop => "stop",
        }
    }

    /// Reads the word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Pause, Self::Stop].into_iter().find(|how| how.as_str() == text)
    }
}

impl Default for Rule {
    fn default() -> Self {
        Self { after_s: 300, then: How::Pause }
    }
}

impl Rule {
    /// What is wrong with it, beside what the machine publishes.
    ///
    /// # Errors
    /// The key, and what to give.
    pub fn check(&self, publish: &[String]) -> Result<(), String> {
        if !(1..=604_800).contains(&self.after_s) {
            return Err(format!("idle: after_s = {}: give 1 to 604800", self.after_s));
        }
        let on_host = |text: &&String| Published::parse(text).is_ok_and(|published| published.host.is_some());
        match publish.iter().find(on_host) {
            Some(text) if self.then == How::Stop => Err(format!(
                "idle: a machine that is stopped has no port of the host, so that nobody could wake it by {text:?}; \
                 publish the guest's port for the proxy alone, or give then = \"pause\""
            )),
            _ => Ok(()),
        }
    }
}

/// What goes on in a machine, as its processes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Open connections into it and out of it.
    pub(crate) connections: usize,
    /// Processor time of its processes, microseconds.
    pub(crate) cpu_usec: u64,
    /// Their resident memory, bytes.
    pub(crate) memory_bytes: u64,
}

impl Seen {
    /// Whether something goes on, where so much time has passed and so much processor time had been used before.
    pub(crate) fn is_busy(&self, passed: std::time::Duration, cpu_usec: u64) -> bool {
        let used = self.cpu_usec.saturating_sub(cpu_usec);
        let passed = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
        self.connections > 0 || used.saturating_mul(100) / passed > BUSY
    }
}

/// Looks at a machine: at its processes, and at the connections through its vsock device's socket and those beside it,
/// which the guest dials.
pub(crate) fn look(pids: &[i32], socket: &Path) -> std::io::Result<Seen> {
    let stats = stats::of(pids);
    let table = std::fs::read_to_string("/proc/self/net/unix")?;
    Ok(Seen { connections: connections(&table, socket), cpu_usec: stats.cpu_usec, memory_bytes: stats.memory_bytes })
}

/// Connected sockets of a table (proc(5), `/proc/net/unix`) that were accepted at a path or one that continues it by `_`.
fn connections(table: &str, socket: &Path) -> usize {
    let Some(prefix) = socket.to_str() else { return 0 };
    let is_one = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        let connected = fields.nth(5) == Some("03");
        let path = fields.nth(1).unwrap_or("");
        connected && path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    table.lines().skip(1).filter(is_one).count()
}

/// Where it is remembered that a machine sleeps, for the next service.
pub(crate) fn marker(folder: &Path) -> PathBuf {
    folder.join("asleep")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::*;

    #[test]
    fn rules_that_make_sense() {
        let rule = |after_s, then| Rule { after_s, then };
        let publish = ["80".to_owned(), "8080:80".to_owned()];
        assert_eq!(rule(1, How::Pause).check(&publish), Ok(()));
        assert_eq!(rule(604_800, How::Stop).check(&publish[..1]), Ok(()));
        assert!(rule(0, How::Pause).check(&[]).unwrap_err().contains("after_s = 0"));
        assert!(rule(604_801, How::Pause).check(&[]).is_err());
        assert!(rule(1, How::Stop).check(&publish).unwrap_err().contains("8080:80"));
        assert_eq!(["pause", "stop", "halt"].map(How::parse), [Some(How::Pause), Some(How::Stop), None]);
    }

    #[test]
    fn open_connections_are_seen_on_both_sides_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (socket, dialled, other) = (dir.path().join("v"), dir.path().join("v_6000"), dir.path().join("vv"));
        let count = || look(&[], &socket).unwrap().connections;
        let listeners = [&socket, &dialled, &other].map(|path| UnixListener::bind(path).unwrap());
        assert_eq!(count(), 0, "one that listens is no connection");
        let mut open = Vec::new();
        for (path, listener, want) in
            [(&socket, &listeners[0], 1), (&dialled, &listeners[1], 2), (&other, &listeners[2], 2)]
        {
            open.push((UnixStream::connect(path).unwrap(), listener.accept().unwrap()));
            assert_eq!(count(), want, "{}", path.display());
        }
        open.clear();
        assert_eq!(count(), 0);
        assert_eq!(connections("", &socket) + connections("Num\nx y\n\n", &socket), 0);
    }

    #[test]
    fn a_machine_that_works_for_itself_is_busy() {
        let seen = |connections, cpu_usec| Seen { connections, cpu_usec, memory_bytes: 0 };
        let second = Duration::from_secs(1);
        assert!(!seen(0, 1_050_000).is_busy(second, 1_000_000));
        assert!(seen(0, 1_060_000).is_busy(second, 1_000_000));
        assert!(seen(1, 0).is_busy(second, 0));
        assert!(!seen(0, 0).is_busy(Duration::ZERO, 9), "processes that are gone have used nothing");
    }
}
