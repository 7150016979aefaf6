//! The shared root: built once, and many workspaces have it in common.
//!
//! Most workspaces add nothing of the host to their root, and all but a few mounts of theirs are the same in each. So
//! the spawner has a child build those once, read-only, in a mount namespace of its own that the child leaves behind:
//!
//! ```text
//!   spawner ── setns ──▶ its mount namespace ── clone3 ──▶ keeper: the kernel has copied the mounts, and locked
//!      ▲                        │                         each to what it is (mount_namespaces(7)); it adds
//!      └──────── setns ─────────┘                         its own /proc, scratch, terminals
//! ```
//!
//! The keeper never sees the host's mounts, and has nothing to leave. What is shared is one small file system in memory
//! that no workspace can write to: it is mounted read-only, and the lock on that is the kernel's.
//!
//! It is built anew when what it was made from has changed: a mount of the host, or what is at a name that it took.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::{Ids, layout};
use crate::spec::SandboxSpec;
use crate::sys::{self, Side};

/// The spawner's shared root: none where it may not enter another mount namespace and come back.
pub(crate) struct SharedRoots {
    home: Option<Home>,
    /// What the last one was made from; and it, where it could be made.
    last: Option<(Vec<Fingerprint>, Option<SharedRoot>)>,
}

/// Where the spawner is at home.
struct Home {
    namespace: OwnedFd,
    folder: OwnedFd,
    mounts: Mounts,
}

/// Tells when a mount of the mount namespace that this was opened in has changed (proc_pid_mountinfo(5)).
struct Mounts(File);

struct SharedRoot {
    namespace: OwnedFd,
}

/// A shared root that is ready for one more workspace.
pub(crate) struct Ready<'a> {
    home: &'a Home,
    root: &'a SharedRoot,
}

/// What is at a name: another thing has another one.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint(Option<(u64, u64, i64, i64)>);

impl SharedRoots {
    pub(crate) fn new() -> Self {
        Self { home: Home::find(), last: None }
    }

    /// Whether a workspace of this spec gets the shared root here, as far as is known.
    pub(crate) fn serves(&self, spec: &SandboxSpec) -> bool {
        self.home.is_some() && layout::shares_root(spec) && !matches!(self.last, Some((_, None)))
    }

    /// The root for a workspace of this spec, with ids of its own or not; none where it takes more than that, or where
    /// none can be made: then its keeper builds everything itself.
    pub(crate) fn fitting(&mut self, spec: &SandboxSpec, ranged: bool) -> Option<Ready<'_>> {
        let home = self.home.as_ref().filter(|_| layout::shares_root(spec))?;
        let changed = home.mounts.changed();
        let fingerprints = fingerprints();
        if changed || self.last.as_ref().is_none_or(|(from, _)| *from != fingerprints) {
            let made = SharedRoot::make(Ids::of(ranged)).ok();
            self.last = Some((fingerprints, made));
        }
        self.last.as_ref()?.1.as_ref().map(|root| Ready { home, root })
    }
}

impl Ready<'_> {
    /// As [`sys::clone3`], the child in the root.
    ///
    /// # Safety
    /// As [`sys::clone3`].
    pub(crate) unsafe fn clone3(&self, flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
        enter(self.root.namespace.as_fd())?;
        // SAFETY: the caller's promise.
        let side = unsafe { sys::clone3(flags, cgroup) };
        if !matches!(side, Ok(Side::Child)) && self.home.enter().is_err() {
            // Nothing that is asked of it from now on would mean what it says.
            sys::exit(70);
        }
        side
    }
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Mount))?)
}

impl Home {
    /// None where this process has not the right to leave it, or could not come back to the same root.
    fn find() -> Option<Self> {
        let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_CHROOT;
        if !rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed)) {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).ok()?;
        let folder = rustix::fs::openat(CWD, ".", flags, Mode::empty()).ok()?;
        let namespace = File::open("/proc/self/ns/mnt").ok()?.into();
        let mounts = Mounts::open().ok()?;
        let home = Self { namespace, folder, mounts };
        let before = Fingerprint::of(fs::metadata("/"));
        home.enter().ok()?;
        if Fingerprint::of(fs::metadata("/")) == before {
            return Some(home);
        }
        // The root is not that of the namespace (chroot(2)): nobody there could make user namespaces anyway.
        let back = rustix::process::fchdir(&root)
            .and_then(|()| rustix::process::chroot("."))
            .and_then(|()| rustix::process::fchdir(&home.folder));
        if back.is_err() {
            sys::exit(70);
        }
        None
    }

    fn enter(&self) -> io::Result<()> {
        enter(self.namespace.as_fd())?;
        Ok(rustix::process::fchdir(&self.folder)?)
    }
}

impl Mounts {
    fn open() -> io::Result<Self> {
        File::open("/proc/self/mountinfo").map(Self)
    }

    /// Whether one has since this was asked last.
    fn changed(&self) -> bool {
        let mut watched = [PollFd::new(&self.0, PollFlags::PRI)];
        !matches!(poll(&mut watched, Some(&Timespec::default())), Ok(0))
    }
}

impl SharedRoot {
    /// Has a child build one.
    fn make(ids: Ids) -> io::Result<Self> {
        let (finished, finish) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (wait, seen) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let namespaces = (libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;
        // SAFETY: the spawner has one thread, and the child ends here.
        match unsafe { sys::clone3(namespaces, None) }? {
            Side::Child => {
                sys::keep_only(&[finish.as_raw_fd(), wait.as_raw_fd()]);
                rustix::process::umask(Mode::from_raw_mode(0o022));
                let built = std::panic::catch_unwind(|| layout::build_shared(ids));
                if matches!(built, Ok(Ok(()))) && rustix::io::write(&finish, &[1]).is_ok() {
                    let _ = rustix::io::read(&wait, &mut [0_u8; 1]);
                }
                sys::exit(0)
            }
            Side::Parent { pid, .. } => {
                drop((finish, wait));
                let made = match rustix::io::read(&finished, &mut [0_u8; 1]) {
                    Ok(1) => File::open(format!("/proc/{pid}/ns/mnt")),
                    _ => Err(io::ErrorKind::Other.into()),
                };
                drop(seen);
                // SAFETY: waits for the child, which reads the end of its pipe.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
                Ok(Self { namespace: made?.into() })
            }
        }
    }
}

impl Fingerprint {
    fn of(found: io::Result<Metadata>) -> Self {
        Self(found.ok().map(|found| {
            // What comes and goes in a directory changes its times, and shows in the root by itself.
            let (seconds, nanoseconds) = if found.is_dir() { (0, 0) } else { (found.ctime(), found.ctime_nsec()) };
            (found.dev(), found.ino(), seconds, nanoseconds)
        }))
    }
}

/// What of the host shows in workspaces, at some time: the mounts that there are, and what is at the names that a
/// workspace without further files of the host takes. A workspace that was made at another is what it would be now as long as
/// this is the same.
#[derive(Debug, PartialEq, Eq)]
pub struct HostMark {
    fingerprints: Vec<Fingerprint>,
    /// How often this process has seen its mounts change.
    changes: u64,
}

impl HostMark {
    /// As it is now, for this process.
    #[must_use]
    pub fn now() -> Self {
        static SEEN: Mutex<(Option<Mounts>, u64)> = Mutex::new((None, 0));
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (mounts, changes) = &mut *seen;
        if mounts.is_none() {
            *mounts = Mounts::open().ok();
        }
        // Where nobody tells, each is another.
        if mounts.as_ref().is_none_or(Mounts::changed) {
            *changes += 1;
        }
        Self { fingerprints: fingerprints(), changes: *changes }
    }
}

/// The fingerprints of all that a shared root takes from the host, links and what they lead to.
fn fingerprints() -> Vec<Fingerprint> {
    let root = Path::new("/");
    let system = layout::SYSTEM.iter().map(|name| root.join(name));
    let stores = layout::STORES.iter().map(PathBuf::from);
    let configuration = layout::CONFIGURATION.iter().map(|name| Path::new("/etc").join(name));
    std::iter::once(root.join("usr"))
        .chain(system)
        .chain(stores)
        .chain(configuration)
        .flat_map(|path| {
            let link = fs::symlink_metadata(&path);
            let led_to = link.as_ref().is_ok_and(Metadata::is_symlink).then(|| Fingerprint::of(fs::metadata(&path)));
            std::iter::once(Fingerprint::of(link)).chain(led_to)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn another_file_at_a_name_has_another_fingerprint_and_a_grown_directory_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let (path, next) = (folder.path().join("ld.so.cache"), folder.path().join("next"));
        fs::write(&path, "one").unwrap();
        let kept = File::open(&path).unwrap();
        let of = |path: &Path| Fingerprint::of(fs::symlink_metadata(path));
        let (file, directory) = (of(&path), of(folder.path()));
        assert_eq!(of(&path), file);
        fs::write(&next, "two").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_ne!(of(&path), file);
        assert_eq!(of(folder.path()), directory);
        fs::remove_file(&path).unwrap();
        assert_ne!(of(&path), file);
        drop(kept);
    }
}
