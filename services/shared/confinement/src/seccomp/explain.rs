//! The filter of sandboxed commands for one whose refusals are to be explained: what [`super::command_filter`]
//! refuses waits for an answer of a supervisor (seccomp_unotify(2)), which asks [`Explained::refusal`] what the
//! answer is, and so do the calls that it wants to look at.
//!
//! Number and arguments of a call are handed to the supervisor as values, so a refusal cannot be changed while it
//! is looked at. What a pointer among them leads to can be: nothing may be decided by that. And a supervisor that
//! is gone means ENOSYS for every call that waits for it, never a call that is made.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::Filter;
use super::command;
use super::compile::{Verdict, interpret};
use crate::Error;

/// Stands for "ask" while the table is compiled; no error number is so large.
const ASK: i32 = 0xffe;
/// Stands for ENOSYS that needs no explanation.
const UNKNOWN: i32 = 0xffd;

/// The two faces of one filter.
#[derive(Debug, Clone)]
pub struct Explained {
    asking: Filter,
    plain: Filter,
}

impl Explained {
    /// As [`super::command_filter`], and with the calls of `watched` shown to the supervisor before they are made.
    /// clone3, which every C library tries and does without, is refused as ever.
    ///
    /// # Errors
    /// None for the tables of this module; the type is that of the compiler.
    pub fn new(watched: &[i64]) -> Result<Self, Error> {
        let watched: Vec<_> = watched.iter().map(|number| (*number, Verdict::Errno(ASK))).collect();
        let mut asking = command::build(Verdict::Errno(UNKNOWN), Verdict::Errno(libc::EPERM), &watched)?;
        for op in &mut asking.program {
            let refuses = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
            let returns = op.code == super::compile::RET;
            if returns && op.k == refuses(UNKNOWN) {
                op.k = refuses(libc::ENOSYS);
            } else if returns && op.k & 0xffff_0000 == libc::SECCOMP_RET_ERRNO {
                op.k = libc::SECCOMP_RET_USER_NOTIF;
            }
        }
        Ok(Self { asking, plain: command::command_filter()? })
    }

    /// The error number with which a call is refused; None where it may be made.
    pub fn refusal(&self, number: i32, arguments: [u64; 6]) -> Option<i32> {
        match interpret(&self.plain, None, number as u32, arguments) {
            libc::SECCOMP_RET_ALLOW => None,
            refused => Some((refused & libc::SECCOMP_RET_DATA) as i32),
        }
    }

    /// Puts the calling thread under the filter for good; returns the descriptor (closed on exec) by which the
    /// supervisor is asked. As [`Filter::install`], it allocates nothing.
    ///
    /// # Errors
    /// As [`Filter::install`]; EBUSY where the thread has a supervisor already.
    pub fn install(&self) -> io::Result<OwnedFd> {
        let listen = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // A call that is looked at is interrupted by a fatal signal only (since Linux 5.19); without this each
        // signal would begin it anew.
        let fd = match self.asking.install_with(listen | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.asking.install_with(listen)?,
            other => other?,
        };
        // SAFETY: with that flag the call returns a descriptor that the kernel has just made.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Puts the calling thread under [`super::command_filter`] instead, which asks nobody: the same calls are refused.
    ///
    /// # Errors
    /// As [`Filter::install`].
    pub fn install_unexplained(&self) -> io::Result<()> {
        self.plain.install()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_or_watched_asks_and_the_rest_does_not() {
        let plain = command::command_filter().unwrap();
        let explained = Explained::new(&[libc::SYS_openat, libc::SYS_connect]).unwrap();
        for number in (0..600_i64).chain([1 << 30]) {
            for argument in [0, 0x5412, libc::CLONE_NEWUSER as u64, 16] {
                let arguments = [argument; 6];
                let expected = interpret(&plain, None, number as u32, arguments);
                let asking = interpret(&explained.asking, None, number as u32, arguments);
                let watched = [libc::SYS_openat, libc::SYS_connect].contains(&number);
                if number == libc::SYS_clone3 {
                    assert_eq!(asking, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
                } else if watched || expected != libc::SECCOMP_RET_ALLOW {
                    assert_eq!(asking, libc::SECCOMP_RET_USER_NOTIF, "{number}");
                } else {
                    assert_eq!(asking, libc::SECCOMP_RET_ALLOW, "{number}");
                }
                let refusal = explained.refusal(number as i32, arguments);
                assert_eq!(refusal.is_none(), expected == libc::SECCOMP_RET_ALLOW, "{number}");
            }
        }
        assert_eq!(explained.refusal(libc::SYS_ptrace as i32, [0; 6]), Some(libc::EPERM));
        assert_eq!(explained.refusal(599, [0; 6]), Some(libc::ENOSYS));
        let other = interpret(&explained.asking, Some(0x4000_0003), 1, [0; 6]);
        assert_eq!(other, libc::SECCOMP_RET_KILL_PROCESS);
    }
}
