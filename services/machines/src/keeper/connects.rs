//! The vsock device's connections, made for it: to the sockets that its guest may dial, and to nothing else.
//!
//! The device runs as the same user as much else, and Unix sockets know users only: a guest that owns the device would
//! reach the bus, other machines' keepers and whatever listens. So that its `connect` waits for the keeper
//! (seccomp_unotify(2)), which looks at the address, connects a socket of its own, and puts that in the place of the
//! device's. What the device changes meanwhile in its memory makes no difference: nothing is read twice.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::volumes::Owner;

/// Of a `sockaddr_un`: the family, then the path (unix(7)).
const FAMILY: usize = 2;
const ADDRESS_MAX: usize = FAMILY + 108;
/// `_IOW('!', 3, struct seccomp_notif_addfd)` of linux/seccomp.h.
const NOTIF_ADDFD: libc::c_ulong = 0x4018_2103;

/// The sockets that a guest may dial.
#[derive(Debug)]
pub(super) struct Dialled {
    /// What their paths begin with, before `_PORT`, as the device knows them.
    pub(super) named: PathBuf,
    /// The same as they are found from here.
    pub(super) found: PathBuf,
    /// The user that the device is, if not ours.
    pub(super) user: Option<Owner>,
}

/// Answers what was asked; `false` once nobody will ask any more.
pub(super) fn answer(listener: &OwnedFd, dialled: &Dialled) -> bool {
    // SAFETY: plain numbers, which the kernel wants to be zero before it writes them.
    let (received, call) = unsafe {
        let mut call: libc::seccomp_notif = std::mem::zeroed();
        (libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call), call)
    };
    if received != 0 {
        // The asker may have been killed; without any the descriptor only tells of its end.
        return std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT) && !has_ended(listener);
    }
    let error = match connected(listener, &call, dialled) {
        Ok(()) => 0,
        Err(error) => -error.raw_os_error(),
    };
    let response = libc::seccomp_notif_resp { id: call.id, val: 0, error, flags: 0 };
    // SAFETY: the kernel reads the struct. An asker that was killed meanwhile has no use for it.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
    true
}

fn has_ended(listener: &OwnedFd) -> bool {
    let mut polled = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now))
        .is_ok_and(|_| polled[0].revents().contains(rustix::event::PollFlags::HUP))
}

/// Puts a connected socket in the place of the asker's.
fn connected(listener: &OwnedFd, call: &libc::seccomp_notif, dialled: &Dialled) -> Result<(), Errno> {
    let address = address(call, dialled.user)?;
    let id = call.id;
    // SAFETY: the kernel reads a number. The memory that was read is the asker's only if it still waits.
    if unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) } != 0 {
        return Err(Errno::SRCH);
    }
    let port = allowed(&address, &dialled.named).ok_or(Errno::ACCESS)?;
    let mut path = dialled.found.clone().into_os_string();
    path.push(format!("_{port}"));
    let socket = reach(Path::new(&path))?;
    let given = libc::seccomp_notif_addfd {
        id,
        flags: libc::SECCOMP_ADDFD_FLAG_SETFD as u32,
        srcfd: socket.as_raw_fd().cast_unsigned(),
        newfd: call.data.args[0] as u32,
        newfd_flags: libc::O_CLOEXEC.cast_unsigned(),
    };
    // SAFETY: the kernel reads the struct, and takes a copy of the descriptor, which is open.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_ADDFD, &raw const given) };
    if done < 0 { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::BADF)) } else { Ok(()) }
}

/// The address that the asker's second argument leads to.
fn address(call: &libc::seccomp_notif, user: Option<Owner>) -> Result<Vec<u8>, Errno> {
    let [_, at, length, ..] = call.data.args;
    let length =
        usize::try_from(length).ok().filter(|length| (FAMILY..=ADDRESS_MAX).contains(length)).ok_or(Errno::INVAL)?;
    let mut bytes = vec![0; length];
    let memory = seen_as(user, || File::open(format!("/proc/{}/mem", call.pid))).map_err(|_| Errno::ACCESS)?;
    memory.read_exact_at(&mut bytes, at).map_err(|_| Errno::FAULT)?;
    Ok(bytes)
}

/// Does something as a user who sees its own processes' memory, which we, without capabilities for it, do not.
fn seen_as<T>(user: Option<Owner>, work: impl FnOnce() -> T) -> T {
    let Some(Owner { uid, gid, .. }) = user else { return work() };
    // SAFETY: system calls on plain values, for this one thread; they cannot fail for one that may become any user, and
    // where they would, what is done next is refused.
    let (old_uid, old_gid) = unsafe {
        let old_gid = libc::setfsgid(gid);
        (libc::setfsuid(uid), old_gid)
    };
    let done = work();
    // SAFETY: as above.
    unsafe {
        libc::setfsuid(old_uid.cast_unsigned());
        libc::setfsgid(old_gid.cast_unsigned());
    }
    done
}

/// The port in an address, if it is one that a guest dials: `DIALLED_PORT`.
fn allowed(address: &[u8], dialled: &Path) -> Option<u32> {
    let (family, path) = address.split_first_chunk::<FAMILY>()?;
    if libc::c_int::from(u16::from_ne_bytes(*family)) != libc::AF_UNIX {
        return None;
    }
    let path = path.split(|&byte| byte == 0).next()?;
    let port = path.strip_prefix(dialled.as_os_str().as_bytes())?.strip_prefix(b"_")?;
    let is_port = !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(port).ok().filter(|_| is_port)?.parse().ok()
}

/// Connects to the socket that lies there. What is none, such as a link that the device has put in its place, is refused.
fn reach(path: &Path) -> Result<OwnedFd, Errno> {
    let there = open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&there)?.st_mode) != FileType::Socket {
        return Err(Errno::CONNREFUSED);
    }
    // One whose queue is full must not keep the keeper from everything else.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(format!("/proc/self/fd/{}", there.as_raw_fd()))?)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &[u8]) -> Vec<u8> {
        [&(libc::AF_UNIX as u16).to_ne_bytes(), path].concat()
    }

    #[test]
    fn only_what_a_guest_dials_is_reached() {
        let dialled = Path::new("/run/m/vsock/v");
        for path in [&b"/run/m/vsock/v_6001"[..], b"/run/m/vsock/v_6001\0rest"] {
            assert_eq!(allowed(&unix(path), dialled), Some(6001));
        }
        for path in [
            &b"/run/m/vsock/v"[..],
            b"/run/m/vsock/v_",
            b"/run/m/vsock/v_x",
            b"/run/m/vsock/v_1/../../keeper",
            b"/run/m/vsock/v_11111111111",
            b"/run/other/vsock/v_6001",
            b"\0abstract",
            b"/run/dbus/system_bus_socket",
            b"",
        ] {
            assert_eq!(allowed(&unix(path), dialled), None, "{}", String::from_utf8_lossy(path));
        }
        let inet = [&(libc::AF_INET as u16).to_ne_bytes()[..], b"/run/m/vsock/v_6001"].concat();
        assert_eq!(allowed(&inet, dialled), None);
        assert_eq!(allowed(&[1], dialled), None);
    }

    #[test]
    fn a_link_in_the_place_of_a_socket_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        reach(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, dir.path().join("link")).unwrap();
        assert_eq!(reach(&dir.path().join("link")).unwrap_err(), Errno::CONNREFUSED);
        assert_eq!(reach(&dir.path().join("none")).unwrap_err(), Errno::NOENT);
    }
}
