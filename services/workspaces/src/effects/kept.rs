//! Folders that outlive their workspaces: `/work` of one whose spec says `on_exit = "keep"` or `"snapshot"`.
//!
//! They lie in the service's state folder, by the user who created the workspace and its name. What is in them
//! is on the disk as soon as it is written, however the workspace or the service ends.
//!
//! ```text
//! STATE/kept/UID/NAME               snapshot: there again at the next start of that user's workspace of that name
//! STATE/kept/UID/NAME~ULID          keep: of one workspace that was called so; nobody gets it again
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use shipote_bus::spec::ExitPolicy;
use shipote_sandbox::{Access, PathGrant};
use ulid::Ulid;

/// Most folders that are kept; nothing is removed to make room.
const FOLDERS_MAX: usize = 256;
/// The kept folders. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct KeptFolders {
    folder: PathBuf,
}

impl KeptFolders {
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("kept");
        make(&folder)?;
        // no link is followed when one of them is given to a workspace
        Ok(KeptFolders { folder: folder.canonicalize()? })
    }

    /// The folder of a workspace that is about to start; None for one that leaves nothing.
    ///
    /// # Errors
    /// What could not be made, and why; [`io::ErrorKind::QuotaExceeded`] where too many are kept.
    pub(crate) fn of(&self, policy: ExitPolicy, uid: u32, name: &str, id: Ulid) -> io::Result<Option<PathBuf>> {
        let user = self.folder.join(uid.to_string());
        // A name has no `/`; those of the socket's second `demo` end in `~2`, which is no ULID.
        let path = match policy {
            ExitPolicy::Reap => return Ok(None),
            ExitPolicy::Keep => user.join(format!("={name}~{id}")),
            ExitPolicy::Snapshot => user.join(format!("={name}")),
        };
        if path.is_dir() {
            return Ok(Some(path));
        }
        if self.count() >= FOLDERS_MAX {
            let text = format!("{FOLDERS_MAX} folders are kept in {} already; remove some", self.folder.display());
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        make(&user)?;
        make(&path)?;
        Ok(Some(path))
    }

    /// As [`KeptFolders::of`], as what the workspace is given at `/work`.
    pub(crate) async fn grant(
        &self,
        policy: ExitPolicy,
        uid: u32,
        name: &str,
        id: Ulid,
    ) -> io::Result<Option<PathGrant>> {
        if policy == ExitPolicy::Reap {
            return Ok(None);
        }
        let (folders, name) = (self.clone(), name.to_owned());
        let made = tokio::task::spawn_blocking(move || folders.of(policy, uid, &name, id)).await;
        let path = made.map_err(io::Error::other)??;
        Ok(path.map(|path| PathGrant { path, target: Some("/work".into()), access: Access::Own }))
    }

    fn count(&self) -> usize {
        let users = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        users.filter_map(|user| fs::read_dir(user.path()).ok()).map(Iterator::count).sum()
    }
}

fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("make {}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_by_user_and_name_and_bounded() {
        let state = tempfile::tempdir().unwrap();
        let kept = KeptFolders::open(state.path()).unwrap();
        let of = |policy, uid, name: &str| kept.of(policy, uid, name, Ulid::generate()).unwrap();
        assert_eq!(of(ExitPolicy::Reap, 1, "a"), None);
        let first = of(ExitPolicy::Snapshot, 1, "a").unwrap();
        assert!(first.starts_with(state.path()) && first.is_dir());
        assert_eq!(of(ExitPolicy::Snapshot, 1, "a").unwrap(), first);
        assert_ne!(of(ExitPolicy::Snapshot, 2, "a").unwrap(), first);
        assert_ne!(of(ExitPolicy::Keep, 1, "a").unwrap(), of(ExitPolicy::Keep, 1, "a").unwrap());
        for name in ["..", ".", "é b"] {
            let path = of(ExitPolicy::Snapshot, 1, name).unwrap();
            assert_eq!(path.parent(), first.parent(), "{name}");
        }
        for i in kept.count()..FOLDERS_MAX {
            of(ExitPolicy::Snapshot, 3, &i.to_string());
        }
        let full = kept.of(ExitPolicy::Snapshot, 3, "one more", Ulid::generate()).unwrap_err();
        assert!(full.to_string().contains("remove some"), "{full}");
        assert_eq!(of(ExitPolicy::Snapshot, 1, "a").unwrap(), first);
    }
}
