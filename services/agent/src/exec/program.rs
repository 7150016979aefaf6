//! A program and all that its process needs before it executes it.
//!
//! The process shares the agent's memory until then ([`shipote_spawn`]), so that all of this is made before: a copy of the
//! agent (fork(2)) would take several times as long in an emulated machine, where each page that is copied costs dearly.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{Gid, Uid};
use shipote_spawn::{Stack, duplicate, execute, exit, spawn_sharing};

use super::{Command, Jail};

/// The shell for a file that is no program, as of execvp(3).
const SHELL: &std::ffi::CStr = c"/bin/sh";

/// One at a time uses it: whoever starts a program waits until it runs.
static STACK: Mutex<Option<Stack>> = Mutex::new(None);

/// What is executed, and how.
pub(super) struct Program<'a> {
    candidates: Vec<CString>,
    /// The program's arguments behind two places, which a shell's need.
    argv: Vec<Cell<*const c_char>>,
    envp: Vec<*const c_char>,
    directory: Option<CString>,
    stdio: [RawFd; 3],
    terminal: bool,
    jail: Option<&'a Jail>,
    root: Option<CString>,
    groups: Vec<Gid>,
    /// Where the child leaves what went wrong.
    failed: Cell<Option<i32>>,
    /// What the pointers point to.
    _strings: Vec<CString>,
}

fn text(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "it has a NUL byte in it"))
}

impl<'a> Program<'a> {
    pub(super) fn new(
        command: &'a Command,
        environment: &BTreeMap<String, String>,
        stdio: &[OwnedFd; 3],
        terminal: bool,
    ) -> io::Result<Self> {
        let name = command.argv.first().map_or("", String::as_str);
        let path = environment.get("PATH").map_or("/bin:/usr/bin", String::as_str);
        let candidates = shipote_spawn::candidates(name, path).map(text).collect::<io::Result<_>>()?;
        let arguments = command.argv.iter().map(|argument| text(argument.as_str())).collect::<io::Result<Vec<_>>>()?;
        let variables =
            environment.iter().map(|(name, value)| text(format!("{name}={value}"))).collect::<io::Result<Vec<_>>>()?;
        let end = std::iter::once(std::ptr::null());
        let argv = [SHELL.as_ptr()].into_iter().chain(arguments.iter().map(|a| a.as_ptr())).chain(end.clone());
        let (directory, root) = match &command.jail {
            None => (command.workdir.as_deref().map(text).transpose()?, None),
            Some(jail) => (
                Some(text(jail.directory.as_os_str().as_encoded_bytes())?),
                Some(text(jail.root.as_os_str().as_encoded_bytes())?),
            ),
        };
        Ok(Self {
            candidates,
            argv: argv.map(Cell::new).collect(),
            envp: variables.iter().map(|v| v.as_ptr()).chain(end).collect(),
            directory,
            stdio: [stdio[0].as_raw_fd(), stdio[1].as_raw_fd(), stdio[2].as_raw_fd()],
            terminal,
            jail: command.jail.as_ref(),
            root,
            groups: command.jail.iter().flat_map(|jail| &jail.groups).map(|&gid| Gid::from_raw(gid)).collect(),
            failed: Cell::new(None),
            _strings: arguments.into_iter().chain(variables).collect(),
        })
    }

    /// Starts it, in a control group where there is one. When this returns, the program runs.
    pub(super) fn start(&self, cgroup: Option<BorrowedFd<'_>>) -> io::Result<i32> {
        let mut stack = STACK.lock().unwrap_or_else(PoisonError::into_inner);
        let stack = match &mut *stack {
            Some(stack) => stack,
            none => none.insert(Stack::new()?),
        };
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
        // SAFETY: `become_program` ends in exec or exit, makes system calls only, and writes to the cells of the program
        // alone; signals are blocked here, and have their default action there before they are not.
        let spawned = unsafe { spawn_sharing(stack, cgroup, become_program, self) };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
        let (pid, _pidfd) = spawned?;
        match self.failed.get() {
            None => Ok(pid),
            Some(errno) => {
                // It is ending; nobody else knows of it.
                let _ = waitpid(Pid::from_raw(pid), None);
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }

    fn prepare(&self) -> io::Result<()> {
        rustix::process::setsid()?;
        for (number, fd) in (0..).zip(self.stdio) {
            // SAFETY: the child's own descriptors; the agent's standard ones are owned by nothing.
            unsafe { duplicate(fd, number) }?;
        }
        if self.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let (Some(jail), Some(root)) = (self.jail, &self.root) {
            rustix::process::chroot(root.as_c_str())?;
            self.enter()?;
            let (uid, gid) = (Uid::from_raw(jail.uid), Gid::from_raw(jail.gid));
            // Of this thread, which is all that the child is: the C library would tell the agent's threads.
            rustix::thread::set_thread_groups(&self.groups)?;
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        } else {
            self.enter()?;
        }
        // The agent handles the one (of the runtime) and ignores the other (of Rust's).
        for signal in [libc::SIGCHLD, libc::SIGPIPE] {
            // SAFETY: SIG_DFL needs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        Ok(())
    }

    fn enter(&self) -> io::Result<()> {
        self.directory.as_ref().map_or(Ok(()), |directory| Ok(rustix::process::chdir(directory.as_c_str())?))
    }

    /// Returns only where nothing could be executed.
    fn execute(&self) -> io::Error {
        // SAFETY: a cell is laid out as what is in it. The arrays end with a null pointer and point to strings that
        // outlive the call; only this child, for which the agent waits, changes them.
        let argv = unsafe { &*(&raw const *self.argv as *const [*const c_char]) };
        // SAFETY: as above.
        let refused = unsafe { execute(&self.candidates, &argv[1..], &self.envp) };
        if let (Some(libc::ENOEXEC), Some(place)) = (refused.error.raw_os_error(), refused.candidate) {
            self.argv[1].set(self.candidates[place].as_ptr());
            // SAFETY: as above.
            unsafe { libc::execve(SHELL.as_ptr(), self.argv.as_ptr().cast(), self.envp.as_ptr()) };
        }
        refused.error
    }
}

/// The child's part, on the agent's memory.
extern "C" fn become_program(program: &Program<'_>) -> ! {
    let error = match program.prepare() {
        Ok(()) => program.execute(),
        Err(error) => error,
    };
    program.failed.set(Some(error.raw_os_error().unwrap_or(libc::EIO)));
    exit(127)
}
