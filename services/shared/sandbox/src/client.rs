//! The service's side of a workspace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use shipote_confinement::Mechanism;
use tokio::sync::{mpsc, oneshot};

use crate::connection::{Shared, adopt};
use crate::error::{Failure, SandboxError, Step};
use crate::keeper::WORK;
use crate::refusal::Refusal;
use crate::spec::{CommandSpec, Stdio, Usage};
use crate::sys;
use crate::wire::{Command, Request};

/// A living workspace. Dropping it ends the workspace at once, with everything that runs in it.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
    pidfd: OwnedFd,
    mechanisms: Vec<Mechanism>,
    shared: Arc<Shared>,
    sequence: AtomicU64,
    left: AtomicBool,
}

/// What [`Keeper::spawn`] gives back.
#[derive(Debug)]
pub struct Spawned {
    /// The command's pid in the service's pid namespace.
    pub pid: i32,
    /// The same process, as a descriptor that no later process takes over.
    pub pidfd: OwnedFd,
    /// The master of its terminal, where one was asked for.
    pub terminal: Option<OwnedFd>,
}

/// A command that was found living in an adopted workspace.
#[derive(Debug)]
pub struct Running {
    /// The id it was spawned under.
    pub id: u64,
    /// Its pid in the service's pid namespace.
    pub pid: i32,
    /// The same process.
    pub pidfd: OwnedFd,
}

/// A descriptor that the keeper of an adopted workspace held.
#[derive(Debug)]
pub struct Held {
    /// The owner: a command's id, or another number.
    pub id: u64,
    /// As it was given.
    pub tag: u8,
    /// A duplicate: the keeper goes on holding its own.
    pub descriptor: OwnedFd,
}

/// A workspace that was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The workspace.
    pub keeper: Keeper,
    /// Its events, beginning with the ends that were not acknowledged.
    pub events: ExitStream,
    /// The commands that live.
    pub running: Vec<Running>,
    /// The commands whose ends were not acknowledged; their events come.
    pub ended: Vec<u64>,
    /// What is held for commands, living and ended.
    pub held: Vec<Held>,
}

/// What a workspace of [`crate::Network::Outbound`] has in its own network.
#[derive(Debug)]
pub struct Doors {
    /// Listens at [`crate::DOOR_PROXY`] of its loopback, TCP.
    pub proxy: OwnedFd,
    /// Gets what is sent to [`crate::DOOR_NAMES`] of its loopback, UDP.
    pub names: OwnedFd,
}

/// What happens in a workspace by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A command ended. Exactly one of `code` and `signal` is there.
    Exited {
        /// The id it was spawned under, free again now.
        id: u64,
        /// Its exit status.
        code: Option<i32>,
        /// The signal that killed it.
        signal: Option<i32>,
        /// What it used.
        usage: Usage,
    },
    /// A command of a workspace whose spec asks for explanations was refused something; before its end.
    Refused {
        /// The id it was spawned under.
        id: u64,
        /// What.
        refusal: Refusal,
    },
    /// The workspace is no more, and no process of it; the last event.
    KeeperGone,
}

/// The events of one workspace, in order.
#[derive(Debug)]
pub struct ExitStream {
    // One event for each command that lives, which the workspace's own limits bound.
    events: mpsc::UnboundedReceiver<Event>,
}

impl ExitStream {
    pub(crate) fn new(events: mpsc::UnboundedReceiver<Event>) -> Self {
        Self { events }
    }

    /// The next event; None after [`Event::KeeperGone`].
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Keeper {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd, mechanisms: Vec<Mechanism>, shared: Arc<Shared>) -> Self {
        Self { pid, pidfd, mechanisms, shared, sequence: AtomicU64::new(0), left: AtomicBool::new(false) }
    }

    /// Takes a workspace over from a service that is no more, by the descriptor that [`Keeper::socket`] gave and
    /// that something (systemd's descriptor store, say) held on to meanwhile. While it is held the workspace and
    /// its commands live on; a keeper whose socket is full waits.
    ///
    /// # Errors
    /// [`SandboxError::Ended`] when the workspace has ended.
    pub async fn adopt(socket: OwnedFd) -> Result<Adopted, SandboxError> {
        adopt(socket).await
    }

    /// The connection to the keeper, to be held by something that outlives the service; see [`Keeper::adopt`].
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.socket.get_ref().as_fd()
    }

    /// Lets go of the workspace without ending it: it lives on as long as someone holds a duplicate of its
    /// socket.
    pub fn leave(self) {
        self.outlive();
        self.shared.left.notify_one();
    }

    /// From now on the workspace does not end when this is dropped, but when the last duplicate of its socket is
    /// closed. To be called once something else holds one.
    pub fn outlive(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Has the keeper hold descriptors for a command; see [`CommandSpec::held`].
    ///
    /// # Errors
    /// [`SandboxError::Ended`].
    pub async fn hold(&self, id: u64, descriptors: &[(u8, BorrowedFd<'_>)]) -> Result<(), SandboxError> {
        let (tags, descriptors): (Vec<u8>, Vec<BorrowedFd<'_>>) = descriptors.iter().copied().unzip();
        self.shared.send(&Request::Hold { id, tags }, &descriptors).await
    }

    /// Has the keeper close what it holds for a command under a tag.
    ///
    /// # Errors
    /// [`SandboxError::Ended`].
    pub async fn release(&self, id: u64, tag: u8) -> Result<(), SandboxError> {
        self.shared.send(&Request::Release { id, tag }, &[]).await
    }

    /// Says that the end of a command is recorded for good, so that a later service need not be told, nor be
    /// given what is held for the command. Until then the keeper remembers it, the last 4096 of them.
    ///
    /// # Errors
    /// [`SandboxError::Ended`].
    pub async fn acknowledge(&self, id: u64) -> Result<(), SandboxError> {
        self.shared.send(&Request::Acknowledge { id }, &[]).await
    }

    /// What isolation this workspace has.
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.mechanisms
    }

    /// The keeper's pid in the service's pid namespace.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it has not ended, as far as was heard.
    pub fn is_alive(&self) -> bool {
        !self.shared.waiting().gone
    }

    /// The uid on the host of what runs in the workspace, as a peer of a socket outside would see it.
    ///
    /// # Errors
    /// The keeper has ended, or its `/proc` entry is hidden from the service (`ProtectProc=`), as it can only be where the
    /// two are one user.
    pub fn user(&self) -> std::io::Result<u32> {
        let map = std::fs::read_to_string(format!("/proc/{}/uid_map", self.pid))?;
        let host = map.lines().find_map(|line| {
            let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
            let (inside, host, count) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
            WORK.checked_sub(inside).filter(|offset| *offset < count).and_then(|offset| host.checked_add(offset))
        });
        host.ok_or_else(|| std::io::Error::from_raw_os_error(libc::ENODATA))
    }

    /// The keeper's process; readable once it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Starts a command under an id of the caller's choice, unique among the commands that live. Many
    /// may be under way at once. The result comes when the program runs, or cannot.
    ///
    /// # Errors
    /// [`SandboxError::Step`] with [`crate::Step::Exec`] and the error number when the program cannot be
    /// executed, with another step when something before it failed; [`SandboxError::Ended`].
    pub async fn spawn(&self, id: u64, command: &CommandSpec, stdio: Stdio) -> Result<Spawned, SandboxError> {
        if command.exec.is_empty() {
            return Err(SandboxError::Spec("command: no program is named".to_owned()));
        }
        let cwd = command.cwd.to_str().ok_or_else(|| SandboxError::Spec("working directory: not UTF-8".to_owned()))?;
        let standard = [&stdio.stdin, &stdio.stdout, &stdio.stderr];
        let mut descriptors: Vec<BorrowedFd<'_>> =
            standard.iter().filter_map(|fd| fd.as_ref()).map(AsFd::as_fd).collect();
        descriptors.extend(command.cgroup.as_ref().map(|fd| fd.as_fd()));
        descriptors.extend(command.descriptors.iter().map(|(_, fd)| fd.as_fd()));
        descriptors.extend(command.held.iter().map(|(.., fd)| fd.as_fd()));
        let request = Request::Spawn {
            id,
            command: Box::new(Command {
                exec: command.exec.clone(),
                argv: command.argv.clone(),
                env: command.env.clone(),
                cwd: cwd.to_owned(),
                rlimits: command.rlimits,
                cpu_affinity: command.cpu_affinity.clone(),
                terminal: command.terminal,
                stdio: standard.map(Option::is_some),
                cgroup: command.cgroup.is_some(),
                descriptors: command.descriptors.iter().map(|(number, _)| *number).collect(),
                held: command.held.iter().map(|(owner, tag, _)| (*owner, *tag)).collect(),
                hold_terminal: command.hold_terminal,
            }),
        };
        if let Some(cgroup) = &command.cgroup {
            // As the spawner does for the workspace's own; without effect where the keeper is this user.
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            let _ = rustix::fs::chmodat(cgroup.as_fd(), "cgroup.procs", mode, rustix::fs::AtFlags::empty());
        }
        let (answer, wait) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.gone {
                return Err(SandboxError::Ended);
            }
            if waiting.spawns.contains_key(&id) {
                return Err(SandboxError::Spec(format!("command id {id} is in use")));
            }
            waiting.spawns.insert(id, answer);
        }
        if let Err(error) = self.shared.send(&request, &descriptors).await {
            self.shared.waiting().spawns.remove(&id);
            return Err(error);
        }
        wait.await.unwrap_or(Err(SandboxError::Ended))
    }

    /// Signals a command's whole process group; signal 0 only asks whether it lives.
    ///
    /// # Errors
    /// [`SandboxError::NoSuchCommand`] when it has ended or never was, [`SandboxError::Ended`].
    pub async fn signal(&self, id: u64, signal: i32) -> Result<(), SandboxError> {
        match self.signalled(|sequence| Request::Signal { sequence, id, signal }).await {
            Err(error) if error.errno() == Some(libc::ESRCH) => Err(SandboxError::NoSuchCommand(id)),
            other => other,
        }
    }

    /// Signals every process of the workspace.
    ///
    /// # Errors
    /// [`SandboxError::Ended`].
    pub async fn signal_all(&self, signal: i32) -> Result<(), SandboxError> {
        self.signalled(|sequence| Request::Everyone { sequence, signal }).await
    }

    async fn signalled(&self, request: impl FnOnce(u64) -> Request) -> Result<(), SandboxError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.gone {
                return Err(SandboxError::Ended);
            }
            waiting.signals.insert(sequence, answer);
        }
        if let Err(error) = self.shared.send(&request(sequence), &[]).await {
            self.shared.waiting().signals.remove(&sequence);
            return Err(error);
        }
        wait.await.unwrap_or(Err(SandboxError::Ended))
    }

    /// The kernel's tables of the TCP connections in the workspace's network (proc(5)), of IPv4 and of IPv6, to be read.
    ///
    /// # Errors
    /// [`SandboxError::Step`] where the workspace has no `/proc`; [`SandboxError::Ended`].
    pub async fn connections(&self) -> Result<Vec<OwnedFd>, SandboxError> {
        self.sockets(|sequence| Request::Connections { sequence }).await
    }

    /// A TCP connection to a port of the workspace's own loopback, made by its keeper: what a command serves there is
    /// reached without a way into its network. Returns when it is established.
    ///
    /// # Errors
    /// [`SandboxError::Step`] with [`crate::Step::Network`] and why not, `ECONNREFUSED` where nobody listens;
    /// [`SandboxError::Ended`].
    pub async fn connect(&self, port: u16) -> Result<OwnedFd, SandboxError> {
        let sockets = self.sockets(|sequence| Request::Connect { sequence, port }).await?;
        let [socket] = <[OwnedFd; 1]>::try_from(sockets).map_err(|_| odd())?;
        established(socket).await.map_err(|error| Failure::new(Step::Network, format!("port {port}"), error).into())
    }

    /// The doors of a workspace of [`crate::Network::Outbound`], to be served by whoever lets it out. Duplicates: the
    /// keeper goes on holding its own.
    ///
    /// # Errors
    /// [`SandboxError::Step`] with [`crate::Step::Network`] and `ENOTCONN` where it has none; [`SandboxError::Ended`].
    pub async fn doors(&self) -> Result<Doors, SandboxError> {
        let sockets = self.sockets(|sequence| Request::Doors { sequence }).await?;
        let [proxy, names] = <[OwnedFd; 2]>::try_from(sockets).map_err(|_| odd())?;
        Ok(Doors { proxy, names })
    }

    /// Asks for sockets.
    async fn sockets(&self, request: impl FnOnce(u64) -> Request) -> Result<Vec<OwnedFd>, SandboxError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.gone {
                return Err(SandboxError::Ended);
            }
            waiting.connects.insert(sequence, answer);
        }
        if let Err(error) = self.shared.send(&request(sequence), &[]).await {
            self.shared.waiting().connects.remove(&sequence);
            return Err(error);
        }
        wait.await.unwrap_or(Err(SandboxError::Ended))
    }

    /// Ends the workspace: SIGTERM to all, and after `grace` SIGKILL to what is left. Returns when no
    /// process of it is left, with how many ended meanwhile. Exit events come as ever. May be called again
    /// while it ends: the shortest grace holds.
    ///
    /// # Errors
    /// [`SandboxError::Ended`] when it ended by itself meanwhile.
    pub async fn end(&self, grace: Duration) -> Result<u32, SandboxError> {
        let (answer, wait) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.gone {
                return Err(SandboxError::Ended);
            }
            waiting.ends.push(answer);
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX).min(86_400_000);
        self.shared.send(&Request::End { grace_ms }, &[]).await?;
        wait.await.unwrap_or(Err(SandboxError::Ended))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.left.load(Ordering::Relaxed) {
            return;
        }
        // The listener holds the socket too; closed for both directions, the keeper ends, and then it.
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// An answer with another number of sockets than was asked for.
fn odd() -> SandboxError {
    Failure::new(Step::Request, "sockets", std::io::Error::from_raw_os_error(libc::EBADMSG)).into()
}

/// Waits until a connection that was begun without waiting stands.
async fn established(socket: OwnedFd) -> std::io::Result<OwnedFd> {
    let registered = sys::register(socket)?;
    drop(registered.writable().await?);
    match rustix::net::sockopt::socket_error(registered.get_ref())? {
        Ok(()) => Ok(registered.into_inner()),
        Err(error) => Err(error.into()),
    }
}
