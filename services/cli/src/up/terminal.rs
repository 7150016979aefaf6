//! Why SIGHUP came: somebody wants the configuration read anew, or the terminal is gone and its user with it.

use std::io::{IsTerminal, stdin};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// The terminal that the appliance was started from, if it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terminal {
    present: bool,
}

impl Terminal {
    pub(super) fn of_stdin() -> Self {
        Self { present: stdin().is_terminal() }
    }

    /// A terminal whose other end is closed is hung up for good.
    pub(super) fn is_gone(self) -> bool {
        if !self.present {
            return false;
        }
        let stdin = stdin();
        let mut polled = [PollFd::new(&stdin, PollFlags::empty())];
        match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            Err(error) => error != Errno::INTR,
        }
    }
}
