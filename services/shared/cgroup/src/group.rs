//! One control group.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::limits::Setting;
use crate::{Controllers, Error, Events, EventsFile, Figures, Limits, Unmet, events, figures};

/// How long the kernel may take to empty a group after `cgroup.kill`.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A control group; dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Cgroup {
    path: PathBuf,
    /// What groups below it can limit.
    controllers: Controllers,
}

impl Cgroup {
    pub(crate) fn at(path: PathBuf, controllers: Controllers) -> Self {
        Cgroup { path, controllers }
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the groups below it can limit.
    #[must_use]
    pub fn controllers(&self) -> Controllers {
        self.controllers
    }

    /// Makes a group below it, a leaf.
    ///
    /// # Errors
    /// The kernel refuses; there may be one of that name already.
    pub fn child(&self, name: &str) -> Result<Cgroup, Error> {
        let group = self.below(name);
        fs::create_dir(&group.path).map_err(Error::io("make", &group.path))?;
        Ok(group)
    }

    /// The group of this name below it, which need not be there.
    #[must_use]
    pub fn below(&self, name: &str) -> Cgroup {
        Cgroup { path: self.path.join(name), controllers: Controllers::default() }
    }

    /// A group below it that is there.
    #[must_use]
    pub fn existing(&self, name: &str) -> Option<Cgroup> {
        Some(self.below(name)).filter(|group| group.path.is_dir())
    }

    /// Names of the groups below it.
    #[must_use]
    pub fn children(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        let folders = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        folders.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// A descriptor of the folder, for clone3(2) with `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// It is gone.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        File::open(&self.path).map(Into::into).map_err(Error::io("open", &self.path))
    }

    /// Sets limits, as far as `available` (the controllers that the group above gives) has them. What is asked for
    /// and not available comes back; it is the caller's to report.
    ///
    /// # Errors
    /// A value that the kernel does not take.
    pub fn limit(&self, limits: &Limits, available: Controllers) -> Result<Vec<Unmet>, Error> {
        let mut unmet = limits.unmet(available);
        for Setting { file, value, controller, name } in limits.settings() {
            if !available.has(controller) {
                continue;
            }
            match fs::write(self.path.join(file), &value) {
                Ok(()) => {}
                // a kernel may be built without swap accounting, or without anything that weighs disk traffic
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    if !name.is_empty() {
                        unmet.push(Unmet { limit: name, controller });
                    }
                }
                Err(source) => return Err(Error::Limit { limit: file, value, source }),
            }
        }
        Ok(unmet)
    }

    /// Freezes all in it and below it, or has it go on (`cgroup.freeze`).
    ///
    /// # Errors
    /// The kernel refuses; it is gone.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let path = self.path.join("cgroup.freeze");
        fs::write(&path, if frozen { "1" } else { "0" }).map_err(Error::io("write", &path))
    }

    /// Has the kernel take back what memory it can (`memory.reclaim`, Linux 5.19): to swap, or by dropping what is on
    /// disk. The bytes that it was less afterwards; 0 where it cannot.
    #[must_use]
    pub fn reclaim(&self) -> u64 {
        let Some(before) = self.figures().memory else { return 0 };
        // An error is that it could not take back all of it, which was not to be expected.
        let _ = fs::write(self.path.join("memory.reclaim"), before.to_string());
        before.saturating_sub(self.figures().memory.unwrap_or(before))
    }

    /// What it uses, with all below it.
    #[must_use]
    pub fn figures(&self) -> Figures {
        figures::read(&self.path)
    }

    /// How often its limits were met.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::read(&self.path)
    }

    /// How often a process was refused: [`Events::pids_max`] alone, for less.
    #[must_use]
    pub fn refused(&self) -> u64 {
        events::pids_max_here(&self.path)
    }

    /// A file of events, to be waited on.
    ///
    /// # Errors
    /// The controller is not there.
    pub fn watch(&self, name: &str) -> Result<EventsFile, Error> {
        EventsFile::open(&self.path.join(name))
    }

    /// Whether a process is in it or below it.
    #[must_use]
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|text| populated(&text))
    }

    /// Kills every process in it and below it, also those that are being made (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    /// It is gone, or the kernel is older.
    pub fn kill(&self) -> Result<(), Error> {
        let file = self.path.join("cgroup.kill");
        fs::write(&file, "1").map_err(Error::io("write", &file))
    }

    /// Removes it where no process is in it or below it; false: one is.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub fn remove(&self) -> Result<bool, Error> {
        // nearly all are leaves
        if self.discard()? {
            return Ok(true);
        }
        let below = self.children();
        for name in &below {
            if !self.below(name).remove()? {
                return Ok(false);
            }
        }
        if below.is_empty() { Ok(false) } else { self.discard() }
    }

    /// Removes it alone, where it has neither processes nor groups below it; false: it has.
    ///
    /// # Errors
    /// The kernel refuses for another reason.
    pub fn discard(&self) -> Result<bool, Error> {
        match rustix::fs::rmdir(&self.path) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(true),
            Err(rustix::io::Errno::BUSY | rustix::io::Errno::NOTEMPTY) => Ok(false),
            Err(error) => Err(Error::io("remove", &self.path)(error.into())),
        }
    }

    /// How often the memory of this group as a whole ran out at its own limit: [`Events::oom_here`] alone, for less.
    #[must_use]
    pub fn ran_out(&self) -> u64 {
        events::oom_here(&self.path)
    }

    /// Kills what is in it and removes it. Blocks until the kernel has ended all, which takes milliseconds.
    ///
    /// # Errors
    /// The kernel refuses, or a process does not end within ten seconds.
    pub fn end(&self) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            if self.remove()? {
                return Ok(());
            }
            self.kill()?;
            self.wait_empty(deadline)?;
        }
    }

    /// Waits for `populated 0`; poll(2) tells of changes of `cgroup.events` by `POLLPRI`.
    fn wait_empty(&self, deadline: Instant) -> Result<(), Error> {
        let path = self.path.join("cgroup.events");
        let events = EventsFile::open(&path)?;
        loop {
            if !events.text().is_ok_and(|text| populated(&text)) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::io("wait for the end of all in", &self.path)(std::io::ErrorKind::TimedOut.into()));
            }
            let mut watched = [PollFd::new(&events, PollFlags::PRI)];
            let limit = Timespec::try_from(left).ok();
            match poll(&mut watched, limit.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("wait on", &path)(error.into())),
            }
        }
    }
}

fn populated(text: &str) -> bool {
    text.lines().any(|line| line == "populated 1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Controller;

    #[test]
    fn limits_that_are_not_available_come_back() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["memory.max", "memory.swap.max", "memory.oom.group"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let group = Cgroup::at(folder.path().to_owned(), Controllers::default());
        let limits = Limits { memory_max: Some(1 << 20), pids_max: Some(7), ..Limits::default() };
        let unmet = group.limit(&limits, Controllers::default().with(Controller::Memory)).unwrap();
        assert_eq!(unmet, [Unmet { limit: "pids_max", controller: Controller::Pids }]);
        assert_eq!(fs::read_to_string(folder.path().join("memory.max")).unwrap(), "1048576");
        assert_eq!(fs::read_to_string(folder.path().join("memory.swap.max")).unwrap(), "0");
    }

    #[test]
    fn a_file_that_the_kernel_does_not_have_is_an_unmet_limit() {
        let group = Cgroup::at("/no/such/group".into(), Controllers::default());
        let limits = Limits { io_weight: Some(5), ..Limits::default() };
        let unmet = group.limit(&limits, Controllers::default().with(Controller::Io)).unwrap();
        assert_eq!(unmet, [Unmet { limit: "io_weight", controller: Controller::Io }]);
    }

    #[test]
    fn populated_is_a_whole_line() {
        assert!(populated("populated 1\nfrozen 0\n"));
        assert!(!populated("populated 0\nfrozen 1\n"));
        assert!(!populated(""));
    }

    #[test]
    fn folders_below_are_removed_first() {
        let folder = tempfile::tempdir().unwrap();
        let group = Cgroup::at(folder.path().join("w"), Controllers::default());
        fs::create_dir(group.path()).unwrap();
        group.child("keeper").unwrap();
        group.child("leaf").unwrap();
        assert!(group.remove().unwrap());
        assert!(!group.path().exists());
        assert!(group.remove().unwrap(), "one that is gone is removed");
    }
}
