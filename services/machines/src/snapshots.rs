//! Snapshots: a machine's disk as it was at one moment, and its spec, kept by a name of their own.
//!
//! What is in a machine's memory is in none of them: not what runs, nor the agent's own root, which is made anew at every
//! boot. Neither are its volumes.
//!
//! ```text
//! <state>/.snapshots/<name>/snapshot.toml   of what, when and how
//!                           disk.img
//! ```
//!
//! Invariant: a snapshot appears by one rename, whole, and on the disk; one that was not finished has another name and is
//! removed at the next start. All calls block.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shipote_state::Format;

use crate::Error;
use crate::disk;
use crate::spec::{Spec, check_name};
use crate::store::{read_toml, write_toml};

/// Snapshots that may exist.
pub const SNAPSHOTS_MAX: usize = 256;
/// Their folder; no machine is called so.
const FOLDER: &str = ".snapshots";
/// What one that is not finished is called by; no snapshot has the dot.
const UNFINISHED: &str = "new.";
const ABOUT: &str = "snapshot.toml";
const FORMAT: Format = Format { key: "version", first: 1, steps: &[] };

/// In what state the disk was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// The machine had powered off, and written all that it had to write.
    Stopped,
    /// The machine ran: all was written that it had to write, and then its processors stood still.
    Synced,
    /// The machine was paused, or had ended otherwise than by powering off: as after a power cut at that time.
    Cut,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Machine that it is of, which may be gone.
    pub machine: String,
    /// Seconds since 1970.
    pub created: u64,
    /// How it was taken.
    pub consistency: Consistency,
    /// The machine's spec.
    pub spec: Spec,
}

/// All of them.
#[derive(Debug, Clone)]
pub struct Snapshots(PathBuf);

impl Snapshots {
    /// Those of a state folder.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self(state.join(FOLDER))
    }

    /// Removes what was not finished.
    pub fn tidy(&self) {
        for name in self.names().into_iter().filter(|name| name.starts_with(UNFINISHED)) {
            let _ = std::fs::remove_dir_all(self.0.join(name));
        }
    }

    /// Whether there could be one more of this name.
    ///
    /// # Errors
    /// The name is none or taken, or there are too many.
    pub fn check(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        if self.0.join(name).exists() {
            return Err(Error::SnapshotTaken(name.to_owned()));
        }
        if self.names().len() >= SNAPSHOTS_MAX {
            let problem = format!("there are {SNAPSHOTS_MAX} snapshots already, which is the limit; remove one");
            return Err(Error::InvalidSpec { name: name.to_owned(), problem });
        }
        Ok(())
    }

    /// Takes one of a disk, which nobody writes to meanwhile.
    ///
    /// # Errors
    /// As [`Self::check`], or the file system refuses.
    pub fn take(&self, name: &str, of: &str, spec: &Spec, how: Consistency, from: &Path) -> Result<Snapshot, Error> {
        self.check(name)?;
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let snapshot = Snapshot { machine: of.to_owned(), created, consistency: how, spec: spec.clone() };
        let work = self.0.join(format!("{UNFINISHED}{name}"));
        let failed = || Error::io("take the snapshot", work.display());
        // Two of one name at once: the second finds the first's folder.
        std::fs::create_dir_all(&self.0).and_then(|()| std::fs::create_dir(&work)).map_err(failed())?;
        let taken = (|| {
            disk::copy(from, &work.join(disk::FILE))?;
            write_toml(FORMAT, &work.join(ABOUT), &snapshot)?;
            sync(&work)?;
            let exclusive = rustix::fs::RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(rustix::fs::CWD, &work, rustix::fs::CWD, self.0.join(name), exclusive)
                .map_err(|error| Error::io("keep the snapshot", name)(error.into()))?;
            sync(&self.0)
        })();
        if taken.is_err() {
            let _ = std::fs::remove_dir_all(&work);
        }
        taken.map(|()| snapshot)
    }

    /// What is known of one.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], or its file is damaged.
    pub fn get(&self, name: &str) -> Result<Snapshot, Error> {
        let absent = || Error::NoSuchSnapshot(name.to_owned());
        check_name(name).map_err(|_| absent())?;
        let path = self.0.join(name).join(ABOUT);
        if !path.exists() {
            return Err(absent());
        }
        read_toml(FORMAT, &path)
            .map_err(|refused| Error::io("read", path.display())(std::io::Error::other(refused.to_string())))
    }

    /// Copies one's disk to a new file.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], or the file system refuses.
    pub fn restore(&self, name: &str, to: &Path) -> Result<(), Error> {
        check_name(name).map_err(|_| Error::NoSuchSnapshot(name.to_owned()))?;
        disk::copy(&self.0.join(name).join(disk::FILE), to)
    }

    /// All, by name; one that cannot be read is left out, with a line in the log.
    #[must_use]
    pub fn list(&self) -> Vec<(String, Snapshot)> {
        let mut names = self.names();
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        let read = |name: String| match self.get(&name) {
            Ok(snapshot) => Some((name, snapshot)),
            Err(error) => {
                tracing::error!("snapshot {name}: {error}");
                None
            }
        };
        names.into_iter().filter_map(read).collect()
    }

    /// Bytes that one takes on the host's disk; what it shares with others counts in full.
    #[must_use]
    pub fn size(&self, name: &str) -> u64 {
        let stat = std::fs::metadata(self.0.join(name).join(disk::FILE));
        stat.map_or(0, |stat| std::os::unix::fs::MetadataExt::blocks(&stat) * 512)
    }

    /// Removes one.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`], or the file system refuses.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let absent = || Error::NoSuchSnapshot(name.to_owned());
        check_name(name).map_err(|_| absent())?;
        // It is gone at once, whatever becomes of its files.
        let (path, gone) = (self.0.join(name), self.0.join(format!("{UNFINISHED}removed.{name}")));
        let _ = std::fs::remove_dir_all(&gone);
        match std::fs::rename(&path, &gone) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(absent()),
            other => other.map_err(Error::io("remove", path.display()))?,
        }
        std::fs::remove_dir_all(&gone).map_err(Error::io("remove", gone.display()))
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io("write", folder.display()))
}

impl Consistency {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Synced => "synced",
            Self::Cut => "cut",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_disk(content: &[u8]) -> (tempfile::TempDir, Snapshots, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from.img");
        std::fs::write(&from, content).unwrap();
        let snapshots = Snapshots::new(dir.path());
        (dir, snapshots, from)
    }

    #[test]
    fn a_snapshot_is_kept_copied_and_removed() {
        let (dir, snapshots, from) = with_disk(b"one");
        let spec = Spec { memory_mib: 128, disk_mib: 64, ..Spec::default() };
        assert!(snapshots.list().is_empty());
        let taken = snapshots.take("first", "web", &spec, Consistency::Synced, &from).unwrap();
        std::fs::write(&from, "two").unwrap();
        assert_eq!(snapshots.list(), [("first".to_owned(), taken.clone())]);
        assert_eq!((taken.machine.as_str(), &taken.spec), ("web", &spec));
        let to = dir.path().join("to.img");
        snapshots.restore("first", &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), b"one");
        let again = snapshots.take("first", "web", &spec, Consistency::Stopped, &from).unwrap_err().to_string();
        assert!(again.contains("taken"), "{again}");
        assert_eq!(snapshots.get("first").unwrap(), taken);
        snapshots.remove("first").unwrap();
        for error in [
            snapshots.remove("first").unwrap_err(),
            snapshots.get("first").unwrap_err(),
            snapshots.get("../web").unwrap_err(),
            snapshots.remove("../web").unwrap_err(),
            snapshots.restore("..", &to).unwrap_err(),
        ] {
            assert!(matches!(error, Error::NoSuchSnapshot(_)), "{error}");
        }
        assert!(snapshots.names().is_empty());
    }

    #[test]
    fn what_was_not_finished_is_no_snapshot() {
        let (dir, snapshots, from) = with_disk(b"one");
        let spec = Spec::default();
        let nowhere = dir.path().join("nowhere.img");
        snapshots.take("failed", "web", &spec, Consistency::Stopped, &nowhere).unwrap_err();
        assert!(snapshots.names().is_empty(), "a failure leaves nothing");
        std::fs::create_dir(dir.path().join(".snapshots/new.torn")).unwrap();
        assert!(snapshots.take("torn", "web", &spec, Consistency::Stopped, &from).is_err(), "another makes it");
        assert!(snapshots.list().is_empty());
        snapshots.tidy();
        snapshots.take("torn", "web", &spec, Consistency::Stopped, &from).unwrap();
        std::fs::write(dir.path().join(".snapshots/torn/snapshot.toml"), "version = 9\n").unwrap();
        assert!(snapshots.get("torn").unwrap_err().to_string().contains("snapshot.toml"));
    }
}
