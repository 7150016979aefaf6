//! One cgroup a command (cgroup v2), so that nothing it started outlives it, in whatever session it hides.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, open};

/// Makes cgroups for commands, where the agent may.
pub(crate) struct Cgroups {
    root: Option<PathBuf>,
    next: AtomicU64,
    /// Cgroups of ended commands that still had members when last looked at.
    ended: Arc<Mutex<Vec<PathBuf>>>,
}

/// A command's cgroup; removed when the command has ended or it is dropped, or as soon after as its last member has died.
pub(crate) struct Cgroup {
    path: PathBuf,
    removed: bool,
    ended: Arc<Mutex<Vec<PathBuf>>>,
}

impl Cgroups {
    /// Commands get none: a process that is not PID 1 of a machine owns no part of the hierarchy.
    pub(crate) fn none() -> Self {
        Self { root: None, next: AtomicU64::new(1), ended: Arc::default() }
    }

    /// Commands get one beneath `root`.
    pub(crate) fn beneath(root: PathBuf) -> Self {
        Self { root: Some(root), ..Self::none() }
    }

    /// A new cgroup, and its folder, by which a process is made in it.
    pub(crate) fn create(&self) -> std::io::Result<Option<(Cgroup, OwnedFd)>> {
        let Some(root) = &self.root else { return Ok(None) };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.retain(|path| std::fs::remove_dir(path).is_err());
        drop(ended);
        let path = root.join(format!("exec-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path)?;
        let cgroup = Cgroup { path, removed: false, ended: Arc::clone(&self.ended) };
        let folder = open(&cgroup.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Some((cgroup, folder)))
    }
}

impl Cgroup {
    /// Removes it, which the kernel does only where nothing lives in it, and else kills every member. Nearly always the
    /// command was the only one.
    pub(crate) fn end(mut self) {
        self.removed = std::fs::remove_dir(&self.path).is_ok();
        if !self.removed {
            self.kill();
        }
    }

    /// Kills every member.
    pub(crate) fn kill(&self) {
        if let Err(error) = std::fs::write(self.path.join("cgroup.kill"), "1") {
            eprintln!("shipote-agent: kill {}: {error}", self.path.display());
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.removed && std::fs::remove_dir(&self.path).is_err() {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.push(std::mem::take(&mut self.path));
        }
    }
}
