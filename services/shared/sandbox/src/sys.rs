//! The few system calls that no library wraps the way they are needed here.

mod clone;
mod mount;

pub(crate) use clone::{Side, clone_unseen, clone3, namespaces};
pub(crate) use mount::{NODEV, NOEXEC, NOSUID, RDONLY, map_mount_ids, set_mount_attributes, set_mount_attributes_at};
pub(crate) use shipote_spawn::exit;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

/// Gives every signal its default action, and blocks or unblocks them all.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL needs no handler; numbers that cannot be set are refused, which is harmless.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Blocks (or unblocks) every signal of the calling thread.
pub(crate) fn block_signals(block: bool) {
    // SAFETY: the set is initialised by sigfillset or sigemptyset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        if block {
            libc::sigfillset(&raw mut set)
        } else {
            libc::sigemptyset(&raw mut set)
        };
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Closes every descriptor but those of `keep`, and puts `/dev/null` at 0, 1 and 2. Descriptors of
/// `keep` must be above 2, and nothing in the process may own one that is closed.
pub(crate) fn keep_only(keep: &[RawFd]) {
    // SAFETY: opening and duplicating onto 0..=2, which the caller gives up.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        for number in 0..3 {
            libc::dup2(null, number);
        }
    }
    let mut keep: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0);
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0);
}

/// close_range(2), whose failure leaves descriptors open that close-on-exec closes all the same.
pub(crate) fn close_range(first: u32, last: u32, flags: u32) {
    // SAFETY: numbers only; who owns what is the caller's concern.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Sets the soft and the hard value of a limit, never above the present hard one.
pub(crate) fn limit(resource: libc::__rlimit_resource_t, value: u64) -> io::Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a struct of two numbers, which outlives the calls.
    unsafe {
        if libc::getrlimit(resource, &raw mut now) != 0 {
            return Err(io::Error::last_os_error());
        }
        let value = value.min(now.rlim_max);
        let new = libc::rlimit { rlim_cur: value, rlim_max: value };
        if libc::setrlimit(resource, &raw const new) == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Raises the soft limit of open descriptors to the hard one, and returns what the soft one was.
pub(crate) fn raise_nofile() -> u64 {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: as in `limit`.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now) != 0 {
            return 1024;
        }
        let raised = libc::rlimit { rlim_cur: now.rlim_max, rlim_max: now.rlim_max };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised);
    }
    now.rlim_cur
}

/// Touches files as this user and group (setfsuid(2)), with the rights that the calling thread has, and as before
/// afterwards.
pub(crate) fn as_user<T>(id: u32, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let held = rustix::thread::capabilities(None)?;
    // SAFETY: numbers only; what they return is what was before.
    let before = unsafe { (libc::setfsgid(id), libc::setfsuid(id)) };
    // One who was root has lost those that are about files.
    let done = rustix::thread::set_capabilities(None, held).map_err(Into::into).and_then(|()| work());
    // SAFETY: as above. The kernel's numbers, of which the C library makes signed ones.
    unsafe {
        libc::setfsuid(before.1 as u32);
        libc::setfsgid(before.0 as u32);
    }
    rustix::thread::set_capabilities(None, held)?;
    done
}

/// Names the process, for ps(1).
pub(crate) fn name_process(name: &std::ffi::CStr) {
    // SAFETY: a C string of which the kernel copies 15 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Hides the process's memory and `/proc` files from others of its user.
pub(crate) fn set_not_dumpable() {
    // SAFETY: numbers only.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

/// Watches a descriptor with the runtime that is running.
pub(crate) fn register(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stays open, and the same, for as long as the AsyncFd owns it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}
