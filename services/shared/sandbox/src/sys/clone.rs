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
/// The process must have one thread only. `entry` must end in exec or [`super::exit`], must not panic, and leaves
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
