//! Explaining what a command is refused: the supervisor of its seccomp filter (seccomp_unotify(2)).
//!
//! A process of the workspace's own beside the keeper, a copy of it, so that looking at one command's calls holds
//! up no other. It has no right that the keeper has not, but for reading the memory of the commands, and gives up
//! the rest. For files it is the commands' user: what it tries is refused to it as it will be to them.
//!
//! ```text
//!   command ── a call that is refused, or names a path ──▶ kernel ──▶ supervisor
//!           ◀── the error, or "go on" ───────────────────────────────────┘  │ the first of each kind
//!                                                             service ◀─────┘
//! ```
//!
//! Invariant: it decides nothing. A call that the filter refuses gets the filter's error; every other is made by
//! the kernel as if nobody had looked, and refused or not by the kernel. If the supervisor dies, the calls that it
//! was to look at fail with ENOSYS, and commands that are started from then on bear the filter that asks nobody and are
//! told to be unseen. One thing is different for the command: a signal whose handler does not restart
//! calls (SA_RESTART) may interrupt a call that is looked at, with EINTR, before the supervisor has taken it up.

mod calls;
mod look;
mod memory;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{CapabilitySet, CapabilitySets};
use shipote_confinement::seccomp::Explained;

use super::{Ids, WORK};
use crate::error::{Failure, Step};
use crate::refusal::{Refusal, Why};
use crate::spec::Network;
use crate::sys::{self, Side};
use crate::wire::{self, Packet, Reply};

/// Most different refusals of one command that are told.
const TOLD: usize = 256;

/// What a command needs to be explained.
pub(super) struct Explainer {
    filter: Explained,
    /// Leads to the supervisor.
    door: OwnedFd,
    /// A landlock ruleset that keeps signals in: where the supervisor is the commands' user, it must not be theirs to
    /// end. Each command has one of its own, so that none signals another.
    ruleset: Option<OwnedFd>,
}

/// A command under the supervisor's eyes.
struct Watched {
    id: u64,
    listener: OwnedFd,
    told: HashSet<Refusal>,
    /// It was said that more was refused than is told.
    more: bool,
}

impl Explainer {
    /// Starts the supervisor of the workspace whose keeper this process is. Refusals are sent over `service`.
    pub(super) fn start(service: BorrowedFd<'_>, network: Network, ids: Ids) -> Result<Self, Failure> {
        let named = |error: io::Error| Failure::new(Step::Seccomp, "supervisor", error);
        let filter =
            Explained::new(&calls::watched()).map_err(|_| named(io::Error::from_raw_os_error(libc::EINVAL)))?;
        let (door, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(|error| named(error.into()))?;
        // SAFETY: the keeper has one thread, and the child ends with `exit`.
        match unsafe { sys::clone_unseen() }.map_err(named)? {
            Side::Child => {
                drop(door);
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    supervise(other.as_fd(), service, network, &filter)
                }));
                sys::exit(if matches!(done, Ok(Ok(()))) { 0 } else { 70 })
            }
            Side::Parent { .. } => {
                Ok(Self { filter, door, ruleset: if ids.keeper == WORK { signals_ruleset() } else { None } })
            }
        }
    }

    /// Puts the calling process under the filter and its supervisor. The last thing before a command's program
    /// is executed; allocates nothing.
    pub(super) fn watch(&self, id: u64) -> io::Result<()> {
        if self.is_gone() {
            return self.filter.install_unexplained();
        }
        if let Some(ruleset) = &self.ruleset {
            // SAFETY: an open ruleset and no flags.
            let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let listener = self.filter.install()?;
        wire::send_plain(self.door.as_fd(), &id.to_ne_bytes(), listener.as_fd())
    }

    /// The supervisor has ended, and with it the other end of the door. Allocates nothing.
    pub(super) fn is_gone(&self) -> bool {
        let mut door = [PollFd::new(&self.door, PollFlags::empty())];
        matches!(poll(&mut door, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }
}

/// A ruleset that does nothing but keep signals within the domain (landlock(7), ABI 6); None on a kernel without, where
/// a command can end the supervisor, and with it itself.
fn signals_ruleset() -> Option<OwnedFd> {
    const SCOPE_SIGNAL: u64 = 1 << 1;
    // struct landlock_ruleset_attr: files, network, scopes.
    let attributes: [u64; 3] = [0, 0, SCOPE_SIGNAL];
    // SAFETY: the kernel reads the attributes, and makes a descriptor that nothing else owns.
    unsafe {
        let size = size_of_val(&attributes);
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), size, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd as i32))
    }
}

/// The supervisor's whole life: it ends with the keeper, which has the other end of the door.
fn supervise(door: BorrowedFd<'_>, service: BorrowedFd<'_>, network: Network, filter: &Explained) -> io::Result<()> {
    sys::name_process(c"shipote-explain");
    let needed = CapabilitySet::SYS_PTRACE;
    let kept = CapabilitySets { effective: needed, permitted: needed, inheritable: CapabilitySet::empty() };
    // SAFETY: numbers only; what files this process reaches is what the commands reach.
    unsafe {
        libc::setfsgid(WORK);
        libc::setfsuid(WORK);
    }
    rustix::thread::set_capabilities(None, kept)?;
    let mut watched: Vec<Watched> = Vec::new();
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(door, PollFlags::IN)];
        fds.extend(watched.iter().map(|command| PollFd::new(&command.listener, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        for (command, events) in watched.iter_mut().zip(&events[1..]) {
            if events.contains(PollFlags::IN) {
                answer(command, service, network, filter);
            }
        }
        let mut gone = events[1..].iter().map(|events| !events.contains(PollFlags::IN) && !events.is_empty());
        watched.retain(|_| !gone.next().unwrap_or(false));
        if !events[0].is_empty() {
            match wire::receive_plain(door)? {
                None => return Ok(()),
                Some((id, listener)) => {
                    watched.push(Watched { id: u64::from_ne_bytes(id), listener, told: HashSet::new(), more: false });
                }
            }
        }
    }
}

/// Takes one call, looks at it, tells of it and lets it be refused or go on.
fn answer(command: &mut Watched, service: BorrowedFd<'_>, network: Network, filter: &Explained) {
    let Some(call) = receive(&command.listener) else { return };
    let (number, pid) = (call.data.nr, call.pid as i32);
    let seen = look::Seen { pid, arguments: &call.data.args };
    let kind = calls::call(number);
    let mut response = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
    let found = match filter.refusal(number, call.data.args) {
        Some(errno) => {
            response.error = -errno;
            let object = kind.map_or_else(String::new, |kind| look::named(&seen, kind));
            Some((object, Why::SystemCall, errno))
        }
        None => {
            response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
            kind.and_then(|kind| look::look(&seen, kind, network))
        }
    };
    // Where the caller is gone by now, its number may have been another's when its memory was read.
    if let Some((object, why, errno)) = found
        && valid(&command.listener, call.id)
    {
        tell(command, service, Refusal { number, errno, object, why });
    }
    send(&command.listener, &response);
}

/// Tells the service of what is new. It comes before the answer, and so before the end of the command.
fn tell(command: &mut Watched, service: BorrowedFd<'_>, refusal: Refusal) {
    if command.told.contains(&refusal) {
        return;
    }
    // A service that does not read would stop every command: it gets half of the socket's buffer, and in the other
    // half there is room to say that there was more.
    if command.told.len() < TOLD && !is_crowded(service) && send_refusal(command.id, &refusal, service) {
        command.told.insert(refusal);
    } else if !command.more {
        command.more = send_refusal(command.id, &Refusal::untold(Why::More), service);
    }
}

fn send_refusal(id: u64, refusal: &Refusal, service: BorrowedFd<'_>) -> bool {
    Packet::new(&Reply::Refusal { id, refusal: refusal.clone() }).is_ok_and(|packet| packet.send_now(service).is_ok())
}

/// Whether half of what the socket takes is waiting to be read.
fn is_crowded(service: BorrowedFd<'_>) -> bool {
    let mut waiting: libc::c_int = 0;
    // SAFETY: the kernel writes a number.
    let done = unsafe { libc::ioctl(service.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) };
    let room = rustix::net::sockopt::socket_send_buffer_size(service).unwrap_or_default();
    done == 0 && usize::try_from(waiting).unwrap_or_default() > room / 2
}

fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    // SAFETY: plain numbers, which the kernel wants to be zero before it writes them.
    unsafe {
        let mut call: libc::seccomp_notif = std::mem::zeroed();
        let done = libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call);
        (done == 0).then_some(call)
    }
}

fn valid(listener: &OwnedFd, id: u64) -> bool {
    // SAFETY: the kernel reads a number.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
}

fn send(listener: &OwnedFd, response: &libc::seccomp_notif_resp) {
    // A caller that was killed meanwhile has no use for it.
    // SAFETY: the kernel reads the struct.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, std::ptr::from_ref(response)) };
}
