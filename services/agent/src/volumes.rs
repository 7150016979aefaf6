//! Folders of the host, as virtiofs: mounted where the machine's spec says, in the agent's own root and in the root of
//! every command of an image.
//!
//! Not for: who may do what with the files; the host's side decides (one user of the host owns all that a guest writes).
//!
//! Invariant: a mount lands beneath the root it is for, wherever an image's links lead, and gives no device and no
//! set-user-ID program.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    move_mount,
};
use serde::Deserialize;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// An image's own links are followed, as its programs would, and never out of it.
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// One folder, as the host tells of it at boot.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Volume {
    /// Tag of its virtiofs device.
    pub(crate) tag: String,
    /// Where it is mounted, absolute.
    pub(crate) path: String,
    /// Nothing is written to it.
    #[serde(default)]
    pub(crate) read_only: bool,
}

impl Volume {
    /// Mounts it in a root, at its own path.
    ///
    /// # Errors
    /// The path cannot be made there, or the kernel refuses.
    pub(crate) fn mount(&self, root: &Path) -> std::io::Result<()> {
        self.mount_at(root, &self.path, self.read_only)
    }

    /// Mounts it in a root at another path, which is made where it is missing. What is read-only stays so; where it is
    /// mounted already, as in an overlay that stays, nothing is done.
    ///
    /// # Errors
    /// As of [`Self::mount`].
    pub(crate) fn mount_at(&self, root: &Path, path: &str, read_only: bool) -> std::io::Result<()> {
        let target = directory(root, path)?;
        let read_only = read_only || self.read_only;
        if self.is_on(&target, read_only) {
            return Ok(());
        }
        let context = fsopen("virtiofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "source", &*self.tag)?;
        fsconfig_create(context.as_fd())?;
        let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if read_only {
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let mounted = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(mounted.as_fd(), "", target.as_fd(), "", onto)?)
    }

    /// Whether it is what is mounted on a directory, which is the topmost of what was mounted there.
    fn is_on(&self, directory: &OwnedFd, read_only: bool) -> bool {
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).unwrap_or_default();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        path.to_str().and_then(|path| source_of(&mounts, path)) == Some((self.tag.as_str(), read_only))
    }
}

/// The tag of the virtiofs that is mounted on a path, and whether as read-only (proc_pid_mountinfo(5)).
fn source_of<'a>(mountinfo: &'a str, path: &str) -> Option<(&'a str, bool)> {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(path))?;
    let (own, file_system) = line.split_once(" - ")?;
    let read_only = own.split(' ').nth(5)?.split(',').any(|option| option == "ro");
    let source = file_system.strip_prefix("virtiofs ")?;
    Some((source.split(' ').next()?, read_only))
}

/// The volumes that a command's `mounts` name, with where and how they go into its root. The error is the tag that the
/// machine has no volume of.
pub(crate) fn named<'a>(
    volumes: &'a [Volume],
    mounts: &'a [(String, String, bool)],
) -> Result<Vec<(&'a Volume, &'a str, bool)>, &'a str> {
    let find = |(tag, path, read_only): &'a (String, String, bool)| {
        let volume = volumes.iter().find(|volume| volume.tag == *tag).ok_or(tag.as_str())?;
        Ok((volume, path.as_str(), *read_only))
    };
    mounts.iter().map(find).collect()
}

/// A directory beneath a root, made where it is missing.
fn directory(root: &Path, path: &str) -> std::io::Result<OwnedFd> {
    let within = open(root, DIRECTORY, Mode::empty())?;
    let mut reached = within.try_clone()?;
    let mut so_far = std::path::PathBuf::new();
    for component in Path::new(path).components() {
        let name = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            _ => return Err(std::io::Error::other(format!("{path}: `..` leads nowhere here"))),
        };
        so_far.push(name);
        reached = match openat2(&within, &so_far, DIRECTORY, Mode::empty(), WITHIN) {
            Err(Errno::NOENT) => {
                // A link that leads nowhere is in the way, and stays.
                mkdirat(&reached, name, Mode::from_raw_mode(0o755))?;
                openat2(&within, &so_far, DIRECTORY, Mode::empty(), WITHIN)?
            }
            other => other?,
        };
    }
    if so_far.as_os_str().is_empty() {
        return Err(std::io::Error::other("a volume cannot take the place of the root"));
    }
    Ok(reached)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_place_of_a_volume_stays_beneath_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("srv/data")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../../outside", root.join("out")).unwrap();
        symlink("/srv", root.join("absolute")).unwrap();
        symlink("nowhere", root.join("dangling")).unwrap();
        directory(&root, "/new/one").unwrap();
        assert!(root.join("new/one").is_dir());
        directory(&root, "/absolute/more").unwrap();
        assert!(root.join("srv/more").is_dir(), "the image's own link is followed");
        // What leads out ends at the root, where `..` is the root itself.
        assert!(directory(&root, "/out/x").is_err());
        assert!(std::fs::read_dir(dir.path().join("outside")).unwrap().next().is_none());
        for bad in ["/dangling", "/../outside", "/", "/a/../.."] {
            assert!(directory(&root, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_mounted_is_the_last_line_of_a_path() {
        let mounts = "20 1 0:5 / /data rw - tmpfs tmpfs rw\n21 20 0:6 / /data ro,nosuid shared:1 - virtiofs volume0 rw\n\
            22 1 0:6 / /other rw - virtiofs volume1 rw\n23 1 0:7 / /over rw - virtiofs volume1 rw\n24 23 0:8 / /over rw - tmpfs x rw\n";
        for (path, source) in
            [("/data", Some(("volume0", true))), ("/other", Some(("volume1", false))), ("/over", None), ("/dat", None)]
        {
            assert_eq!(source_of(mounts, path), source, "{path}");
        }
    }

    #[test]
    fn mounts_name_volumes_by_their_tags() {
        let volume = Volume { tag: "volume0".into(), path: "/data".into(), read_only: false };
        let mounts = [("volume0".to_owned(), "/x".to_owned(), true)];
        let volumes = [volume.clone()];
        assert_eq!(named(&volumes, &mounts), Ok(vec![(&volume, "/x", true)]));
        assert_eq!(named(&[], &mounts), Err("volume0"));
    }
}
