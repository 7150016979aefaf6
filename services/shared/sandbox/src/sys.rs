//! The few system calls that no library wraps the way they are needed here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Namespaces of a workspace. The cgroup namespace is not among them: each command gets one of its own,
/// rooted at its own cgroup, and the keeper has to see the cgroups it starts commands in.
pub(crate) const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET) as u64;

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
/// stay as they were. The child must end with [`exit`] or an exec and never return to callers that
/// expect to run once.
pub(crate) unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | CLONE_PIDFD;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
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

/// A stack for [`spawn_sharing`].
pub(crate) struct Stack {
    base: *mut libc::c_void,
}

impl Stack {
    const SIZE: usize = 256 << 10;

    /// Maps one, with a page below it that faults.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping, and a change of its first page only.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
            let base = libc::mmap(std::ptr::null_mut(), Self::SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::mprotect(base, 4096, libc::PROT_NONE);
            Ok(Self { base })
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, on which nothing runs any more.
        unsafe { libc::munmap(self.base, Self::SIZE) };
    }
}

/// Makes a child that runs `entry(argument)` in this process's memory, and waits until it has executed a
/// program or ended: what vfork(2) does, with a stack of its own. Nothing is copied, so it costs the
/// same whatever this process holds.
///
/// # Safety
/// The process must have one thread only. `entry` must end in exec or [`exit`], must not panic, and leaves
/// this process's memory as it wants it to be found.
pub(crate) unsafe fn spawn_sharing<T>(
    stack: &Stack,
    cgroup: Option<BorrowedFd<'_>>,
    entry: extern "C" fn(&T) -> !,
    argument: &T,
) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64 | CLONE_PIDFD;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = stack.base as u64;
    arguments.stack_size = Stack::SIZE as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    let pid: i64;
    // SAFETY: the child begins on the top of its stack (aligned to a page, so to 16 bytes) with all other
    // registers as here, and calls `entry`, which does not return. This thread is suspended meanwhile.
    // Memory is taken to be changed by the block.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r9",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => pid,
            in("rdi") &raw const arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") entry,
            in("r9") argument,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x10",
            "blr x9",
            "brk 1",
            "2:",
            inlateout("x0") &raw const arguments => pid,
            in("x1") size_of::<libc::clone_args>(),
            in("x8") libc::SYS_clone3,
            in("x9") entry,
            in("x10") argument,
        );
    }
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(-pid as i32));
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Ends the process without running anything of the C library's or Rust's.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: _exit does not return.
    unsafe { libc::_exit(status) }
}

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

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Mount is read-only.
pub(crate) const RDONLY: u64 = 0x1;
/// Set-user-id bits are ignored.
pub(crate) const NOSUID: u64 = 0x2;
/// Device nodes are not devices.
pub(crate) const NODEV: u64 = 0x4;
/// Nothing is executed.
pub(crate) const NOEXEC: u64 = 0x8;

/// Sets attributes of the mount that `tree` is, and of those beneath it where `recursive`, and cuts it
/// off from the host's mounts.
pub(crate) fn set_mount_attributes(tree: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    mount_setattr(tree, MountAttr { set, propagation: libc::MS_PRIVATE, ..MountAttr::default() }, recursive)
}

/// Has the ids of files beneath `tree` mapped as the user namespace maps them: what is inside of it is
/// what is on the disk.
pub(crate) fn map_mount_ids(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    const IDMAP: u64 = 0x0010_0000;
    let userns = namespace.as_raw_fd() as u64;
    mount_setattr(tree, MountAttr { set: IDMAP, userns, ..MountAttr::default() }, true)
}

fn mount_setattr(tree: BorrowedFd<'_>, attributes: MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the struct is as the kernel lays it out.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
