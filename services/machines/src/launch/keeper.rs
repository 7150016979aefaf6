//! A machine's keeper, as the service starts, finds, watches and ends it.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shipote_bus::paths::LIFELINE_ENV;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::Place;
use crate::Error;
use crate::keeper::{ARGUMENT, SOCKET};

/// A process that is waited for.
pub(super) type Watched = AsyncFd<rustix::fd::OwnedFd>;

/// Starts a keeper. It outlives this process, which therefore only waits for it while it can.
pub(super) fn spawn_keeper(place: &Place) -> Result<(UnixStream, Option<Watched>), Error> {
    let failed = || Error::io("start the keeper", place.program.display());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
    let mut command = Command::new(&place.program);
    command.arg(ARGUMENT).arg(&place.folder).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    command.stdout(Stdio::null());
    if let Some(lifeline) = place.lifeline.clone() {
        command.env(LIFELINE_ENV, lifeline.as_fd().as_raw_fd().to_string());
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that it owns a share of.
        unsafe {
            command.pre_exec(move || Ok(rustix::io::fcntl_setfd(&*lifeline, rustix::io::FdFlags::empty())?));
        }
    }
    if let Some(group) = &place.group {
        let file = std::fs::File::options().write(true).open(group.keeper()).map_err(failed())?;
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that it owns.
        unsafe {
            command.pre_exec(move || Ok(rustix::io::write(&file, b"0").map(drop)?));
        }
    }
    let mut child = command.spawn().map_err(failed())?;
    let keeper = child.id().and_then(|pid| watch_process(i32::try_from(pid).ok()?));
    tokio::spawn(async move { child.wait().await });
    ours.set_nonblocking(true).map_err(failed())?;
    Ok((UnixStream::from_std(ours).map_err(failed())?, keeper))
}

/// Asks for the keeper of a machine that an earlier service started; `None` where there is none any more.
#[must_use]
pub fn find_keeper(folder: &Path) -> Option<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(folder.join(SOCKET)).ok()
}

/// Ends a keeper that no service can speak to, and its machine with it.
pub(crate) fn end_keeper(link: &std::os::unix::net::UnixStream) {
    let killed = rustix::net::sockopt::socket_peercred(link)
        .and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()))
        .and_then(|keeper| pidfd_send_signal(&keeper, Signal::KILL));
    if let Err(error) = killed {
        tracing::error!("end a keeper: {error}");
    }
}

/// Something that becomes readable when a process is gone; `None` where it is gone already.
pub(super) fn watch_process(pid: i32) -> Option<Watched> {
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
    // SAFETY: the AsyncFd owns the descriptor, which is therefore open, and the same one, for as long as it lives.
    unsafe { AsyncFd::register(fd) }.ok()
}
