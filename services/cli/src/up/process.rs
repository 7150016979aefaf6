//! Starting a process so that it cannot outlive the supervisor, and signalling it without a race.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
    process::Stdio,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal},
};
use tokio::process::{Child, Command};

/// Variables of the caller that the services get; everything else is set for them or absent.
const PASSED_ON: [&str; 18] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "RUST_BACKTRACE",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// A pipe that reaches its end when the supervisor is gone: whoever holds the reading end can wait for it.
///
/// The parent-death signal reaches only the supervisor's own children; helpers further down watch this.
#[derive(Debug)]
pub(super) struct Lifeline {
    reader: io::PipeReader,
    _writer: io::PipeWriter,
}

impl Lifeline {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        Ok(Self { reader, _writer: writer })
    }

    /// The number under which a child finds it.
    pub(super) fn number(&self) -> String {
        self.reader.as_raw_fd().to_string()
    }
}

/// A process of the appliance.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    /// A process that is gone already needs no signal.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }
}

/// A program with a clean environment, tied to the supervisor's life. It gets the descriptors `passed` under the
/// numbers that they have here; they must be open until it is started.
pub(super) fn command(program: &Path, lifeline: &Lifeline, passed: Vec<RawFd>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    let ours = |key: &OsString| key.as_encoded_bytes().starts_with(b"SHIPOTE_");
    let wanted = |key: &OsString| PASSED_ON.iter().any(|k| key == k) || ours(key);
    command.envs(std::env::vars_os().filter(|(key, _)| wanted(key)));
    // A group of its own: Ctrl-C at the terminal is for the supervisor, which stops everything in order.
    command.process_group(0);
    let supervisor = Pid::from_raw(std::process::id().cast_signed());
    let lifeline = lifeline.reader.as_fd().as_raw_fd();
    // SAFETY: between fork and exec the closure only makes system calls, on values computed before, and allocates
    // nothing. The descriptors are open: the supervisor keeps its lifeline for as long as it starts processes, and the
    // caller those that are passed.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The supervisor may have died before that call; then the kernel will send no signal any more.
            if getppid() != supervisor {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Whatever the supervisor's caller left open is none of the services' business (close_range(2)).
            if libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            for number in passed.iter().chain([&lifeline]) {
                fcntl_setfd(BorrowedFd::borrow_raw(*number), FdFlags::empty())?;
            }
            Ok(())
        });
    }
    command
}

/// Starts it. Must be called on the thread that lives as long as the supervisor: the kernel sends the parent-death
/// signal when the thread that forked is gone.
pub(super) fn start(command: &mut Command) -> io::Result<(Process, Child)> {
    let child = command.spawn()?;
    let pid = child.id().unwrap_or_default();
    // The child is not waited for yet, so its number is still its own.
    let raw = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    Ok((Process { pid, pidfd }, child))
}
