//! From a path in a request to a directory that is open and a name in it.
//!
//! Every component is opened beneath the one before it (openat2(2), `RESOLVE_BENEATH`), so that the file reached lies
//! beneath every directory that the path names: `/bin/sh` is found where `/bin` is a link to `usr/bin`, but
//! `/tmp/x/passwd` is refused where `/tmp/x` is a link to `/etc` or to `../etc`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;

use super::FileError;

/// The tree that file requests reach.
pub(crate) struct Tree(OwnedFd);

/// A directory and the name of a file in it, which may not exist.
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: String,
}

pub(super) const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Tree {
    pub(crate) fn open(root: &Path) -> std::io::Result<Self> {
        Ok(Self(open(root, DIRECTORY, Mode::empty())?))
    }

    /// The directory that `/` stands for.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Where `path` leads. With `make` the directories on the way are made (mode 0755) where they are missing.
    pub(super) fn place(&self, path: &str, make: bool) -> Result<Place, FileError> {
        let (parents, name) = split(path)?;
        let io = |error: Errno| FileError::from_io("open", path, error);
        let mut directory = self.0.try_clone().map_err(|error| FileError::from_io("open", path, error))?;
        for parent in parents {
            let next = openat2(&directory, parent, DIRECTORY, Mode::empty(), BENEATH);
            directory = match next {
                Err(Errno::NOENT) if make => {
                    match mkdirat(&directory, parent, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(FileError::from_io("make directory", path, error)),
                    }
                    openat2(&directory, parent, DIRECTORY, Mode::empty(), BENEATH).map_err(io)?
                }
                other => other.map_err(io)?,
            };
        }
        Ok(Place { directory, name: name.to_owned() })
    }
}

/// The components of an absolute path: those on the way, and the last.
fn split(path: &str) -> Result<(Vec<&str>, &str), FileError> {
    let invalid = |reason: &str| FileError::invalid(path, reason);
    if path.contains('\0') {
        return Err(invalid("a path holds no NUL"));
    }
    if path.ends_with('/') {
        return Err(invalid("names a directory"));
    }
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return Err(invalid("not an absolute path"));
    }
    let mut names = Vec::new();
    for component in components {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or_else(|| invalid("not UTF-8"))?),
            Component::ParentDir => return Err(invalid("`..` is not allowed in a path")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let name = names.pop().ok_or_else(|| invalid("names a directory"))?;
    Ok((names, name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        for (path, parents, name) in [
            ("/a", vec![], "a"),
            ("/a/b", vec!["a"], "b"),
            ("//a//./b/c", vec!["a", "b"], "c"),
            ("/a/...", vec!["a"], "..."),
        ] {
            assert_eq!(split(path).unwrap(), (parents, name), "{path}");
        }
        for path in ["", "/", "a", "./a", "/..", "/a/../b", "/a/..", "/a/", "/a\0", "/a/."] {
            let result = split(path);
            // Path drops a trailing `/.`, which leaves the name before it.
            assert!(result.is_err() || path == "/a/.", "{path}: {result:?}");
        }
    }

    #[test]
    fn links_lead_nowhere_but_beneath_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("usr/bin")).unwrap();
        std::fs::create_dir_all(at("tmp/real")).unwrap();
        std::fs::create_dir(at("etc")).unwrap();
        symlink("usr/bin", at("bin")).unwrap();
        symlink("real", at("tmp/inside")).unwrap();
        symlink("../etc", at("tmp/up")).unwrap();
        symlink("/etc", at("tmp/absolute")).unwrap();
        symlink("/proc/self/root", at("tmp/magic")).unwrap();
        symlink("loop", at("tmp/loop")).unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        for good in ["/bin/sh", "/tmp/inside/x", "/etc/x"] {
            assert!(tree.place(good, false).is_ok(), "{good}");
        }
        for bad in ["/tmp/up/x", "/tmp/absolute/x", "/tmp/magic/x", "/tmp/loop/x"] {
            assert!(matches!(tree.place(bad, true), Err(FileError::Invalid { .. })), "{bad}");
        }
        assert!(matches!(tree.place("/none/x", false), Err(FileError::NotFound { .. })));
        assert!(tree.place("/made/on/the/way/x", true).is_ok());
        assert!(at("made/on/the/way").is_dir());
    }
}
