//! The spawner: a small process, forked in `main`, that makes keepers for as long as the service lives.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use shipote_confinement::seccomp::Filter;
use tokio::io::unix::AsyncFd;

use crate::channel::Channel;
use crate::client::{ExitStream, Keeper};
use crate::connection::connect;
use crate::error::{Failure, SandboxError, Step};
use crate::grants;
use crate::ids::{Identity, Ids, SpawnerConfig, map_ids};
use crate::keeper::{self, Seat};
use crate::spec::SandboxSpec;
use crate::sys::{self, Side};
use crate::wire::{self, Order, Packet, Reply};

/// A connection to the spawner. Dropping it, or the death of the process, ends the spawner; workspaces
/// that exist go on until their [`Keeper`] is dropped.
#[derive(Debug)]
pub struct Spawner {
    pid: i32,
    control: OwnedFd,
    registered: OnceLock<AsyncFd<OwnedFd>>,
}

impl Spawner {
    /// Forks the spawner. Call it in `main` before any other thread exists and before the process
    /// confines itself: the spawner keeps the rights that the process has now.
    ///
    /// # Errors
    /// When the process cannot fork.
    pub fn start(config: SpawnerConfig) -> Result<Self, SandboxError> {
        Self::start_with(config, |_| {})
    }

    /// As [`Spawner::start`], with what a helper does; see [`Spawner::helper`].
    ///
    /// # Errors
    /// When the process cannot fork.
    pub fn start_with(config: SpawnerConfig, help: fn(Channel)) -> Result<Self, SandboxError> {
        let (ours, theirs) = pair().map_err(SandboxError::Spawner)?;
        // SAFETY: the child only runs `serve` and ends with _exit. Were there other threads, fork would
        // still leave the allocator usable.
        match unsafe { libc::fork() } {
            -1 => Err(SandboxError::Spawner(io::Error::last_os_error())),
            0 => {
                // Unwinding must not reach the frames of the process that was copied.
                let served = std::panic::catch_unwind(move || serve(theirs, &config, help));
                sys::exit(if served.is_ok() { 0 } else { 70 })
            }
            pid => Ok(Self { pid, control: ours, registered: OnceLock::new() }),
        }
    }

    /// Makes a workspace. It lives until its [`Keeper`] is ended or dropped.
    ///
    /// # Errors
    /// [`SandboxError::Step`] with what the kernel refused, [`SandboxError::Strict`] when a strict
    /// workspace would lack something, [`SandboxError::SpawnerGone`] when there is no spawner any more.
    pub async fn workspace(&self, spec: &SandboxSpec) -> Result<(Keeper, ExitStream), SandboxError> {
        spec.check()?;
        let (ours, theirs) = pair().map_err(SandboxError::SpawnerGone)?;
        wire::ask_for_pids(ours.as_fd()).map_err(SandboxError::SpawnerGone)?;
        self.order(&Order::Workspace(Box::new(spec.clone())), theirs).await?;
        connect(ours).await
    }

    /// Starts a process of its own that does what [`Spawner::start_with`] was given, and returns the connection
    /// to it. It outlives the service if it wants to; it has the rights the spawner has until it gives them up.
    ///
    /// # Errors
    /// [`SandboxError::SpawnerGone`] when there is no spawner any more. That it could not be started shows as a
    /// connection that is closed.
    pub async fn helper(&self) -> Result<Channel, SandboxError> {
        let (ours, theirs) = pair().map_err(SandboxError::SpawnerGone)?;
        self.order(&Order::Helper, theirs).await?;
        Ok(Channel::new(ours))
    }

    async fn order(&self, order: &Order, theirs: OwnedFd) -> Result<(), SandboxError> {
        let packet = Packet::new(order).map_err(SandboxError::SpawnerGone)?;
        let control = self.register().map_err(SandboxError::SpawnerGone)?;
        loop {
            let mut ready = control.writable().await.map_err(SandboxError::SpawnerGone)?;
            match ready.try_io(|socket| packet.send(socket.as_fd(), &[theirs.as_fd()])) {
                Ok(sent) => return sent.map_err(SandboxError::SpawnerGone),
                Err(_would_block) => {}
            }
        }
    }

    /// The spawner's pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// The socket is registered on first use, because there is no runtime yet when the spawner starts.
    fn register(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        if let Some(registered) = self.registered.get() {
            return Ok(registered);
        }
        rustix::io::ioctl_fionbio(&self.control, true)?;
        let registered = sys::register(self.control.try_clone()?)?;
        Ok(self.registered.get_or_init(|| registered))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
        // It ends as soon as it has read the end of its socket, and must not stay a zombie.
        // SAFETY: waits for a child of ours, without a status.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

struct Live {
    pid: i32,
    pidfd: OwnedFd,
    range: Option<u32>,
}

/// The spawner's whole life.
fn serve(control: OwnedFd, config: &SpawnerConfig, help: fn(Channel)) {
    sys::block_signals(true);
    sys::reset_signals();
    // Ctrl-C in the service's terminal is for the service.
    let _ = rustix::process::setsid();
    let control = raise(control);
    sys::keep_only(&[control.as_raw_fd()]);
    sys::name_process(c"shipote-spawn");
    let nofile = sys::raise_nofile();
    forgo_oom_protection();
    let mut ids = Ids::new(config);
    // Compiled once; every keeper is a copy of this process.
    let filters = shipote_confinement::seccomp::command_filter_in_parts().ok();
    let mut live: Vec<Live> = Vec::new();
    loop {
        let mut watched = vec![PollFd::new(&control, PollFlags::IN)];
        watched.extend(live.iter().map(|keeper| PollFd::new(&keeper.pidfd, PollFlags::IN)));
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let asked = !watched[0].revents().is_empty();
        let mut ended = watched[1..].iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        live.retain(|keeper| {
            let ended = ended.next().unwrap_or(false);
            if ended {
                // SAFETY: waits for a child of ours, without a status.
                unsafe { libc::waitpid(keeper.pid, std::ptr::null_mut(), 0) };
            }
            !ended
        });
        if !asked {
            continue;
        }
        match wire::receive::<Order>(control.as_fd()) {
            Ok(Some((Order::Helper, descriptors))) => {
                let Some(socket) = descriptors.into_iter().next() else { continue };
                // One that cannot be started closes its socket, which tells it.
                live.extend(start_helper(socket, help));
            }
            Ok(Some((Order::Workspace(spec), descriptors))) => {
                let Some(socket) = descriptors.into_iter().next() else { continue };
                match make(&spec, socket.as_fd(), &mut ids, &live, nofile, &filters) {
                    Ok(keeper) => live.push(keeper),
                    Err(failure) => {
                        let _ = wire::send(socket.as_fd(), &Reply::Refused { failure }, &[]);
                    }
                }
            }
            Ok(None) => return,
            // What cannot be read cannot be answered; its sender sees its socket close.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(_) => return,
        }
    }
}

/// Starts a helper: a copy of the spawner with nothing open but its socket.
fn start_helper(socket: OwnedFd, help: fn(Channel)) -> Option<Live> {
    // SAFETY: the spawner has one thread, and the child never returns from the closure.
    match unsafe { libc::fork() } {
        0 => {
            let socket = raise(socket);
            sys::keep_only(&[socket.as_raw_fd()]);
            sys::name_process(c"shipote-helper");
            let helped = std::panic::catch_unwind(move || help(Channel::new(socket)));
            sys::exit(if helped.is_ok() { 0 } else { 70 })
        }
        pid => {
            let process = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0)?;
            let pidfd = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).ok()?;
            Some(Live { pid, pidfd, range: None })
        }
    }
}

/// A service may be protected from the kernel's memory killer; commands must not inherit that.
fn forgo_oom_protection() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now < 0) {
        let _ = fs::write(FILE, "0");
    }
}

/// The descriptor at a number above 2, where `keep_only` leaves it alone.
fn raise(fd: OwnedFd) -> OwnedFd {
    if fd.as_raw_fd() > 2 { fd } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3).unwrap_or(fd) }
}

fn make(
    spec: &SandboxSpec,
    socket: BorrowedFd<'_>,
    ids: &mut Ids,
    live: &[Live],
    nofile: u64,
    filters: &Option<(Filter, Filter)>,
) -> Result<Live, Failure> {
    let in_use: Vec<Option<u32>> = live.iter().map(|keeper| keeper.range).collect();
    let identity = ids
        .take(&in_use)
        .map_err(|error| Failure::new(Step::Ids, "for the workspace's user, as root without ids to give", error))?;
    let cgroup = match &spec.cgroup {
        None => None,
        Some(path) => Some(
            rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(|error| Failure::new(Step::Cgroup, path.display().to_string(), error))?,
        ),
    };
    if let (Some(path), Identity::Range(_)) = (&spec.cgroup, identity) {
        open_to_keeper(path);
    }
    // An ordinary user's keeper has that user's rights, and its mount namespace the right to clone mounts.
    let grants = match identity {
        Identity::Caller { .. } => Vec::new(),
        Identity::Range(base) => {
            spec.paths.iter().map(|grant| grants::prepare(grant, Some(base))).collect::<Result<_, Failure>>()?
        }
    };
    let (wait, mapped) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Failure::new(Step::Namespaces, "pipe", error))?;
    // SAFETY: the spawner has one thread, and the child never returns from `keeper::run`.
    let side = unsafe { sys::clone3(sys::namespaces(spec.network), cgroup.as_ref().map(AsFd::as_fd)) };
    match side.map_err(|error| Failure::new(Step::Namespaces, "of the workspace", error))? {
        Side::Child => {
            keeper::run(&Seat { socket, mapped: wait.as_fd(), spec, identity, nofile, filters, grants: &grants })
        }
        Side::Parent { pid, pidfd } => {
            let keeper = Live { pid, pidfd, range: ids.index(identity) };
            drop(wait);
            let begun = map_ids(pid, identity)
                .map_err(|error| Failure::new(Step::Ids, format!("of process {pid}"), error))
                .and_then(|()| {
                    wire::send(socket, &Reply::Started { pid }, &[keeper.pidfd.as_fd()])
                        .map_err(|error| Failure::new(Step::Process, "keeper", error))
                });
            if let Err(failure) = begun {
                // The keeper ends because the pipe closes without a byte; it is reaped as any other.
                let _ = wire::send(socket, &Reply::Refused { failure }, &[]);
            } else {
                let _ = rustix::io::write(&mapped, &[1]);
            }
            Ok(keeper)
        }
    }
}

/// Lets a keeper with host ids of its own start commands in the cgroups beside its own. The kernel asks
/// for write access to `cgroup.procs` of the target and of the nearest common ancestor, and that is all
/// that the file's mode decides: nobody can move a process from or to where they lack either.
fn open_to_keeper(cgroup: &std::path::Path) {
    for directory in [Some(cgroup), cgroup.parent()].into_iter().flatten() {
        // Where this fails, starting a command in another cgroup will say so.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let _ = fs::set_permissions(directory.join("cgroup.procs"), mode);
    }
}
