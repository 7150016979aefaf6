//! The service's side of a workspace.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shipote_confinement::Mechanism;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::SandboxError;
use crate::spec::{CommandSpec, Stdio, Usage};
use crate::sys;
use crate::wire::{self, Command, Packet, Received, Reply, Request};

/// A living workspace. Dropping it ends the workspace at once, with everything that runs in it.
#[derive(Debug)]
pub struct Keeper {
    pid: i32,
    pidfd: OwnedFd,
    mechanisms: Vec<Mechanism>,
    shared: Arc<Shared>,
    sequence: AtomicU64,
    left: bool,
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

/// What happens in a workspace by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The next event; None after [`Event::KeeperGone`].
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

type Answer<T> = oneshot::Sender<Result<T, SandboxError>>;

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// Tells the listener to listen no more.
    left: Notify,
}

/// Requests without an answer yet; `gone` once there will be none.
#[derive(Debug, Default)]
struct Waiting {
    gone: bool,
    spawns: HashMap<u64, Answer<Spawned>>,
    signals: HashMap<u64, Answer<()>>,
    end: Option<Answer<u32>>,
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
        let packet = Packet::new(request).map_err(|error| SandboxError::Spec(format!("pack command: {error}")))?;
        loop {
            let mut ready = self.socket.writable().await.map_err(|_| SandboxError::Ended)?;
            if let Ok(sent) = ready.try_io(|socket| packet.send(socket.as_fd(), descriptors)) {
                return sent.map_err(|error| match error.raw_os_error() {
                    Some(libc::EPIPE | libc::ECONNRESET) => SandboxError::Ended,
                    _ => SandboxError::Spec(format!("send command: {error}")),
                });
            }
        }
    }

    async fn receive(&self) -> io::Result<Option<Received<Reply>>> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(received) = ready.try_io(|socket| wire::receive_about(socket.as_fd())) {
                return received;
            }
        }
    }
}

/// Waits until the workspace of this socket stands.
pub(crate) async fn connect(socket: OwnedFd) -> Result<(Keeper, ExitStream), SandboxError> {
    rustix::io::ioctl_fionbio(&socket, true).map_err(|error| SandboxError::Spawner(error.into()))?;
    let shared = Arc::new(Shared {
        socket: sys::register(socket).map_err(SandboxError::Spawner)?,
        waiting: Mutex::default(),
        left: Notify::new(),
    });
    let mut started = None;
    loop {
        let Some(received) = shared.receive().await.map_err(SandboxError::SpawnerGone)? else {
            return Err(SandboxError::Ended);
        };
        match received.message {
            Reply::Started { pid } => started = received.descriptors.into_iter().next().map(|fd| (pid, fd)),
            Reply::Refused { failure } => return Err(failure.into()),
            Reply::NotEnforced { mechanisms } => {
                let lacking: Vec<String> =
                    mechanisms.iter().filter(|m| !m.is_enforced()).map(ToString::to_string).collect();
                return Err(SandboxError::Strict(lacking.join(", ")));
            }
            Reply::Ready { mechanisms } => {
                let Some((pid, pidfd)) = started else { return Err(SandboxError::Ended) };
                return attend(shared, pid, pidfd, mechanisms, Vec::new());
            }
            _ => {}
        }
    }
}

/// Begins to listen to a workspace that stands; `events` are those known already.
fn attend(
    shared: Arc<Shared>,
    pid: i32,
    pidfd: OwnedFd,
    mechanisms: Vec<Mechanism>,
    known: Vec<Event>,
) -> Result<(Keeper, ExitStream), SandboxError> {
    let (events, receiver) = mpsc::unbounded_channel();
    for event in known {
        let _ = events.send(event);
    }
    let process = pidfd.try_clone().and_then(sys::register).map_err(SandboxError::Spawner)?;
    tokio::spawn(listen(Arc::clone(&shared), process, events));
    let keeper = Keeper { pid, pidfd, mechanisms, shared, sequence: AtomicU64::new(0), left: false };
    Ok((keeper, ExitStream { events: receiver }))
}

/// Hands out what the keeper says until it says no more.
async fn listen(shared: Arc<Shared>, process: AsyncFd<OwnedFd>, events: mpsc::UnboundedSender<Event>) {
    let mut ended = None;
    loop {
        let received = tokio::select! {
            biased;
            () = shared.left.notified() => {
                *shared.waiting() = Waiting { gone: true, ..Waiting::default() };
                return;
            }
            received = shared.receive() => received,
        };
        let Ok(Some(Received { message, descriptors, pid })) = received else { break };
        let mut waiting = shared.waiting();
        match message {
            Reply::Spawned { id, terminal } => {
                let mut descriptors = descriptors.into_iter();
                let spawned = descriptors.next().map(|pidfd| Spawned {
                    pid: pid.unwrap_or(-1),
                    pidfd,
                    terminal: if terminal { descriptors.next() } else { None },
                });
                if let Some(answer) = waiting.spawns.remove(&id) {
                    let _ = answer.send(spawned.ok_or(SandboxError::Ended));
                }
            }
            Reply::NotSpawned { id, failure } => {
                if let Some(answer) = waiting.spawns.remove(&id) {
                    let _ = answer.send(Err(failure.into()));
                }
            }
            Reply::Signalled { sequence, errno } => {
                if let Some(answer) = waiting.signals.remove(&sequence) {
                    let _ = answer.send(match errno {
                        0 => Ok(()),
                        errno => Err(crate::error::Failure {
                            step: crate::Step::Request,
                            errno,
                            object: "signal".to_owned(),
                        }
                        .into()),
                    });
                }
            }
            Reply::Exited { id, code, signal, usage } => {
                let _ = events.send(Event::Exited { id, code, signal, usage });
            }
            Reply::Ended { reaped } => {
                ended = Some(reaped);
            }
            // These belong to the making or the adopting of a workspace.
            _ => {}
        }
    }
    // Its socket is closed; once it is dead itself, the kernel has ended everything in its pid namespace.
    let _ = process.readable().await;
    let mut waiting = shared.waiting();
    if let (Some(answer), Some(reaped)) = (waiting.end.take(), ended) {
        let _ = answer.send(Ok(reaped));
    }
    // Dropping the answers tells those who wait.
    *waiting = Waiting { gone: true, ..Waiting::default() };
    let _ = events.send(Event::KeeperGone);
}

impl Keeper {
    /// Takes a workspace over from a service that is no more, by the descriptors that [`Keeper::socket`] and
    /// [`Keeper::pidfd`] gave and that something (systemd's descriptor store, say) held on to meanwhile.
    /// While they are held the workspace and its commands live on; a keeper whose socket is full waits.
    ///
    /// Returns the commands that live. The stream begins with the ends that were not acknowledged.
    ///
    /// # Errors
    /// [`SandboxError::Ended`] when the workspace has ended.
    pub async fn adopt(socket: OwnedFd, pidfd: OwnedFd) -> Result<(Self, ExitStream, Vec<Running>), SandboxError> {
        let pid = pid_of(&pidfd).ok_or(SandboxError::Ended)?;
        wire::ask_for_pids(socket.as_fd()).map_err(SandboxError::Spawner)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| SandboxError::Spawner(error.into()))?;
        let socket = sys::register(socket).map_err(SandboxError::Spawner)?;
        let shared = Arc::new(Shared { socket, waiting: Mutex::default(), left: Notify::new() });
        // The keeper may be waiting for room to write; what is read first makes it.
        let mut ask = Some(Packet::new(&Request::Adopt).map_err(SandboxError::Spawner)?);
        let (mut begun, mut running, mut known) = (false, Vec::new(), Vec::new());
        loop {
            if let Some(packet) = ask.take()
                && let Err(error) = packet.send(shared.socket.as_fd(), &[])
            {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(SandboxError::Ended);
                }
                ask = Some(packet);
            }
            let received = shared.receive().await.map_err(|_| SandboxError::Ended)?.ok_or(SandboxError::Ended)?;
            match received.message {
                Reply::Adopting => {
                    (begun, running, known) = (true, Vec::new(), Vec::new());
                }
                Reply::Runs { id } if begun => {
                    if let (Some(pid), Some(pidfd)) = (received.pid, received.descriptors.into_iter().next()) {
                        running.push(Running { id, pid, pidfd });
                    }
                }
                Reply::Exited { id, code, signal, usage } if begun => {
                    known.push(Event::Exited { id, code, signal, usage });
                }
                Reply::Adopted { mechanisms } if begun => {
                    let (keeper, events) = attend(shared, pid, pidfd, mechanisms, known)?;
                    return Ok((keeper, events, running));
                }
                _ => {}
            }
        }
    }

    /// The connection to the keeper, to be held by something that outlives the service; see [`Keeper::adopt`].
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.shared.socket.get_ref().as_fd()
    }

    /// Lets go of the workspace without ending it: it lives on as long as someone holds a duplicate of its
    /// socket.
    pub fn leave(mut self) {
        self.left = true;
        self.shared.left.notify_one();
    }

    /// Says that the end of a command is recorded for good, so that a later service need not be told. Until
    /// then the keeper remembers it, the last 4096 of them.
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
        let request = Request::Spawn {
            id,
            command: Box::new(Command {
                exec: command.exec.clone(),
                argv: command.argv.clone(),
                env: command.env.clone(),
                cwd: cwd.to_owned(),
                rlimits: command.rlimits,
                terminal: command.terminal,
                stdio: standard.map(Option::is_some),
                cgroup: command.cgroup.is_some(),
                descriptors: command.descriptors.iter().map(|(number, _)| *number).collect(),
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
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let (answer, wait) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.gone {
                return Err(SandboxError::Ended);
            }
            waiting.signals.insert(sequence, answer);
        }
        if let Err(error) = self.shared.send(&Request::Signal { sequence, id, signal }, &[]).await {
            self.shared.waiting().signals.remove(&sequence);
            return Err(error);
        }
        match wait.await.unwrap_or(Err(SandboxError::Ended)) {
            Err(error) if error.errno() == Some(libc::ESRCH) => Err(SandboxError::NoSuchCommand(id)),
            other => other,
        }
    }

    /// Ends the workspace: SIGTERM to all, and after `grace` SIGKILL to what is left. Returns when no
    /// process of it is left, with how many ended meanwhile. Exit events come as ever.
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
            waiting.end = Some(answer);
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX).min(86_400_000);
        self.shared.send(&Request::End { grace_ms }, &[]).await?;
        wait.await.unwrap_or(Err(SandboxError::Ended))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        // The listener holds the socket too; closed for both directions, the keeper ends, and then it.
        let _ = rustix::net::shutdown(self.shared.socket.get_ref(), rustix::net::Shutdown::Both);
    }
}

/// The pid behind a pidfd, in this process's pid namespace (proc_pid_fdinfo(5)); None once it is reaped.
fn pid_of(pidfd: &OwnedFd) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (pid > 0).then_some(pid)
}
