//! A child that shares its parent's memory until it executes its program, as with vfork(2) and posix_spawn(3), and that
//! can do in between what those have no words for: join a control group, take a root and ids, come under a filter.
//!
//! For: starting a program at a price that does not grow with what the parent holds. Not for: what to do in between, which
//! is the caller's; [`execute`] and [`duplicate`] are what all callers need.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A stack for [`spawn_sharing`].
#[derive(Debug)]
pub struct Stack {
    base: *mut libc::c_void,
}

impl Stack {
    const SIZE: usize = 256 << 10;

    /// Maps one, with a page below it that faults.
    ///
    /// # Errors
    /// As of mmap(2).
    pub fn new() -> io::Result<Self> {
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

// SAFETY: the mapping belongs to this value alone, and no thread is tied to it.
unsafe impl Send for Stack {}

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
/// # Errors
/// As of clone3(2).
///
/// # Safety
/// `entry` must end in exec or [`exit`], must not panic, and leaves this process's memory as it wants it to be found: other
/// threads go on meanwhile, so that it takes no lock and allocates nothing. Handlers of signals would run in that memory
/// too: the caller blocks signals, and the child gives them their default action before it unblocks any. Nothing else
/// runs on the stack.
pub unsafe fn spawn_sharing<T>(
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
pub fn exit(status: i32) -> ! {
    // SAFETY: _exit does not return.
    unsafe { libc::_exit(status) }
}

/// Why nothing was executed.
#[derive(Debug)]
pub struct Refused {
    /// The error that tells most: of a program that is there but cannot run, rather than of one that is not.
    pub error: io::Error,
    /// Which of the candidates it was, if it was there.
    pub candidate: Option<usize>,
}

/// Executes the first candidate that is there; returns only if there was none, or if it cannot run.
///
/// # Safety
/// `argv` and `envp` end with a null pointer and point to strings that end with a zero byte.
pub unsafe fn execute(candidates: &[CString], argv: &[*const c_char], envp: &[*const c_char]) -> Refused {
    let mut refused = Refused { error: io::Error::from_raw_os_error(libc::ENOENT), candidate: None };
    for (place, path) in candidates.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => refused = Refused { error, candidate: Some(place) },
            _ => return Refused { error, candidate: Some(place) },
        }
    }
    refused
}

/// Paths at which a program may be: its name if that is a path, else in each folder of `path`.
pub fn candidates<'a>(program: &'a str, path: &'a str) -> impl Iterator<Item = String> + 'a {
    let named = program.contains('/').then(|| program.to_owned());
    // An empty entry means the working directory in old shells; here it means nothing.
    let folders = if named.is_some() { "" } else { path };
    named.into_iter().chain(folders.split(':').filter(|e| !e.is_empty()).map(move |e| format!("{e}/{program}")))
}

/// dup2(2), which leaves the target open across exec; a descriptor already in place is marked so.
///
/// # Errors
/// As of dup2(2).
///
/// # Safety
/// Nothing in this process owns the descriptor of this number.
pub unsafe fn duplicate(fd: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let done = unsafe { if fd == number { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, number) } };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plan {
        candidates: Vec<CString>,
        output: RawFd,
    }

    extern "C" fn run(plan: &Plan) -> ! {
        // SAFETY: in the child, whose descriptors nobody owns; the array ends with a null pointer.
        unsafe {
            if duplicate(plan.output, 1).is_ok() {
                execute(&plan.candidates, &[c"echo".as_ptr(), c"here".as_ptr(), std::ptr::null()], &[std::ptr::null()]);
            }
        }
        exit(77)
    }

    /// What a child says that executes a program, and how it ends.
    fn said_by(program: &str) -> (String, i32) {
        let (mut reader, writer) = io::pipe().unwrap();
        let candidates =
            candidates(program, "/nowhere:/usr/bin:/bin").map(|path| CString::new(path).unwrap()).collect();
        let plan = Plan { candidates, output: writer.as_raw_fd() };
        let stack = Stack::new().unwrap();
        // SAFETY: `run` ends in exec or exit and changes nothing; the tests' process handles no signal.
        let (pid, _pidfd) = unsafe { spawn_sharing(&stack, None, run, &plan) }.unwrap();
        drop(writer);
        let mut said = String::new();
        io::Read::read_to_string(&mut reader, &mut said).unwrap();
        let mut status = 0;
        // SAFETY: a number to write to.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        (said, libc::WEXITSTATUS(status))
    }

    #[test]
    fn a_program_is_found_and_runs_while_other_threads_do() {
        let busy = std::thread::spawn(|| (0..2000).map(|n| vec![n; 64].len()).sum::<usize>());
        for _ in 0..20 {
            assert_eq!(said_by("echo"), ("here\n".to_owned(), 0));
        }
        assert_eq!(busy.join().unwrap(), 2000 * 64);
        assert_eq!(said_by("/bin/echo").1, 0);
        assert_eq!(said_by("no-such-program"), (String::new(), 77));
    }

    #[test]
    fn what_is_there_and_cannot_run_is_told_from_what_is_not() {
        let refused = |paths: &[&str]| {
            let paths: Vec<CString> = paths.iter().map(|path| CString::new(*path).unwrap()).collect();
            // SAFETY: both arrays end with a null pointer. None of these is a program.
            unsafe { execute(&paths, &[std::ptr::null()], &[std::ptr::null()]) }
        };
        let none = refused(&["/none/a", "/none/b"]);
        assert_eq!((none.error.raw_os_error(), none.candidate), (Some(libc::ENOENT), None));
        let folder = refused(&["/none/a", "/usr", "/none/b"]);
        assert_eq!((folder.error.raw_os_error(), folder.candidate), (Some(libc::EACCES), Some(1)));
    }
}
