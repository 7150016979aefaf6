//! The spawner's own side: a loop over its orders and its children.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::inner::{self, Place};
use super::maker::{Live, Maker};
use crate::SpawnerConfig;
use crate::channel::Channel;
use crate::sys;
use crate::wire::{self, Order, Reply};

/// The spawner's whole life.
pub(super) fn serve(control: OwnedFd, config: &SpawnerConfig, help: fn(Channel)) {
    sys::block_signals(true);
    sys::reset_signals();
    // Ctrl-C in the service's terminal is for the service.
    let _ = rustix::process::setsid();
    let control = raise(control);
    sys::keep_only(&[control.as_raw_fd()]);
    sys::name_process(c"shipote-spawn");
    let nofile = sys::raise_nofile();
    forgo_oom_protection();
    match inner::begin(control) {
        Place::Only(orders) | Place::Outer(orders) => Loop::new(orders, None, config, nofile, help).run(),
        Place::Inner { control, outer, child } => {
            Loop::new(control, Some(outer), config, nofile, help).run();
            // SAFETY: waits for a child of ours, without a status, which has read the end of its socket.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        }
    }
}

/// The loop over orders and children.
struct Loop {
    control: OwnedFd,
    /// Where orders go that an inner spawner does not take.
    outer: Option<OwnedFd>,
    maker: Maker,
    live: Vec<Live>,
    help: fn(Channel),
}

impl Loop {
    fn new(control: OwnedFd, outer: Option<OwnedFd>, config: &SpawnerConfig, nofile: u64, help: fn(Channel)) -> Self {
        Self { control, outer, maker: Maker::new(config, nofile), live: Vec::new(), help }
    }

    /// Serves until the connection ends.
    fn run(mut self) {
        loop {
            let ahead = self.maker.networks.lacks();
            let mut watched = vec![PollFd::new(&self.control, PollFlags::IN)];
            watched.extend(self.live.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
            match poll(&mut watched, ahead.then_some(&Timespec::default())) {
                Ok(0) if ahead => {
                    self.maker.networks.make();
                    continue;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let asked = !watched[0].revents().is_empty();
            let ended: Vec<bool> = watched[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            self.reap(&ended);
            if asked && !self.order() {
                return;
            }
        }
    }

    fn reap(&mut self, ended: &[bool]) {
        let mut ended = ended.iter();
        self.live.retain(|child| {
            let ended = ended.next().copied().unwrap_or(false);
            if ended {
                // SAFETY: waits for a child of ours, without a status.
                unsafe { libc::waitpid(child.pid, std::ptr::null_mut(), 0) };
            }
            !ended
        });
    }

    /// Carries out one order; false when there will be no more.
    fn order(&mut self) -> bool {
        let (order, descriptors) = match wire::receive::<Order>(self.control.as_fd()) {
            Ok(Some(received)) => received,
            Ok(None) => return false,
            // What cannot be read cannot be answered; its sender sees its socket close.
            Err(error) => return error.kind() == io::ErrorKind::InvalidData,
        };
        let Some(socket) = descriptors.into_iter().next() else { return true };
        if let Some(outer) = &self.outer
            && !matches!(&order, Order::Workspace(spec) if self.maker.shares_root(spec))
        {
            return wire::send(outer.as_fd(), &order, &[socket.as_fd()]).is_ok();
        }
        match order {
            // One that cannot be started closes its socket, which tells it.
            Order::Helper => self.live.extend(start_helper(socket, self.help)),
            Order::Workspace(spec) => match self.maker.make(&spec, socket.as_fd(), &self.live) {
                Ok(keeper) => self.live.push(keeper),
                Err(failure) => {
                    let _ = wire::send(socket.as_fd(), &Reply::Refused { failure }, &[]);
                }
            },
        }
        true
    }
}

/// Starts a helper: a copy of the spawner with nothing open but its socket.
fn start_helper(socket: OwnedFd, help: fn(Channel)) -> Option<Live> {
    // SAFETY: the spawner has one thread, and the child never returns from the closure.
    match unsafe { libc::fork() } {
        0 => {
            let socket = raise(socket);
            sys::keep_only(&[socket.as_raw_fd()]);
            sys::name_process(c"shipote-helper");
            let helped = std::panic::catch_unwind(move || help(Channel::new(socket)));
            sys::exit(if helped.is_ok() { 0 } else { 70 })
        }
        pid => {
            let process = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0)?;
            let pidfd = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).ok()?;
            Some(Live { pid, pidfd, range: None })
        }
    }
}

/// A service may be protected from the kernel's memory killer; commands must not inherit that.
fn forgo_oom_protection() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if now.is_some_and(|now| now < 0) {
        let _ = fs::write(FILE, "0");
    }
}

/// The descriptor at a number above 2, where `keep_only` leaves it alone.
fn raise(fd: OwnedFd) -> OwnedFd {
    if fd.as_raw_fd() > 2 { fd } else { rustix::io::fcntl_dupfd_cloexec(&fd, 3).unwrap_or(fd) }
}
