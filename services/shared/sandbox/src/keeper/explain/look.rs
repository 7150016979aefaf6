//! Whether a call that is about to be made will be refused: tried out by the supervisor, which has the root, the
//! landlock domain and (for files) the user of the command.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::calls::{Call, Intent, PathAt};
use super::memory;
use crate::keeper::WORK;
use crate::refusal::Why;
use crate::spec::Network;

/// Names that every program asks for whether they are there or not.
const ASKED_BY_ALL: &[&str] = &["/etc/ld.so", "/etc/selinux", "/run/current-system"];

/// A call, as the kernel shows it.
pub(super) struct Seen<'a> {
    pub(super) pid: i32,
    pub(super) arguments: &'a [u64; 6],
}

/// What will be refused: the object, why, and the error.
pub(super) type Found = Option<(String, Why, i32)>;

pub(super) fn look(seen: &Seen<'_>, call: Call, network: Network) -> Found {
    match call {
        Call::Path(at) => path(seen, at),
        Call::Address(address, length) => socket(seen, address, length, network),
    }
}

/// The path that a refused call names, where it names one.
pub(super) fn named(seen: &Seen<'_>, call: Call) -> String {
    let Call::Path(at) = call else { return String::new() };
    memory::text(seen.pid, seen.arguments[at.path]).map_or_else(String::new, |text| lossy(&text))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(seen: &Seen<'_>, at: PathAt) -> Found {
    let text = memory::text(seen.pid, seen.arguments[at.path])?;
    if text.is_empty() {
        // The descriptor itself is meant.
        return None;
    }
    let whole = absolute(seen, at.directory, &text)?;
    let (why, errno) = trial(&whole, at.intent, seen)?;
    // Shown as the command would write it, not as the supervisor looks at it.
    let own = PathBuf::from(format!("/proc/{}", seen.pid));
    let shown = whole.strip_prefix(&own).map_or_else(|_| whole.clone(), |rest| Path::new("/proc/self").join(rest));
    Some((shown.to_string_lossy().into_owned(), why, errno))
}

/// The path from the root on, with what a process calls its own put for `self`.
fn absolute(seen: &Seen<'_>, directory: Option<usize>, text: &[u8]) -> Option<PathBuf> {
    let path = Path::new(std::ffi::OsStr::from_bytes(text));
    if !path.is_absolute() {
        let number = directory.map_or(libc::AT_FDCWD, |position| seen.arguments[position] as i32);
        let name = if number == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{number}") };
        let base = fs::read_link(format!("/proc/{}/{name}", seen.pid)).ok()?;
        // A descriptor of no file reads "pipe:[1]" and the like.
        return base.is_absolute().then(|| base.join(path));
    }
    for own in ["/proc/self", "/proc/thread-self"] {
        if let Ok(rest) = path.strip_prefix(own) {
            return Some(Path::new("/proc").join(seen.pid.to_string()).join(rest));
        }
    }
    Some(path.to_owned())
}

fn trial(path: &Path, intent: Intent, seen: &Seen<'_>) -> Option<(Why, i32)> {
    let (access, create) = match intent {
        Intent::Open(position) => flags(seen.arguments[position]),
        Intent::OpenHow(position) => {
            let bytes = memory::bytes(seen.pid, seen.arguments[position], 8);
            flags(u64::from_ne_bytes(bytes.try_into().ok()?))
        }
        Intent::Create => (libc::O_WRONLY, true),
        Intent::Make if fs::symlink_metadata(path).is_ok() => return None,
        Intent::Make | Intent::Entry => return writable(path.parent()?),
        _ => (libc::O_RDONLY, false),
    };
    let target = match rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(target) => target,
        Err(Errno::NOENT) if create => return writable(path.parent()?),
        Err(Errno::NOENT) => return absent(path),
        Err(Errno::ACCESS) => return Some((Why::Permission, libc::EACCES)),
        Err(_) => return None,
    };
    match intent {
        Intent::Find | Intent::Make | Intent::Entry => None,
        Intent::Execute => refused(access_fd(&target, libc::X_OK)),
        Intent::Change => writable_fd(&target).or_else(|| {
            let owner = rustix::fs::fstat(&target).ok()?.st_uid;
            (owner != WORK).then_some((Why::Permission, libc::EPERM))
        }),
        Intent::Open(_) | Intent::OpenHow(_) | Intent::Create => open(&target, access),
    }
}

/// The access that flags of open(2) ask for, and whether they make a file.
fn flags(flags: u64) -> (i32, bool) {
    let flags = flags as i32;
    let access = if flags & libc::O_PATH != 0 { libc::O_PATH } else { flags & libc::O_ACCMODE };
    (access, flags & libc::O_CREAT != 0)
}

/// Opens a file or directory once more, in the way that is asked for: this is where landlock speaks. Others are
/// only asked about, since opening them does something.
fn open(target: &OwnedFd, access: i32) -> Option<(Why, i32)> {
    let stat = rustix::fs::fstat(target).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if access == libc::O_PATH {
        return None;
    }
    if kind != FileType::RegularFile && kind != FileType::Directory {
        let mode = match access {
            libc::O_RDONLY => libc::R_OK,
            libc::O_WRONLY => libc::W_OK,
            _ => libc::R_OK | libc::W_OK,
        };
        return refused(access_fd(target, mode));
    }
    let again = CString::new(format!("/proc/self/fd/{}", target.as_raw_fd())).ok()?;
    let how = access | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: a C string; the descriptor is closed by its owner.
    match unsafe { libc::open(again.as_ptr(), how) } {
        -1 => refused(Err(io::Error::last_os_error())),
        fd => {
            // SAFETY: just opened, owned by nobody else.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            None
        }
    }
}

fn refused(result: io::Result<()>) -> Option<(Why, i32)> {
    match result.err()?.raw_os_error()? {
        libc::EROFS => Some((Why::ReadOnly, libc::EROFS)),
        errno @ (libc::EACCES | libc::EPERM) => Some((Why::Permission, errno)),
        _ => None,
    }
}

fn access_fd(target: &OwnedFd, mode: i32) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: an open descriptor and an empty C string.
    let done = unsafe { libc::syscall(libc::SYS_faccessat2, target.as_raw_fd(), c"".as_ptr(), mode, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn writable_fd(target: &OwnedFd) -> Option<(Why, i32)> {
    let read_only =
        rustix::fs::fstatvfs(target).is_ok_and(|stat| stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    if read_only { Some((Why::ReadOnly, libc::EROFS)) } else { None }
}

/// Whether entries of a directory can be changed.
fn writable(directory: &Path) -> Option<(Why, i32)> {
    match rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => writable_fd(&directory).or_else(|| refused(access_fd(&directory, libc::W_OK))),
        Err(Errno::NOENT) => absent(directory),
        Err(Errno::ACCESS) => Some((Why::Permission, libc::EACCES)),
        Err(_) => None,
    }
}

/// Whether a path that is not there begins to be missing in what the workspace's root was made of: then the host
/// may have it, and the workspace was not given it. What is missing elsewhere is just missing.
fn absent(path: &Path) -> Option<(Why, i32)> {
    if ASKED_BY_ALL.iter().any(|name| path.as_os_str().as_bytes().starts_with(name.as_bytes())) {
        return None;
    }
    let device = |path: &Path| rustix::fs::stat(path).ok().map(|stat| stat.st_dev);
    let root = device(Path::new("/"))?;
    let nearest = path.ancestors().skip(1).find_map(device)?;
    (nearest == root).then_some((Why::Absent, libc::ENOENT))
}

fn socket(seen: &Seen<'_>, address: usize, length: usize, network: Network) -> Found {
    let (address, length) = (seen.arguments[address], seen.arguments[length]);
    if address == 0 || !(2..=128).contains(&length) {
        return None;
    }
    let bytes = memory::bytes(seen.pid, address, length as usize);
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let family = i32::from(u16::from_ne_bytes(*family));
    match family {
        libc::AF_UNIX => {
            let path: Vec<u8> = rest.iter().copied().take_while(|byte| *byte != 0).collect();
            if path.is_empty() {
                return None;
            }
            let path = absolute(seen, None, &path)?;
            let found = rustix::fs::openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            let (why, errno) = match found {
                Ok(found) => refused(access_fd(&found, libc::W_OK))?,
                Err(Errno::NOENT) => absent(&path)?,
                Err(Errno::ACCESS) => (Why::Permission, libc::EACCES),
                Err(_) => return None,
            };
            Some((path.to_string_lossy().into_owned(), why, errno))
        }
        libc::AF_INET | libc::AF_INET6 => {
            let address = inet(family, rest)?;
            let reached = match network {
                Network::Host => true,
                Network::Loopback | Network::Outbound => address.ip().is_loopback(),
                Network::None => false,
            };
            (!reached).then(|| (address.to_string(), Why::Network, libc::ENETUNREACH))
        }
        _ => None,
    }
}

/// `sockaddr_in` or `sockaddr_in6` after the family (ip(7), ipv6(7)).
fn inet(family: i32, rest: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
    let ip = if family == libc::AF_INET6 {
        Ipv6Addr::from(<[u8; 16]>::try_from(rest.get(6..22)?).ok()?).into()
    } else {
        Ipv4Addr::from(<[u8; 4]>::try_from(rest.get(2..6)?).ok()?).into()
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_lays_them_out() {
        let four = [0, 53, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(inet(libc::AF_INET, &four).unwrap().to_string(), "192.0.2.1:53");
        let mut six = [0_u8; 26];
        (six[0], six[1], six[21]) = (1, 187, 1);
        assert_eq!(inet(libc::AF_INET6, &six).unwrap().to_string(), "[::1]:443");
        for short in 0..6 {
            assert_eq!(inet(libc::AF_INET, &four[..short]), None);
        }
        assert_eq!(inet(libc::AF_INET6, &six[..21]), None);
    }

    #[test]
    fn flags_say_what_is_asked_for() {
        let table = [
            (libc::O_RDONLY, (libc::O_RDONLY, false)),
            (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, (libc::O_WRONLY, true)),
            (libc::O_RDWR | libc::O_CLOEXEC, (libc::O_RDWR, false)),
            (libc::O_PATH | libc::O_DIRECTORY, (libc::O_PATH, false)),
        ];
        for (asked, expected) in table {
            assert_eq!(flags(asked as u64), expected, "{asked:#o}");
        }
    }
}
