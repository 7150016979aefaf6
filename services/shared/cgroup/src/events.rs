//! How often limits were met, and waiting for the next time.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::Error;

/// Counts since the group was made, of it and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Events {
    /// `memory.events` `max`: its memory was about to go over the limit, and some of it was reclaimed.
    pub memory_max: u64,
    /// `memory.events` `oom`: reclaiming did not help.
    pub oom: u64,
    /// `memory.events` `oom_kill`: processes ended for want of memory, by whatever limit.
    pub oom_kill: u64,
    /// `pids.events` `max`: a process was not made because of the limit on their number.
    pub pids_max: u64,
    /// `memory.events.local` `oom`: of `oom`, those that this group's own limit caused, and none below it.
    pub oom_here: u64,
    /// `pids.events.local` `max`: of `pids_max`, those that this group's own limit refused. Before Linux 6.11, which
    /// counts with the group that asked, those that asked from here.
    pub pids_max_here: u64,
}

impl Events {
    pub(crate) fn read(group: &Path) -> Self {
        let file = |name: &str| fs::read_to_string(group.join(name)).unwrap_or_default();
        let memory = file("memory.events");
        let of = |name: &str| value(&memory, name).unwrap_or_default();
        Events {
            memory_max: of("max"),
            oom: of("oom"),
            oom_kill: of("oom_kill"),
            pids_max: pids_max(group),
            oom_here: oom_here(group),
            pids_max_here: pids_max_here(group),
        }
    }
}

/// Times that memory ran out at this group's own limit. Linux 5.2 brought the file: without it nothing is known.
pub(crate) fn oom_here(group: &Path) -> u64 {
    let text = fs::read_to_string(group.join("memory.events.local")).unwrap_or_default();
    value(&text, "oom").unwrap_or_default()
}

/// Processes that this group's own limit refused, as far as the kernel tells.
pub(crate) fn pids_max_here(group: &Path) -> u64 {
    let count = |name: &str| value(&fs::read_to_string(group.join(name)).ok()?, "max");
    count("pids.events.local").or_else(|| count("pids.events")).unwrap_or_default()
}

/// Processes that were refused. Before Linux 6.11 the count is that of the group which asked, since then that of the
/// group whose limit it was.
fn pids_max(group: &Path) -> u64 {
    let count = |name: &str| value(&fs::read_to_string(group.join(name)).ok()?, "max");
    ["pids.events", "pids.events.local"].into_iter().filter_map(count).max().unwrap_or_default()
}

/// The number behind a name in a file of `NAME NUMBER` lines.
pub(crate) fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// An open file of events. poll(2) and epoll(7) tell of a change by `POLLPRI`, and the next read re-arms it.
#[derive(Debug)]
pub struct EventsFile(File);

impl EventsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = EventsFile(File::open(path).map_err(Error::io("open", path))?);
        // what happened before it was opened is no change
        let _ = file.text();
        Ok(file)
    }

    /// All of it.
    ///
    /// # Errors
    /// The group is gone.
    pub fn text(&self) -> io::Result<String> {
        let mut buffer = [0_u8; 512];
        let read = self.0.read_at(&mut buffer, 0)?;
        Ok(String::from_utf8_lossy(&buffer[..read]).into_owned())
    }
}

impl AsFd for EventsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventsFile {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A file of events in the running runtime.
#[derive(Debug)]
pub struct Notice(AsyncFd<EventsFile>);

impl Notice {
    /// Registers the file with the runtime.
    ///
    /// # Errors
    /// epoll(7) refuses, as it does for an ordinary file.
    pub fn new(file: EventsFile) -> io::Result<Self> {
        // SAFETY: the file stays open, and the same, for as long as the AsyncFd owns it.
        Ok(Notice(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?))
    }

    /// Waits for the next change since the last call, or since it was made. Cancel safe.
    ///
    /// # Errors
    /// The group is gone.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.ready(Interest::PRIORITY).await?;
        // before reading, which arms the kernel's notice again
        ready.clear_ready();
        ready.get_inner().text().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let folder = tempfile::tempdir().unwrap();
        let memory = "low 0\nhigh 1\nmax 22\noom 3\noom_kill 4\noom_group_kill 1\n";
        fs::write(folder.path().join("memory.events"), memory).unwrap();
        fs::write(folder.path().join("pids.events"), "max 0\n").unwrap();
        fs::write(folder.path().join("pids.events.local"), "max 9\n").unwrap();
        let want = Events { memory_max: 22, oom: 3, oom_kill: 4, pids_max: 9, oom_here: 0, pids_max_here: 9 };
        assert_eq!(Events::read(folder.path()), want, "an old kernel has no memory.events.local");
        fs::write(folder.path().join("memory.events.local"), "oom 1\noom_kill 0\n").unwrap();
        fs::write(folder.path().join("pids.events.local"), "max 2\n").unwrap();
        fs::write(folder.path().join("pids.events"), "max 7\n").unwrap();
        let want = Events { pids_max: 7, oom_here: 1, pids_max_here: 2, ..want };
        assert_eq!(Events::read(folder.path()), want, "what the groups below met is not met here");
        assert_eq!(Events::read(Path::new("/no/such/group")), Events::default());
    }

    #[test]
    fn names_are_whole_words() {
        assert_eq!(value("oom_kill 4\noom 3\n", "oom"), Some(3));
        assert_eq!(value("oom_kill 4\n", "oom"), None);
        assert_eq!(value("oom x\n", "oom"), None);
    }
}
