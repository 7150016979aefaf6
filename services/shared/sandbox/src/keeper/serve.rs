//! The keeper at work: one loop over its socket and its children.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shipote_confinement::Mechanism;

use super::command::{self, Common, Reaped};
use super::doors::Doors;
use crate::error::{Failure, Step};
use crate::refusal::{Refusal, Why};
use crate::spec::Usage;
use crate::wire::{self, Reply, Request};

/// Most ends that are kept for a service to come; the oldest go first.
const RECORDS: usize = 4096;

/// How a command ended.
struct Record {
    id: u64,
    code: Option<i32>,
    signal: Option<i32>,
    usage: Usage,
}

impl Record {
    fn reply(&self) -> Reply {
        Reply::Exited { id: self.id, code: self.code, signal: self.signal, usage: self.usage }
    }
}

struct Keeper<'a> {
    socket: BorrowedFd<'a>,
    common: &'a Common,
    /// Commands that live: pids by id, and back.
    running: HashMap<u64, i32>,
    ids: HashMap<i32, u64>,
    /// Ends that no service has acknowledged.
    records: VecDeque<Record>,
    mechanisms: Vec<Mechanism>,
    doors: Option<Doors>,
    /// Descriptors of commands, living and ended, that must outlive the service: by command and tag.
    held: BTreeMap<(u64, u8), OwnedFd>,
    ending: Option<Ending>,
    /// From SIGTERM to SIGKILL where the connection is lost; none: it may not be lost.
    handover: Option<Duration>,
    /// The service is gone for good.
    orphaned: bool,
}

struct Ending {
    deadline: Instant,
    killed: bool,
    reaped: u32,
    /// No process is left.
    complete: bool,
}

/// Most descriptors that one message takes back to a service.
const TOGETHER: usize = 32;

/// Serves until the socket closes or an end was asked for and everything is reaped.
pub(super) fn serve(
    socket: BorrowedFd<'_>,
    common: &Common,
    mechanisms: Vec<Mechanism>,
    doors: Option<Doors>,
    handover: Option<Duration>,
) {
    let Ok(children) = children_signal() else { return };
    let mut keeper = Keeper {
        socket,
        common,
        running: HashMap::new(),
        ids: HashMap::new(),
        records: VecDeque::new(),
        mechanisms,
        doors,
        held: BTreeMap::new(),
        ending: None,
        handover,
        orphaned: false,
    };
    // An error is a socket that closed: there is nobody left to serve.
    if keeper.run(children.as_fd()).is_err() && keeper.orphan() {
        let _ = keeper.run(children.as_fd());
    }
}

/// A descriptor that is readable when a child has ended. Every signal is blocked since the spawner.
fn children_signal() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; the kernel makes a descriptor that nothing else owns.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

impl Keeper<'_> {
    fn run(&mut self, children: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let socket = self.socket;
            let mut watched =
                [PollFd::from_borrowed_fd(children, PollFlags::IN), PollFd::from_borrowed_fd(socket, PollFlags::IN)];
            let watched = &mut watched[..if self.orphaned { 1 } else { 2 }];
            match poll(watched, self.timeout().as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let ended = !watched[0].revents().is_empty();
            let asked = watched.get(1).is_some_and(|socket| !socket.revents().is_empty());
            if ended {
                let mut buffer = [0_u8; 1024];
                while rustix::io::read(children, &mut buffer).is_ok() {}
            }
            if asked && !self.request()? && !self.orphan() {
                return Ok(());
            }
            // Without a signal too: an end may find nothing to wait for, and has a deadline.
            if (ended || self.ending.as_ref().is_some_and(|ending| !ending.complete)) && self.reap()? {
                return Ok(());
            }
            if self.is_over() {
                return Ok(());
            }
        }
    }

    /// The connection is lost: everything ends, with the grace that was agreed. False where there is none.
    fn orphan(&mut self) -> bool {
        let Some(grace) = self.handover.filter(|_| !self.orphaned) else { return false };
        self.orphaned = true;
        // What waits for these must learn that nobody will answer.
        self.held.clear();
        if self.ending.as_ref().is_some_and(|ending| ending.complete) {
            return false;
        }
        self.end(grace);
        true
    }

    /// The end is complete, and a service to come has nothing to ask.
    fn is_over(&self) -> bool {
        let complete = self.ending.as_ref().is_some_and(|ending| ending.complete);
        complete && (self.handover.is_none() || (self.records.is_empty() && self.held.is_empty()))
    }

    fn end(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        match &mut self.ending {
            // Who asks again may shorten the grace, not lengthen it.
            Some(ending) => ending.deadline = ending.deadline.min(deadline),
            None => {
                // The kernel looks at every process of the host to find those of the workspace.
                if command::has_any() {
                    everyone(libc::SIGTERM);
                    // One that is stopped could not react.
                    everyone(libc::SIGCONT);
                }
                self.ending = Some(Ending { deadline, killed: false, reaped: 0, complete: false });
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let ending = self.ending.as_ref().filter(|ending| !ending.complete)?;
        let left = if ending.killed {
            Duration::from_millis(50)
        } else {
            ending.deadline.saturating_duration_since(Instant::now())
        };
        Timespec::try_from(left).ok()
    }

    /// Reads one request; false when there will be no more.
    fn request(&mut self) -> io::Result<bool> {
        let Some((request, descriptors)) = wire::receive::<Request>(self.socket)? else { return Ok(false) };
        match request {
            Request::Spawn { id, command } => self.spawn(id, &command, descriptors)?,
            Request::Signal { sequence, id, signal } => {
                let errno = self.signal(id, signal).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                wire::send(self.socket, &Reply::Signalled { sequence, errno }, &[])?;
            }
            Request::Connect { sequence, port } => match connect(port) {
                Ok(socket) => wire::send(self.socket, &Reply::Connected { sequence, errno: 0 }, &[socket.as_fd()])?,
                Err(error) => {
                    wire::send(self.socket, &Reply::Connected { sequence, errno: error.raw_os_error() }, &[])?;
                }
            },
            Request::End { grace_ms } => {
                self.end(Duration::from_millis(grace_ms));
            }
            Request::Acknowledge { id } => {
                self.records.retain(|record| record.id != id);
                self.held.retain(|(owner, _), _| *owner != id);
            }
            Request::Hold { id, tags } => self.hold(id, &tags, descriptors),
            Request::Release { id, tag } => {
                self.held.remove(&(id, tag));
            }
            Request::Adopt => self.tell()?,
            Request::Everyone { sequence, signal } => {
                // With nobody there it is done.
                everyone(signal);
                wire::send(self.socket, &Reply::Signalled { sequence, errno: 0 }, &[])?;
            }
            Request::Connections { sequence } => {
                let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
                // There need not be IPv6.
                let open: Vec<std::fs::File> =
                    tables.iter().filter_map(|path| std::fs::File::open(path).ok()).collect();
                let errno = if open.is_empty() { libc::ENOENT } else { 0 };
                let given: Vec<BorrowedFd<'_>> = open.iter().map(AsFd::as_fd).collect();
                wire::send(self.socket, &Reply::Connected { sequence, errno }, &given)?;
            }
            Request::Doors { sequence } => match &self.doors {
                Some(doors) => {
                    let both = [doors.proxy.as_fd(), doors.names.as_fd()];
                    wire::send(self.socket, &Reply::Connected { sequence, errno: 0 }, &both)?;
                }
                None => wire::send(self.socket, &Reply::Connected { sequence, errno: libc::ENOTCONN }, &[])?,
            },
        }
        Ok(true)
    }

    /// Tells a service that has taken over all there is to know.
    fn tell(&self) -> io::Result<()> {
        let own = Pid::from_raw(std::process::id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let own = pidfd_open(own, PidfdFlags::empty())?;
        wire::send(self.socket, &Reply::Adopting, &[own.as_fd()])?;
        for (id, pid) in &self.running {
            let process = Pid::from_raw(*pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
            let pidfd = pidfd_open(process, PidfdFlags::empty())?;
            wire::send_about(self.socket, &Reply::Runs { id: *id }, &[pidfd.as_fd()], *pid)?;
        }
        for record in &self.records {
            wire::send(self.socket, &record.reply(), &[])?;
        }
        let mut owners: Vec<u64> = self.held.keys().map(|(id, _)| *id).collect();
        owners.dedup();
        for id in owners {
            let all: Vec<_> = self.held.range((id, 0)..=(id, u8::MAX)).collect();
            for some in all.chunks(TOGETHER) {
                let tags = some.iter().map(|((_, tag), _)| *tag).collect();
                let descriptors: Vec<BorrowedFd<'_>> = some.iter().map(|(_, fd)| fd.as_fd()).collect();
                wire::send(self.socket, &Reply::Holds { id, tags }, &descriptors)?;
            }
        }
        let ended = self.ending.as_ref().filter(|ending| ending.complete).map(|ending| ending.reaped);
        wire::send(self.socket, &Reply::Adopted { mechanisms: self.mechanisms.clone(), ended }, &[])
    }

    fn hold(&mut self, id: u64, tags: &[u8], descriptors: Vec<OwnedFd>) {
        self.held.extend(tags.iter().map(|tag| (id, *tag)).zip(descriptors));
    }

    fn spawn(&mut self, id: u64, command: &wire::Command, mut descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let held = descriptors.split_off(descriptors.len().saturating_sub(command.held.len()));
        let started = if self.running.contains_key(&id) || self.ending.is_some() {
            let (errno, object) = if self.ending.is_some() {
                (libc::ESHUTDOWN, "workspace is ending".to_owned())
            } else {
                (libc::EEXIST, format!("id {id} is in use"))
            };
            Err(Failure::new(Step::Request, object, io::Error::from_raw_os_error(errno)))
        } else {
            command::start(id, command, descriptors, self.common)
        };
        match started {
            Ok(started) => {
                // The id has come to mean another command.
                self.records.retain(|record| record.id != id);
                self.held.extend(command.held.iter().copied().zip(held));
                if let (Some(tag), Some(master)) = (command.hold_terminal, &started.terminal) {
                    // before the service has it: it may be killed at any moment
                    self.held.insert((id, tag), master.try_clone()?);
                }
                self.ids.insert(started.pid, id);
                self.running.insert(id, started.pid);
                let mut given = vec![started.pidfd.as_fd()];
                given.extend(started.terminal.as_ref().map(AsFd::as_fd));
                // It is not reaped before this is sent, so its pid still means it.
                let reply = Reply::Spawned { id, terminal: started.terminal.is_some() };
                wire::send_about(self.socket, &reply, &given, started.pid)?;
                if self.common.filter.explains_no_more() {
                    let refusal = Refusal::untold(Why::Unseen);
                    wire::send(self.socket, &Reply::Refusal { id, refusal }, &[])?;
                }
                Ok(())
            }
            Err(failure) => wire::send(self.socket, &Reply::NotSpawned { id, failure }, &[]),
        }
    }

    fn signal(&self, id: u64, signal: i32) -> io::Result<()> {
        let pid = self.running.get(&id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        // Every command leads a session and so a process group of its own.
        // SAFETY: numbers only; the process is not reaped yet, so the number is still its own.
        let done = unsafe { libc::kill(-pid, signal) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reaps all that has ended, commands and orphans. True when an end that was asked for is complete.
    fn reap(&mut self) -> io::Result<bool> {
        loop {
            match command::reap_any() {
                Reaped::Child { pid, status, usage } => {
                    if let Some(ending) = &mut self.ending {
                        ending.reaped += 1;
                    }
                    // Others are orphans of commands.
                    if let Some(id) = self.ids.remove(&pid) {
                        self.running.remove(&id);
                        self.exited(id, status, &usage)?;
                    }
                }
                Reaped::NoneNow => break,
                Reaped::NoChildren => {
                    let Some(ending) = &mut self.ending else { break };
                    ending.complete = true;
                    if self.orphaned {
                        return Ok(true);
                    }
                    wire::send(self.socket, &Reply::Ended { reaped: ending.reaped }, &[])?;
                    return Ok(false);
                }
            }
        }
        if let Some(ending) = &mut self.ending
            && !ending.complete
            && Instant::now() >= ending.deadline
        {
            ending.killed = true;
            everyone(libc::SIGKILL);
        }
        Ok(false)
    }

    fn exited(&mut self, id: u64, status: i32, usage: &libc::rusage) -> io::Result<()> {
        let usec = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        let usage = Usage {
            user_usec: usec(usage.ru_utime),
            system_usec: usec(usage.ru_stime),
            max_rss_kib: usage.ru_maxrss as u64,
        };
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        let record = Record { id, code, signal, usage };
        let sent = if self.orphaned { Ok(()) } else { wire::send(self.socket, &record.reply(), &[]) };
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record);
        sent
    }
}

/// Begins a connection to a port of the loopback, of IPv4 or else of IPv6, without waiting: a server that does not
/// accept must not hold up the workspace.
fn connect(port: u16) -> rustix::io::Result<OwnedFd> {
    let begin = |address: IpAddr| {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &SocketAddr::new(address, port)) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    };
    begin(Ipv4Addr::LOCALHOST.into()).or_else(|first| begin(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
}

/// Signals every process of the workspace but the keeper.
fn everyone(signal: i32) {
    // SAFETY: numbers only. From PID 1 of a pid namespace, -1 means all others in it.
    unsafe { libc::kill(-1, signal) };
}
