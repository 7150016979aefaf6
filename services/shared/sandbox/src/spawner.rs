//! The spawner: a small process, forked in `main`, that makes keepers for as long as the service lives.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::CapabilitySet;
use shipote_confinement::seccomp::Filter;
use tokio::io::unix::AsyncFd;

use crate::client::{ExitStream, Keeper, connect};
use crate::error::{Failure, SandboxError, Step};
use crate::grants;
use crate::keeper::{self, Seat};
use crate::spec::SandboxSpec;
use crate::sys::{self, Side};
use crate::wire::{self, Create, Packet, Reply};

/// How the spawner gives out ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnerConfig {
    /// First host uid and gid of the ranges that workspaces get where the caller may set ids.
    pub first_id: u32,
    /// How many ranges of 65,536 ids there are from there on.
    pub id_ranges: u32,
}

impl Default for SpawnerConfig {
    fn default() -> Self {
        // Above what useradd, systemd's DynamicUser and nsresourced, and subuid files use.
        Self { first_id: 0x6000_0000, id_ranges: 8192 }
    }
}

/// Ids in one range.
const RANGE: u32 = 65_536;

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
        let (ours, theirs) = pair().map_err(SandboxError::Spawner)?;
        // SAFETY: the child only runs `serve` and ends with _exit. Were there other threads, fork would
        // still leave the allocator usable.
        match unsafe { libc::fork() } {
            -1 => Err(SandboxError::Spawner(io::Error::last_os_error())),
            0 => {
                // Unwinding must not reach the frames of the process that was copied.
                let served = std::panic::catch_unwind(move || serve(theirs, &config));
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
        let packet = Packet::new(&Create { spec: spec.clone() }).map_err(SandboxError::SpawnerGone)?;
        let control = self.register().map_err(SandboxError::SpawnerGone)?;
        loop {
            let mut ready = control.writable().await.map_err(SandboxError::SpawnerGone)?;
            match ready.try_io(|socket| packet.send(socket.as_fd(), &[theirs.as_fd()])) {
                Ok(sent) => break sent.map_err(SandboxError::SpawnerGone)?,
                Err(_would_block) => {}
            }
        }
        drop(theirs);
        connect(ours).await
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

/// Who the keeper and its commands are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A range of host ids of its own, from this one.
    Range(u32),
    /// One id only: the caller's.
    Caller { uid: u32, gid: u32 },
}

struct Live {
    pid: i32,
    pidfd: OwnedFd,
    range: Option<u32>,
}

/// What the spawner gives ids from.
struct Ids {
    config: SpawnerConfig,
    ranged: bool,
    next: u32,
    /// Ranges of workspaces that another spawner made and that live on.
    taken: HashSet<u32>,
}

impl Ids {
    fn new(config: &SpawnerConfig) -> Self {
        let wanted = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let ranged = rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(wanted))
            && holds(config, "/proc/self/uid_map")
            && holds(config, "/proc/self/gid_map");
        // Another spawner on this host should not begin with the same range.
        let next = std::process::id().wrapping_mul(0x9e37_79b1) % config.id_ranges.max(1);
        let taken = if ranged { ranges_in_use(config) } else { HashSet::new() };
        Self { config: config.clone(), ranged, next, taken }
    }

    fn take(&mut self, live: &[Live]) -> io::Result<Identity> {
        if !self.ranged {
            let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            // Root outside must not be the user inside.
            if uid == 0 {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            return Ok(Identity::Caller { uid, gid });
        }
        for _ in 0..self.config.id_ranges {
            let index = self.next;
            self.next = (index + 1) % self.config.id_ranges;
            if !self.taken.contains(&index) && live.iter().all(|other| other.range != Some(index)) {
                return Ok(Identity::Range(self.config.first_id + index * RANGE));
            }
        }
        Err(io::Error::from_raw_os_error(libc::EUSERS))
    }

    fn index(&self, identity: Identity) -> Option<u32> {
        if let Identity::Range(base) = identity { Some((base - self.config.first_id) / RANGE) } else { None }
    }
}

/// The ranges that user namespaces of living processes have.
fn ranges_in_use(config: &SpawnerConfig) -> HashSet<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return HashSet::new() };
    processes
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| fs::read_to_string(entry.path().join("uid_map")).ok())
        .filter_map(|map| map.split_whitespace().nth(1)?.parse::<u32>().ok()?.checked_sub(config.first_id))
        .map(|offset| offset / RANGE)
        .filter(|index| *index < config.id_ranges)
        .collect()
}

/// Whether this process's own user namespace has the ids that are to be given out.
fn holds(config: &SpawnerConfig, map: &str) -> bool {
    let Some(end) = config.id_ranges.checked_mul(RANGE).and_then(|count| config.first_id.checked_add(count)) else {
        return false;
    };
    fs::read_to_string(map).is_ok_and(|text| {
        text.lines().any(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
            let (first, _, count) = (fields.next(), fields.next(), fields.next());
            match (first, count) {
                (Some(first), Some(count)) => first <= u64::from(config.first_id) && u64::from(end) <= first + count,
                _ => false,
            }
        })
    })
}

/// The spawner's whole life.
fn serve(control: OwnedFd, config: &SpawnerConfig) {
    sys::block_signals(true);
    sys::reset_signals();
    // Ctrl-C in the service's terminal is for the service.
    let _ = rustix::process::setsid();
    let control = raise(control);
    sys::keep_only(&[control.as_raw_fd()]);
    sys::name_process(c"shipote-spawn");
    let nofile = sys::raise_nofile();
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
        match wire::receive::<Create>(control.as_fd()) {
            Ok(Some((create, descriptors))) => {
                let Some(socket) = descriptors.into_iter().next() else { continue };
                match make(&create.spec, socket.as_fd(), &mut ids, &live, nofile, &filters) {
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
    let identity = ids
        .take(live)
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
    let side = unsafe { sys::clone3(sys::NAMESPACES, cgroup.as_ref().map(AsFd::as_fd)) };
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

/// Writes the id maps of a new user namespace (user_namespaces(7)).
fn map_ids(pid: i32, identity: Identity) -> io::Result<()> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    match identity {
        Identity::Range(base) => {
            write("uid_map", format!("0 {base} {RANGE}"))?;
            write("gid_map", format!("0 {base} {RANGE}"))
        }
        Identity::Caller { uid, gid } => {
            write("setgroups", "deny".to_owned())?;
            write("uid_map", format!("{} {uid} 1", keeper::WORK))?;
            write("gid_map", format!("{} {gid} 1", keeper::WORK))
        }
    }
}
