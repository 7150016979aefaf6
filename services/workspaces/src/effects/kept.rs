//! Folders that outlive their workspaces: `/work` of one whose spec says `on_exit = "keep"` or `"snapshot"`.
//!
//! They lie in the service's state folder, by the user who created the workspace and its name. What is in them
//! is on the disk as soon as it is written, however the workspace or the service ends.
//!
//! ```text
//! STATE/kept/UID/=NAME               snapshot: there again at the next start of that user's workspace of that name
//! STATE/kept/UID/=NAME~ULID          keep: of one workspace that was called so; nobody gets it again
//! STATE/kept/UID/+NAME, +NAME~ULID   what was changed in its overlays, as above
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shipote_bus::spec::ExitPolicy;
use shipote_sandbox::{Access, PathGrant, Spawner};
use ulid::Ulid;

use super::gauge::Gauge;
use super::kept_size::KeptSize;

/// Most folders that are kept; nothing is removed to make room.
const FOLDERS_MAX: usize = 256;

/// Whose folders are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whose<'a> {
    pub(crate) policy: ExitPolicy,
    pub(crate) uid: u32,
    pub(crate) name: &'a str,
    pub(crate) id: Ulid,
    /// It has overlays, whose layers are kept with the rest.
    pub(crate) overlays: bool,
}

/// The kept folders. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct KeptFolders {
    folder: PathBuf,
    /// Who measures what the service may not look into.
    gauge: Option<Arc<Gauge>>,
}

impl KeptFolders {
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("kept");
        make(&folder)?;
        // no link is followed when one of them is given to a workspace
        Ok(KeptFolders { folder: folder.canonicalize()?, gauge: None })
    }

    /// The same, in which also what belongs to ids of workspaces' own can be measured.
    pub(super) fn measured_by(self, spawner: Arc<Spawner>) -> Self {
        let gauge = Some(Arc::new(Gauge::new(spawner, self.folder.clone())));
        KeptFolders { gauge, ..self }
    }

    /// The folders of a workspace: `/work`, and the layers of its overlays where it has some. None are made.
    fn names(&self, whose: &Whose<'_>) -> Vec<PathBuf> {
        let user = self.folder.join(whose.uid.to_string());
        let kinds = if whose.overlays { "=+" } else { "=" };
        // A name has no `/`; those of the socket's second `demo` end in `~2`, which is no ULID.
        let name = |kind| match whose.policy {
            ExitPolicy::Keep => format!("{kind}{}~{}", whose.name, whose.id),
            ExitPolicy::Reap | ExitPolicy::Snapshot => format!("{kind}{}", whose.name),
        };
        let kept = whose.policy != ExitPolicy::Reap;
        kinds.chars().filter(|_| kept).map(|kind| user.join(name(kind))).collect()
    }

    /// The folders of a workspace that is about to start; none for one that leaves nothing.
    ///
    /// # Errors
    /// What could not be made, and why; [`io::ErrorKind::QuotaExceeded`] where too many are kept.
    fn of(&self, whose: &Whose<'_>) -> io::Result<Vec<PathBuf>> {
        let all = self.names(whose);
        for path in &all {
            if path.is_dir() {
                continue;
            }
            if self.count() >= FOLDERS_MAX {
                let text = format!("{FOLDERS_MAX} folders are kept in {} already; remove some", self.folder.display());
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
            }
            path.parent().map_or(Ok(()), make)?;
            make(path)?;
        }
        Ok(all)
    }

    /// What a workspace that is about to start is given to keep, and the bound of it. Blocks.
    ///
    /// # Errors
    /// What could not be made, and why; more lies there than `limit`, in bytes.
    pub(crate) fn grants(&self, whose: &Whose<'_>, limit: u64) -> Result<(Vec<PathGrant>, Option<KeptSize>), String> {
        let folders = self.of(whose).map_err(|error| error.to_string())?;
        if folders.is_empty() {
            return Ok((Vec::new(), None));
        }
        let size = KeptSize::new(folders.clone(), limit, self.gauge.clone())?;
        let uses = [(Some("/work"), Access::Own), (None, Access::Layers)];
        let grant = |(path, (target, access)): (PathBuf, (Option<&str>, Access))| PathGrant {
            path,
            target: target.map(PathBuf::from),
            access,
        };
        Ok((folders.into_iter().zip(uses).map(grant).collect(), Some(size)))
    }

    /// The bound of what a workspace keeps that lives on.
    pub(crate) fn resume(&self, whose: &Whose<'_>, limit: u64) -> Option<KeptSize> {
        let folders = self.names(whose);
        (!folders.is_empty()).then(|| KeptSize::resume(folders, limit, self.gauge.clone()))
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
        fn whose(policy: ExitPolicy, uid: u32, name: &str) -> Whose<'_> {
            Whose { policy, uid, name, id: Ulid::generate(), overlays: false }
        }
        let all = |policy, uid, name: &str| kept.of(&whose(policy, uid, name)).unwrap();
        let of = |policy, uid, name: &str| all(policy, uid, name).pop().unwrap();
        assert!(all(ExitPolicy::Reap, 1, "a").is_empty());
        let first = of(ExitPolicy::Snapshot, 1, "a");
        assert!(first.starts_with(state.path()) && first.is_dir());
        assert_eq!(of(ExitPolicy::Snapshot, 1, "a"), first);
        assert_ne!(of(ExitPolicy::Snapshot, 2, "a"), first);
        assert_ne!(of(ExitPolicy::Keep, 1, "a"), of(ExitPolicy::Keep, 1, "a"));
        let overlays = Whose { overlays: true, ..whose(ExitPolicy::Snapshot, 1, "a") };
        let both = kept.of(&overlays).unwrap();
        assert!(both[0] == first && both.len() == 2 && both[1].is_dir(), "{both:?}");
        for name in ["..", ".", "é b"] {
            let path = of(ExitPolicy::Snapshot, 1, name);
            assert_eq!(path.parent(), first.parent(), "{name}");
        }
        for i in kept.count()..FOLDERS_MAX {
            of(ExitPolicy::Snapshot, 3, &i.to_string());
        }
        let full = kept.of(&whose(ExitPolicy::Snapshot, 3, "one more")).unwrap_err();
        assert!(full.to_string().contains("remove some"), "{full}");
        assert_eq!(of(ExitPolicy::Snapshot, 1, "a"), first);
    }

    #[test]
    fn what_is_given_is_bounded_by_what_lies_there() {
        let state = tempfile::tempdir().unwrap();
        let kept = KeptFolders::open(state.path()).unwrap();
        let whose = Whose { policy: ExitPolicy::Snapshot, uid: 1, name: "a", id: Ulid::generate(), overlays: true };
        let (grants, size) = kept.grants(&whose, 50_000).unwrap();
        assert_eq!(grants.iter().map(|grant| grant.access).collect::<Vec<_>>(), [Access::Own, Access::Layers]);
        assert_eq!(size.unwrap().limit(), 50_000);
        fs::write(grants[1].path.join("big"), vec![1; 100_000]).unwrap();
        assert!(kept.grants(&whose, 50_000).unwrap_err().contains("more than 50000 bytes"));
        assert!(kept.grants(&whose, 500_000).is_ok());
    }
}
