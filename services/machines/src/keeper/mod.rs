//! A machine's keeper: the small process that a machine's monitor and vsock device are children of.
//!
//! For: that machines go on while the service is restarted, however it ended, and that none goes on for good without
//! it. The keeper holds what would be lost with the service (the secret, the monitor's control connection, the end of
//! the console) and hands it to the next one, which finds it by its socket. It has one thread and no runtime.
//!
//! ```text
//!   service ── link ── keeper ─┬─ QEMU                (dies with the keeper)
//!                              └─ vhost-device-vsock  (dies with the keeper)
//! ```
//!
//! Not for: talking to guests; their connections go from the vsock device to the service.
//!
//! Invariant: the machine ends when the keeper does, and the keeper ends when its machine has and somebody was told, when
//! nobody has been there for as long as the lease says, or when the appliance that started it is gone.

mod connects;
mod machine;
mod process;
mod qmp;
mod watch;
pub mod wire;

use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shipote_bus::paths::LIFELINE_ENV;

use crate::Error;
use machine::Machine;
use wire::{Event, Launch, Link, Order};

/// First argument of a process that is to be a keeper; the second is the machine's folder, for whoever lists processes.
pub const ARGUMENT: &str = "keep";
/// The socket that a later service finds a keeper by.
pub const SOCKET: &str = "keeper";
/// How long the service may take to send what is to be started.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// Runs a keeper; its standard input is the connection to the service.
#[must_use]
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shipote-machines: keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    let own = |error: std::io::Error| Error::io("begin", "the keeper")(error);
    // A group and session of its own: what is sent to the service's group is not for machines.
    let _ = rustix::process::setsid();
    let lifeline = lifeline();
    let stream = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(|error| own(error.into()))?;
    let null = std::fs::File::open("/dev/null").map_err(own)?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| own(error.into()))?;
    let mut link = Link::new(UnixStream::from(stream)).map_err(own)?;
    let launch = first_word(&mut link).map_err(own)?;
    let listener = listen(&launch.folder).map_err(own)?;
    match Machine::start(&launch) {
        Ok(machine) => watch::Watch::new(&launch, machine, link, listener, lifeline).run(),
        Err(error) => {
            link.say(&Event::Ended { clean: false, reason: error.to_string() });
            // The service takes it at once, or has gone.
            let _ = link.flush();
        }
    }
    let _ = std::fs::remove_dir_all(&launch.folder);
    Ok(())
}

fn first_word(link: &mut Link) -> std::io::Result<Launch> {
    let begun = Instant::now();
    loop {
        match link.hear()? {
            Some(Order::Launch(launch)) => return Ok(*launch),
            Some(_) => return Err(std::io::Error::other("the first order is not to launch")),
            None => {}
        }
        let left = FIRST_WORD.checked_sub(begun.elapsed()).ok_or(std::io::ErrorKind::TimedOut)?;
        wait(&[(link.as_fd(), PollFlags::IN)], Some(left))?;
    }
}

/// Owner only: the folder is.
fn listen(folder: &Path) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(folder.join(SOCKET))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The pipe that ends with the embedded appliance, where there is one.
fn lifeline() -> Option<OwnedFd> {
    let number: i32 = std::env::var(LIFELINE_ENV).ok()?.parse().ok()?;
    // SAFETY: only borrowed for the one call, which fails on a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = rustix::io::fcntl_dupfd_cloexec(borrowed, 3).ok()?;
    // SAFETY: the number was passed on for this purpose, and nothing else in this process knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Some(copy)
}

/// Waits until one of the descriptors is ready; which are.
fn wait(descriptors: &[(BorrowedFd<'_>, PollFlags)], timeout: Option<Duration>) -> std::io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        descriptors.iter().map(|(descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags)).collect();
    let timeout = timeout.map(|left| Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    match poll(&mut polled, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(polled.iter().map(|polled| !polled.revents().is_empty()).collect())
}
