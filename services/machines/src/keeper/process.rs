//! The machine's processes: started confined, so that a guest that owns one of them gets nothing more.
//!
//! Each has a landlock domain of its own (QEMU: its programs and its disk; the vsock device: the folder of its sockets,
//! in which it makes nothing else; what serves a volume: that folder), a seccomp filter (QEMU: no socket at all beside those it is given; the
//! device: Unix sockets only; a volume's: it takes the one connection), no capability, and dies with its keeper.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitid,
};
use shipote_confinement::seccomp::{AskedConnects, Sockets, machine_filter};
use shipote_confinement::{CapabilitySet, Domain, Handled, PathAccess, drop_capabilities};

use crate::Error;
use crate::volumes::Owner;

/// How long the vsock device may take to listen.
const DEVICE_TIME: Duration = Duration::from_secs(20);

/// The variable that tells whoever lists processes which machine's it is one of: the machine's folder.
const MACHINE: &str = "SHIPOTE_MACHINE";

/// The machine that a process is of.
pub(super) struct Of<'a> {
    pub(super) folder: &'a Path,
    /// What it joins its control group by, where it has one.
    pub(super) group: Option<&'a File>,
}

/// A process, until it has been waited for.
pub(super) struct Process {
    child: std::process::Child,
    pub(super) pidfd: OwnedFd,
    /// By which it asks for its connections, if it has to.
    pub(super) asks: Option<OwnedFd>,
    /// Standard output and error, as long as they are open.
    pub(super) streams: Vec<File>,
}

/// What a process may reach.
pub(super) struct Reach<'a> {
    pub(super) execute: &'a [PathBuf],
    pub(super) read: &'a [&'a Path],
    pub(super) touch: &'a [PathBuf],
    pub(super) write: &'a [&'a Path],
    /// Folders in which it makes sockets, and nothing else.
    pub(super) listen: &'a [&'a Path],
    /// Folders that are open, and whether they are only read.
    pub(super) folders: &'a [(BorrowedFd<'a>, bool)],
    pub(super) sockets: Sockets,
    /// Its connections are made by the keeper, where the kernel can have it so.
    pub(super) asks: bool,
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
        (reach.listen.to_vec(), PathAccess::Sockets),
    ];
    for (paths, access) in rules {
        for path in paths.into_iter().filter(|path| path.exists()) {
            domain = domain.allow_path(path, access).map_err(refused)?;
        }
    }
    for (folder, read_only) in reach.folders {
        let access = if *read_only { PathAccess::Read } else { PathAccess::Write };
        domain = domain.allow_fd(*folder, true, access).map_err(refused)?;
    }
    Ok(domain)
}

fn refused(error: shipote_confinement::Error) -> Error {
    Error::io("confine", "a machine's process")(std::io::Error::other(error))
}

/// Starts a process of a machine, as another user where one is given. `descriptors` appear in it under the numbers that
/// stand with them.
pub(super) fn start(
    command: &mut Command,
    reach: &Reach<'_>,
    user: Option<Owner>,
    machine: &Of<'_>,
    descriptors: Vec<(OwnedFd, i32)>,
) -> Result<Process, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let listens = user.is_some() && !reach.listen.is_empty();
    let mut domain = Some(domain(reach)?);
    let filter = machine_filter(reach.sockets).map_err(refused)?;
    let asking = reach.asks.then(AskedConnects::new).transpose().map_err(refused)?;
    let (ours, theirs) = UnixStream::pair().map_err(Error::io("make a socket for", &program))?;
    let parent = getpid();
    let group =
        machine.group.map(File::try_clone).transpose().map_err(Error::io("join", "the machine's control group"))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear();
    command
        .env(MACHINE, machine.folder)
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
    // SAFETY: the keeper has one thread, so that what runs between fork and exec may allocate; it makes system calls on
    // values made before, and the descriptors are owned by the closure, hence open.
    unsafe {
        command.pre_exec(move || {
            if let Some(group) = &group {
                rustix::io::write(group, b"0")?;
            }
            match user {
                Some(user) => become_user(user)?,
                None => drop(drop_capabilities(CapabilitySet::empty()).map_err(std::io::Error::other)?),
            }
            // After the change of user, which the kernel takes the signal back at.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // Had the parent died before that call, no signal would come any more.
            if getppid() != Some(parent) {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            if listens {
                // Its sockets are for whoever reaches their folder, which is the keeper's.
                rustix::process::umask(rustix::fs::Mode::empty());
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
            filter.install()?;
            // A kernel that cannot, or a supervisor above us: the keeper finds that nothing came, and says so.
            if let Some(asks) = asking.as_ref().and_then(|asking| asking.install().ok()) {
                give(&theirs, &asks)?;
            }
            Ok(())
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
    let asks = if reach.asks { taken(&ours) } else { None };
    Ok(Process { child, pidfd, asks, streams })
}

/// Hands a descriptor over.
fn give(socket: &UnixStream, descriptor: &OwnedFd) -> std::io::Result<()> {
    let descriptors = [descriptor.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    message.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(socket, &[IoSlice::new(b"a")], &mut message, SendFlags::empty())?;
    Ok(())
}

/// Takes one that was handed over before; `None` where none was.
fn taken(socket: &UnixStream) -> Option<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut message, flags).ok()?;
    message.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// Another user, for good: with the ids the capabilities go that allowed the change.
fn become_user(user: Owner) -> std::io::Result<()> {
    let (uid, gid) = (user.uid, user.gid);
    // SAFETY: system calls on plain values; the process has one thread, so that none is left behind with other ids.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(gid, gid, gid) != 0
            || libc::setresuid(uid, uid, uid) != 0
    };
    if failed {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

impl Process {
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends it a signal; one that has ended needs none.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits until all of its threads have stopped, or it has ended: what it was writing is written then.
    pub(super) fn has_stopped(&self) {
        let any = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // Its end is noticed elsewhere.
        while matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), any), Err(rustix::io::Errno::INTR)) {}
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

    /// Connects to the socket that it makes: the vsock device has no other way to say that it is there. A socket that
    /// is bound already and not listened on yet refuses.
    pub(super) fn connect(&mut self, socket: &Path) -> Result<UnixStream, Error> {
        let begun = Instant::now();
        let failed = |what: &str| Error::io("run", "vhost-device-vsock")(std::io::Error::other(what.to_owned()));
        loop {
            let error = match UnixStream::connect(socket) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) {
                return Err(Error::io("connect to", socket.display())(error));
            }
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
