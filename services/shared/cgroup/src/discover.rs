//! Where the own control group is, and from where on the subtree is the service's.

use std::path::{Path, PathBuf};

use crate::Error;

/// A process's place in the hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The group that the process is in.
    pub own: PathBuf,
    /// The nearest group at or above it that the service manager has delegated; none: nobody has.
    pub delegated: Option<PathBuf>,
}

impl Place {
    /// Looks this process up.
    ///
    /// # Errors
    /// [`Error::NotThere`], or a file of `/proc` cannot be read.
    pub fn find() -> Result<Self, Error> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(Error::io("read", Path::new(path)));
        let (mount, own) = locate(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?;
        let delegated = own.ancestors().take_while(|d| d.starts_with(&mount)).find(|d| is_delegated(d));
        Ok(Place { delegated: delegated.map(Path::to_owned), own })
    }

    /// The group below which the service makes its own.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.delegated.as_deref().unwrap_or(&self.own)
    }
}

/// systemd marks what it delegates by an extended attribute: the trusted one is for those with CAP_SYS_ADMIN to see,
/// the user's for all (systemd/CGROUP_DELEGATION).
fn is_delegated(folder: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0_u8; 1];
        rustix::fs::getxattr(folder, name, &mut value).is_ok_and(|n| n == 1) && value == *b"1"
    })
}

/// Mount point of the version 2 hierarchy and the own group below it, from `/proc/self/mountinfo` and
/// `/proc/self/cgroup` (proc_pid_mountinfo(5), cgroups(7)).
fn locate(mountinfo: &str, cgroup: &str) -> Result<(PathBuf, PathBuf), Error> {
    let own =
        cgroup.lines().find_map(|line| line.strip_prefix("0::")).ok_or(Error::NotThere("it has none of version 2"))?;
    let mut mounts = mountinfo.lines().filter(|line| line.contains(" - cgroup2 ")).filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((Path::new(fields.next()?), Path::new(fields.next()?)))
    });
    // in a container the mount may show a part of the hierarchy only
    let found = mounts.find_map(|(root, point)| Some((point, Path::new(own).strip_prefix(root).ok()?)));
    let (point, below) = found.ok_or(Error::NotThere("no mount of version 2 shows it"))?;
    // joined with nothing a path would end in a slash
    let own = if below.as_os_str().is_empty() { point.to_owned() } else { point.join(below) };
    Ok((point.to_owned(), own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let pure =
            "24 30 0:22 / /proc rw - proc proc rw\n29 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let part = "29 24 0:26 /pod/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        for (mounts, cgroups, want) in [
            (pure, "0::/system.slice/a.service/service\n", Some("/sys/fs/cgroup/system.slice/a.service/service")),
            (pure, "0::/\n", Some("/sys/fs/cgroup")),
            (hybrid, "2:cpu:/\n0::/user\n", Some("/sys/fs/cgroup/unified/user")),
            (part, "0::/pod/x/y\n", Some("/sys/fs/cgroup/y")),
            (part, "0::/pod/z\n", None),
            (pure, "3:memory:/\n", None),
            ("", "0::/\n", None),
        ] {
            let got = locate(mounts, cgroups).ok().map(|(_, own)| own);
            assert_eq!(got.as_deref(), want.map(Path::new), "{mounts} {cgroups}");
        }
    }

    #[test]
    fn a_folder_without_the_mark_is_not_delegated() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_delegated(folder.path()));
        // not every file system takes user attributes
        if rustix::fs::setxattr(folder.path(), "user.delegate", b"1", rustix::fs::XattrFlags::empty()).is_ok() {
            assert!(is_delegated(folder.path()));
        }
    }
}
