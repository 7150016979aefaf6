//! The machine's two processes: started confined, so that a guest that owns one of them gets nothing more.
//!
//! Each has a landlock domain of its own (QEMU: its programs and its disks; the vsock device: the folder of its
//! sockets), a seccomp filter (QEMU: no socket at all beside those it is given; the device: Unix sockets only), no
//! capability, and dies with its keeper.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use shipote_confinement::seccomp::{Sockets, machine_filter};
use shipote_confinement::{Domain, Handled, PathAccess};

use crate::Error;

/// How long the vsock device may take to listen.
const DEVICE_TIME: Duration = Duration::from_secs(20);

/// A process, until it has been waited for.
pub(super) struct Process {
    child: std::process::Child,
    pub(super) pidfd: OwnedFd,
    /// Standard output and error, as long as they are open.
    pub(super) streams: Vec<File>,
}

/// What a process may reach.
pub(super) struct Reach<'a> {
    pub(super) execute: &'a [PathBuf],
    pub(super) read: &'a [&'a Path],
    pub(super) touch: &'a [PathBuf],
    pub(super) write: &'a [&'a Path],
    pub(super) sockets: Sockets,
}

/// Where programs and their libraries lie, on a distribution or on NixOS.
pub(super) fn programs(image: &Path) -> Vec<PathBuf> {
    let system = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/nix/store", "/run/current-system"];
    system.iter().map(PathBuf::from).chain([image.to_owned()]).collect()
}

/// A domain of existing paths: one that isn't there needs no rule.
pub(super) fn domain(reach: &Reach<'_>) -> Result<Domain, Error> {
    let mut domain = Domain::new(Handled::ALL).map_err(refused)?;
    let rules = [
        (reach.execute.iter().map(PathBuf::as_path).collect::<Vec<_>>(), PathAccess::Execute),
        (reach.read.to_vec(), PathAccess::Read),
        (reach.touch.iter().map(PathBuf::as_path).collect(), PathAccess::Use),
        (reach.write.to_vec(), PathAccess::Write),
    ];
    for (paths, access) in rules {
        for path in paths.into_iter().filter(|path| path.exists()) {
            domain = domain.allow_path(path, access).map_err(refused)?;
        }
    }
    Ok(domain)
}

fn refused(error: shipote_confinement::Error) -> Error {
    Error::io("confine", "a machine's process")(std::io::Error::other(error))
}

/// Starts a process. `descriptors` appear in it under the numbers that stand with them.
pub(super) fn start(
    command: &mut Command,
    reach: &Reach<'_>,
    descriptors: Vec<(OwnedFd, i32)>,
) -> Result<Process, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut domain = Some(domain(reach)?);
    let filter = machine_filter(reach.sockets).map_err(refused)?;
    let parent = getpid();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    // SAFETY: the keeper has one thread, so that what runs between fork and exec may allocate; it makes system calls on
    // values made before, and the descriptors are owned by the closure, hence open.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Had the parent died before that call, no signal would come any more.
            if getppid() != Some(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            for (descriptor, number) in &descriptors {
                // dup2 leaves the copy open across exec.
                if libc::dup2(descriptor.as_raw_fd(), *number) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if let Some(domain) = domain.take() {
                domain.restrict().map_err(std::io::Error::other)?;
            }
            rustix::thread::set_no_new_privs(true)?;
            filter.install()
        });
    }
    let mut child = command.spawn().map_err(Error::io("run", &program))?;
    let mut streams = Vec::new();
    streams.extend(child.stdout.take().map(OwnedFd::from).map(File::from));
    streams.extend(child.stderr.take().map(OwnedFd::from).map(File::from));
    for stream in &streams {
        rustix::io::ioctl_fionbio(stream, true).map_err(|error| Error::io("read from", &program)(error.into()))?;
    }
    let pidfd = Pid::from_raw(child.id().cast_signed())
        .ok_or(rustix::io::Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(|error| Error::io("watch", &program)(error.into()))?;
    Ok(Process { child, pidfd, streams })
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal; one that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Kills it and waits for its end.
    pub(super) fn end(&mut self) -> std::io::Result<ExitStatus> {
        // One that has ended already cannot be killed, which is as good.
        let _ = self.child.kill();
        self.child.wait()
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// What it has written since, to be called until there is no more; streams that ended are dropped.
    pub(super) fn output(&mut self, mut take: impl FnMut(&[u8])) {
        let mut piece = [0; 8192];
        self.streams.retain_mut(|stream| {
            // Bounded, so that one that never stops writing does not keep the keeper from everything else.
            for _ in 0..16 {
                match stream.read(&mut piece) {
                    Ok(0) => return false,
                    Ok(n) => take(&piece[..n]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
                }
            }
            true
        });
    }

    /// Waits for a socket to appear: the vsock device has no other way to say that it is there.
    pub(super) fn listens_on(&mut self, socket: &Path) -> Result<(), Error> {
        let begun = Instant::now();
        let failed = |what: &str| Error::io("run", "vhost-device-vsock")(std::io::Error::other(what.to_owned()));
        while !socket.exists() {
            if self.has_ended() {
                let mut said = Vec::new();
                self.output(|piece| said.extend_from_slice(&piece[..piece.len().min(512)]));
                return Err(failed(&format!("it ended at once: {}", String::from_utf8_lossy(&said).trim())));
            }
            if begun.elapsed() > DEVICE_TIME {
                return Err(failed(&format!("no socket within {DEVICE_TIME:?}")));
            }
            // Its end, or a moment.
            let ends = [(self.pidfd.as_fd(), rustix::event::PollFlags::IN)];
            super::wait(&ends, Some(Duration::from_millis(2))).map_err(Error::io("wait for", socket.display()))?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
