//! Making processes with clone3(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::spec::Network;

/// Namespaces of a workspace. The cgroup namespace is not among them: each command gets one of its own,
/// rooted at its own cgroup, and the keeper has to see the cgroups it starts commands in.
const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET) as u64;

/// The namespaces that are made for a workspace with that network, which may be there already.
pub(crate) fn namespaces(network: Network, networked: bool) -> u64 {
    if networked || network == Network::Host { NAMESPACES & !(libc::CLONE_NEWNET as u64) } else { NAMESPACES }
}

const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of a clone3 one is on.
pub(crate) enum Side {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Makes a child that is a copy of this process, in the namespaces of `flags` and in the cgroup.
///
/// # Safety
/// The process must have one thread only: the C library is not told of the new process, so its locks
/// stay as they were. The child must end with [`super::exit`] or an exec and never return to callers that
/// expect to run once.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    // SAFETY: the caller's promise.
    unsafe { clone_with(flags, cgroup, libc::SIGCHLD) }
}

/// Makes a child that is a copy of this process, of whose end no signal tells and for which wait(2) does not wait
/// unless it is told to (`__WCLONE`).
///
/// # Safety
/// As [`clone3`].
pub(crate) unsafe fn clone_unseen() -> io::Result<Side> {
    // SAFETY: the caller's promise.
    unsafe { clone_with(0, None, 0) }
}

/// # Safety
/// As [`clone3`].
unsafe fn clone_with(flags: u64, cgroup: Option<BorrowedFd<'_>>, signal: i32) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | CLONE_PIDFD;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = signal as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and a stack the child gets a copy of everything, as from fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        // SAFETY: the kernel has just made the descriptor for us.
        pid => Ok(Side::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}
