//! The connection to one keeper: requests that wait for an answer, and the task that hears it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use shipote_confinement::Mechanism;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::client::{Adopted, Event, ExitStream, Held, Keeper, Running, Spawned};
use crate::error::SandboxError;
use crate::sys;
use crate::wire::{self, Packet, Received, Reply, Request};

pub(crate) type Answer<T> = oneshot::Sender<Result<T, SandboxError>>;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    /// Tells the listener to listen no more.
    pub(crate) left: Notify,
}

/// Requests without an answer yet; `gone` once there will be none.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) gone: bool,
    pub(crate) spawns: HashMap<u64, Answer<Spawned>>,
    pub(crate) signals: HashMap<u64, Answer<()>>,
    pub(crate) connects: HashMap<u64, Answer<Vec<OwnedFd>>>,
    pub(crate) ends: Vec<Answer<u32>>,
}

impl Shared {
    pub(crate) fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), SandboxError> {
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
                return attend(shared, pid, pidfd, mechanisms, Vec::new(), None);
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
    ended: Option<u32>,
) -> Result<(Keeper, ExitStream), SandboxError> {
    let (events, receiver) = mpsc::unbounded_channel();
    for event in known {
        let _ = events.send(event);
    }
    let process = pidfd.try_clone().and_then(sys::register).map_err(SandboxError::Spawner)?;
    tokio::spawn(listen(Arc::clone(&shared), process, events, ended));
    Ok((Keeper::new(pid, pidfd, mechanisms, shared), ExitStream::new(receiver)))
}

/// Hands out what the keeper says until it says no more.
async fn listen(
    shared: Arc<Shared>,
    process: AsyncFd<OwnedFd>,
    events: mpsc::UnboundedSender<Event>,
    mut ended: Option<u32>,
) {
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
            Reply::Connected { sequence, errno } => {
                if let Some(answer) = waiting.connects.remove(&sequence) {
                    let failed =
                        || crate::error::Failure { step: crate::Step::Network, errno, object: "connection".to_owned() };
                    let _ = answer.send(if errno == 0 { Ok(descriptors) } else { Err(failed().into()) });
                }
            }
            Reply::Exited { id, code, signal, usage } => {
                let _ = events.send(Event::Exited { id, code, signal, usage });
            }
            Reply::Refusal { id, refusal } => {
                let _ = events.send(Event::Refused { id, refusal });
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
    if let Some(reaped) = ended {
        for answer in waiting.ends.drain(..) {
            let _ = answer.send(Ok(reaped));
        }
    }
    // Dropping the answers tells those who wait.
    *waiting = Waiting { gone: true, ..Waiting::default() };
    let _ = events.send(Event::KeeperGone);
}

/// Asks a keeper for all it knows; see [`Keeper::adopt`].
pub(crate) async fn adopt(socket: OwnedFd) -> Result<Adopted, SandboxError> {
    wire::ask_for_pids(socket.as_fd()).map_err(SandboxError::Spawner)?;
    rustix::io::ioctl_fionbio(&socket, true).map_err(|error| SandboxError::Spawner(error.into()))?;
    let socket = sys::register(socket).map_err(SandboxError::Spawner)?;
    let shared = Arc::new(Shared { socket, waiting: Mutex::default(), left: Notify::new() });
    // The keeper may be waiting for room to write; what is read first makes it.
    let mut ask = Some(Packet::new(&Request::Adopt).map_err(SandboxError::Spawner)?);
    let (mut begun, mut running, mut known, mut held) = (None, Vec::new(), Vec::new(), Vec::new());
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
                let own = received.descriptors.into_iter().next();
                begun = Some(received.pid.zip(own).ok_or(SandboxError::Ended)?);
                (running, known, held) = (Vec::new(), Vec::new(), Vec::new());
            }
            Reply::Runs { id } if begun.is_some() => {
                if let (Some(pid), Some(pidfd)) = (received.pid, received.descriptors.into_iter().next()) {
                    running.push(Running { id, pid, pidfd });
                }
            }
            Reply::Exited { id, code, signal, usage } if begun.is_some() => {
                known.push(Event::Exited { id, code, signal, usage });
            }
            Reply::Holds { id, tags } if begun.is_some() => {
                held.extend(tags.into_iter().zip(received.descriptors).map(|(tag, descriptor)| Held {
                    id,
                    tag,
                    descriptor,
                }));
            }
            Reply::Adopted { mechanisms, ended } => {
                let Some((pid, pidfd)) = begun else { continue };
                let told = |event: &Event| if let Event::Exited { id, .. } = event { Some(*id) } else { None };
                let unacknowledged = known.iter().filter_map(told).collect();
                let (keeper, events) = attend(shared, pid, pidfd, mechanisms, known, ended)?;
                return Ok(Adopted { keeper, events, running, ended: unacknowledged, held });
            }
            _ => {}
        }
    }
}
