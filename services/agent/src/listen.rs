//! Sockets that connections come from: a Unix socket, or vsock in a machine.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect, listen, socket};
use shipote_agent_protocol::{AgentResponse, cid, codes, write_message};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::agent::Agent;
use crate::files::transfer;
use crate::{connection, reach, workload};

/// A listening stream socket of either family.
pub(crate) struct Listener(AsyncFd<OwnedFd>);

/// Has the runtime watch a descriptor, which must be non-blocking.
pub(crate) fn watch(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, which is therefore open, and the same one, for as long as it lives.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Listens on a Unix socket that only its owner may connect to.
pub(crate) fn unix(path: &Path) -> std::io::Result<Listener> {
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(Listener(watch(listener.into())?))
}

/// Listens on a vsock port of this machine.
pub(crate) fn vsock(port: u32) -> std::io::Result<Listener> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(cid::ANY, port))?;
    listen(&fd, Backlog::new(64)?)?;
    Ok(Listener(watch(fd)?))
}

/// Connects to a vsock port of the host and closes again: the connection itself is the message.
pub(crate) fn knock(port: u32) -> std::io::Result<()> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &VsockAddr::new(cid::HOST, port))?;
    Ok(())
}

/// Connects to a vsock port of the host.
pub(crate) async fn dial(port: u32) -> std::io::Result<UnixStream> {
    let connecting = tokio::task::spawn_blocking(move || -> std::io::Result<OwnedFd> {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        connect(fd.as_raw_fd(), &VsockAddr::new(cid::HOST, port))?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(fd)
    });
    // See `Listener::accept`.
    UnixStream::from_std(std::os::unix::net::UnixStream::from(connecting.await??))
}

impl Listener {
    async fn accept(&self) -> std::io::Result<UnixStream> {
        let fd = self
            .0
            .async_io(tokio::io::Interest::READABLE, |fd| {
                Ok(accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?)
            })
            .await?;
        // SAFETY: accept4 returned this descriptor just now and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // tokio's UnixStream only reads, writes and shuts down, which is the same for every stream socket: it serves
        // vsock too, and no second stream type is needed.
        UnixStream::from_std(std::os::unix::net::UnixStream::from(fd))
    }
}

/// What is spoken on a listener's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Port 6000.
    Control,
    /// Port 5000.
    Workload,
    /// Port 5001.
    Logs,
    /// Port 6005.
    Reach,
    /// Port 6006.
    Files,
}

/// Serves connections until the process ends.
pub(crate) async fn serve(listener: &Listener, agent: &Arc<Agent>, door: Door) {
    loop {
        let mut stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors or a connection that went away before it was taken: neither ends the agent.
                eprintln!("shipote-agent: accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let room = if door == Door::Reach { &agent.reached } else { &agent.connections };
        if let Ok(permit) = Arc::clone(room).try_acquire_owned() {
            let agent = Arc::clone(agent);
            tokio::spawn(async move {
                match door {
                    Door::Control => connection::serve(stream, agent).await,
                    Door::Workload => workload::serve(stream, agent).await,
                    Door::Logs => workload::serve_logs(stream, agent).await,
                    Door::Reach => reach::serve(stream, agent).await,
                    Door::Files => transfer::serve(stream, agent).await,
                }
                drop(permit);
            });
        } else if matches!(door, Door::Control | Door::Reach | Door::Files) {
            let refusal = AgentResponse::error(codes::TOO_MANY_CONNECTIONS, "too many connections; close one");
            let wait = std::time::Duration::from_secs(1);
            tokio::spawn(async move { tokio::time::timeout(wait, write_message(&mut stream, &refusal)).await });
        }
    }
}
