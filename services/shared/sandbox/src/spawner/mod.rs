//! The spawner: a small process, forked in `main`, that makes keepers for as long as the service lives.
//!
//! This is the service's side of it. Its own is [`serve`], the loop, and [`maker`], which makes a keeper.

mod inner;
mod maker;
mod networks;
mod serve;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;

pub(crate) use networks::loopback_up;

use crate::channel::Channel;
use crate::client::{ExitStream, Keeper};
use crate::connection::connect;
use crate::error::SandboxError;
use crate::ids::SpawnerConfig;
use crate::spec::SandboxSpec;
use crate::sys;
use crate::wire::{self, Order, Packet};

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
                let served = std::panic::catch_unwind(move || serve::serve(theirs, &config, help));
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
