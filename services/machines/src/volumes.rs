//! Folders of the host that a machine has, by virtiofs: `HOST:GUEST` or `HOST:GUEST:ro`.
//!
//! Each is served by a process of its own, `virtiofsd`, which can reach that folder and nothing else of the host, and
//! runs as one user of the host: this service's, or, where the service is root, the folder's owner, who may not be root.
//! Whatever user of the guest writes, that user owns it; in the guest, what that user owns is root's.
//!
//! Invariant: a folder is what it is by its descriptor, opened without following a link and before anything of the guest
//! runs; its path is not looked up again.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, openat, statat};
use rustix::process::{getegid, geteuid};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Most that one machine has: its bus has places for eight devices.
pub const VOLUMES_MAX: usize = 4;
/// Folders of the guest in which the agent keeps what is its own.
const TAKEN: [&str; 4] = ["/dev", "/proc", "/storage", "/sys"];
/// Who serves a folder of root's that is only read: nobody.
const NOBODY: u32 = 65_534;

/// A volume of a spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Folder of the host.
    pub host: PathBuf,
    /// Where the guest has it.
    pub guest: String,
    /// The guest may not write to it.
    pub read_only: bool,
}

/// A user of the host that a machine's process becomes: who serves a folder, or a machine's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User of the host.
    pub uid: u32,
    /// Group of the host.
    pub gid: u32,
    /// It is another than the one this process runs as.
    pub other: bool,
}

impl Volume {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |problem: &str| format!("volumes {text:?}: {problem}; give HOST:GUEST or HOST:GUEST:ro");
        let mut parts = text.split(':');
        let (Some(host), Some(guest), mode, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong("it is not made of two or three parts"));
        };
        let read_only = match mode {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(_) => return Err(wrong("the third part is neither `ro` nor `rw`")),
        };
        if !is_plain(host) {
            return Err(wrong("the host's folder is no absolute path without `..`"));
        }
        if !is_plain(guest) || guest == "/" {
            return Err(wrong("the guest's folder is no absolute path below `/` without `..`"));
        }
        if guest.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(wrong("the guest's folder has a control character in it"));
        }
        if TAKEN.iter().any(|taken| Path::new(guest).starts_with(taken)) {
            return Err(wrong(&format!("the guest keeps something else below {}", TAKEN.join(", "))));
        }
        Ok(Self { host: host.into(), guest: guest.to_owned(), read_only })
    }

    /// Whether it lies beneath one of the folders that may be shared at all.
    #[must_use]
    pub fn is_beneath(&self, shared: &[PathBuf]) -> bool {
        shared.iter().any(|folder| self.host.starts_with(folder))
    }

    /// Opens the folder, following no link.
    ///
    /// # Errors
    /// It isn't there, is no folder, or a link is on the way.
    pub fn open(&self) -> Result<OwnedFd, Error> {
        let failed = |source| Error::io("share the folder", self.host.display())(source);
        // By the step, not by openat2(2): systemd's RestrictSUIDSGID= answers that with ENOSYS, since no filter sees its mode.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = openat(CWD, "/", flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        for name in self.host.components().filter(|part| matches!(part, Component::Normal(_))) {
            folder = openat(&folder, name.as_os_str(), flags, Mode::empty()).map_err(|error| {
                let found = statat(&folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW);
                let is_link = found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink());
                failed(if is_link {
                    std::io::Error::other("a link is on the way; name the folder itself")
                } else {
                    error.into()
                })
            })?;
        }
        Ok(folder)
    }

    /// Who is to serve it.
    ///
    /// # Errors
    /// Only root could.
    pub fn owner(&self, folder: &OwnedFd) -> Result<Owner, Error> {
        let failed = || Error::io("share the folder", self.host.display());
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        if uid != 0 {
            return Ok(Owner { uid, gid, other: false });
        }
        let stat = fstat(folder).map_err(|error| failed()(error.into()))?;
        match (stat.st_uid, self.read_only) {
            (0, true) => Ok(Owner { uid: NOBODY, gid: NOBODY, other: true }),
            (0, false) => Err(failed()(std::io::Error::other(
                "it is root's, and no guest writes as root; give it to another user (chown), or share it with `:ro`",
            ))),
            (uid, _) => Ok(Owner { uid, gid: stat.st_gid, other: true }),
        }
    }
}

/// The tag of a machine's `n`th volume.
#[must_use]
pub fn tag(n: usize) -> String {
    format!("volume{n}")
}

/// An absolute path that is its own shortest form.
pub(crate) fn is_plain(path: &str) -> bool {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let normal: PathBuf = Path::new(path).components().collect();
    path.starts_with('/') && plain && normal.as_os_str() == path && !path.contains('\0')
}

/// The descriptors that what serves a volume is started with: the folder,
pub const FOLDER_DESCRIPTOR: i32 = 100;
/// the socket that the monitor connects to,
pub const SOCKET_DESCRIPTOR: i32 = 101;
/// and the program: its user need not be able to reach it by its path.
pub const PROGRAM_DESCRIPTOR: i32 = 102;

/// The arguments of what serves a volume.
#[must_use]
pub fn arguments(owner: Owner, read_only: bool) -> Vec<String> {
    let Owner { uid, gid, .. } = owner;
    let mut arguments = vec![
        // It opens the path without following a last link, which the descriptor's name is.
        format!("--shared-dir=/proc/self/fd/{FOLDER_DESCRIPTOR}/."),
        format!("--fd={SOCKET_DESCRIPTOR}"),
        // Namespaces are not to be had once the service is confined; landlock and seccomp are, and were applied.
        "--sandbox=none".to_owned(),
        "--inode-file-handles=never".to_owned(),
        "--rlimit-nofile=0".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--translate-uid=squash-guest:0:{uid}:4294967295"),
        format!("--translate-gid=squash-guest:0:{gid}:4294967295"),
        format!("--translate-uid=host:{uid}:0:1"),
        format!("--translate-gid=host:{gid}:0:1"),
    ];
    if read_only {
        arguments.push("--readonly".to_owned());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_read() {
        for (text, host, guest, read_only) in [
            ("/srv/data:/data", "/srv/data", "/data", false),
            ("/srv/data:/mnt/a b:ro", "/srv/data", "/mnt/a b", true),
            ("/:/host:ro", "/", "/host", true),
            ("/a:/b:rw", "/a", "/b", false),
        ] {
            let volume = Volume { host: host.into(), guest: guest.into(), read_only };
            assert_eq!(Volume::parse(text), Ok(volume), "{text}");
        }
        for bad in [
            "",
            "/a",
            "/a:",
            ":/b",
            "a:/b",
            "/a:b",
            "/a:/",
            "/a:/b:wo",
            "/a:/b:ro:x",
            "/a/../b:/c",
            "/a:/b/../c",
            "/a//b:/c",
            "/a/:/c",
            "/a:/proc",
            "/a:/proc/x",
            "/a:/storage",
            "/a:/dev/shm",
            "/a:/sys",
            "/a:/b\n",
            "./a:/b",
        ] {
            assert!(Volume::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Volume::parse("/a:/processes").is_ok(), "whole names");
    }

    #[test]
    fn only_what_is_beneath_a_shared_folder_may_be_had() {
        let volume = Volume::parse("/srv/a/b:/b").unwrap();
        assert!(volume.is_beneath(&["/x".into(), "/srv/a".into()]) && volume.is_beneath(&["/srv/a/b".into()]));
        assert!(!volume.is_beneath(&[]) && !volume.is_beneath(&["/srv/a/b/c".into(), "/sr".into()]));
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("folder")).unwrap();
        std::os::unix::fs::symlink("folder", real.join("link")).unwrap();
        std::fs::write(real.join("file"), "").unwrap();
        let at = |name: &str| Volume { host: real.join(name), guest: "/x".into(), read_only: false };
        at("folder").open().unwrap();
        for (name, what) in [("link", "link"), ("file", "directory"), ("none", "No such")] {
            let said = at(name).open().unwrap_err().to_string();
            assert!(said.contains(what) && said.contains(name), "{said}");
        }
    }

    #[test]
    fn roots_own_folder_is_only_read_and_by_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().canonicalize().unwrap();
        let volume = |read_only| Volume { host: host.clone(), guest: "/x".into(), read_only };
        let folder = volume(false).open().unwrap();
        let uid = geteuid().as_raw();
        if uid != 0 {
            assert_eq!(volume(false).owner(&folder).unwrap().uid, uid);
            return;
        }
        assert!(volume(false).owner(&folder).unwrap_err().to_string().contains("chown"));
        assert_eq!(volume(true).owner(&folder).unwrap().uid, NOBODY);
        std::os::unix::fs::chown(&host, Some(1234), Some(4321)).unwrap();
        assert_eq!(volume(false).owner(&folder).unwrap(), Owner { uid: 1234, gid: 4321, other: true });
    }
}
