//! The filter of virtual machine monitors and device processes: they parse what a hostile guest writes.

use std::os::fd::{FromRawFd as _, OwnedFd};

use super::Filter;
use super::compile::{Check, Verdict, compile};
use super::service::{NO_NAMESPACES, denied};
use crate::Error;

/// What a process may do with sockets, beyond those it was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// Nothing but pairs of its own: it connects none, listens on none.
    None,
    /// It takes the connections that come to a socket it was started with.
    Accept,
    /// Unix sockets only.
    Unix,
}

/// `AF_UNIX` and nothing else.
const UNIX: Check = Check::Only { argument: 0, values: &[1], errno: libc::EAFNOSUPPORT };

/// Refuses the set-user-ID and set-group-ID bits in an argument that is a file's mode.
const fn no_set_id(argument: u32) -> Check {
    Check::Without { argument, bits: libc::S_ISUID | libc::S_ISGID, errno: libc::EPERM }
}
const MODE_SECOND: Check = no_set_id(1);
const MODE_THIRD: Check = no_set_id(2);
const MODE_FOURTH: Check = no_set_id(3);

/// Calls that give a file its mode, and the check of their argument.
const MODE_CALLS: &[(i64, &Check)] = &[
    (libc::SYS_fchmod, &MODE_SECOND),
    (libc::SYS_fchmodat, &MODE_THIRD),
    (452, &MODE_THIRD), // fchmodat2, newer than the constants of libc
    (libc::SYS_mkdirat, &MODE_THIRD),
    (libc::SYS_mknodat, &MODE_THIRD),
    (libc::SYS_openat, &MODE_FOURTH),
];
#[cfg(target_arch = "x86_64")]
const OLD_MODE_CALLS: &[(i64, &Check)] = &[
    (libc::SYS_chmod, &MODE_SECOND),
    (libc::SYS_creat, &MODE_SECOND),
    (libc::SYS_mkdir, &MODE_SECOND),
    (libc::SYS_mknod, &MODE_SECOND),
    (libc::SYS_open, &MODE_THIRD),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_MODE_CALLS: &[(i64, &Check)] = &[];

/// Every call that makes a socket that could have an end elsewhere, or gives it one.
const SOCKET_CALLS: [i64; 6] =
    [libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4];

/// The filter of a service ([`super::service_filter`] without namespaces), and sockets only as far as `sockets` says.
/// `clone3` and `openat2` are answered ENOSYS: a filter cannot read their flags, and programs fall back to the older
/// calls. No file gets a set-user-ID or set-group-ID bit: what a guest writes would be run as the user of the host.
///
/// # Errors
/// None for the tables of this module; the type is that of the compiler.
pub fn machine_filter(sockets: Sockets) -> Result<Filter, Error> {
    let mut table = denied(false);
    table.push((libc::SYS_clone, Verdict::Argument(&NO_NAMESPACES)));
    table.extend(MODE_CALLS.iter().chain(OLD_MODE_CALLS).map(|(number, check)| (*number, Verdict::Argument(check))));
    table.push((libc::SYS_openat2, Verdict::Errno(libc::ENOSYS)));
    // Both ends are its own.
    table.push((libc::SYS_socketpair, Verdict::Argument(&UNIX)));
    match sockets {
        Sockets::None => table.extend(SOCKET_CALLS.map(|number| (number, Verdict::Errno(libc::EPERM)))),
        Sockets::Accept => {
            let others = SOCKET_CALLS.into_iter().filter(|n| !matches!(*n, libc::SYS_accept | libc::SYS_accept4));
            table.extend(others.map(|number| (number, Verdict::Errno(libc::EPERM))));
        }
        Sockets::Unix => {
            table.push((libc::SYS_socket, Verdict::Argument(&UNIX)));
        }
    }
    compile(&table, Verdict::Allow)
}

/// Stands for "ask" while the table is compiled; no error number is so large.
const ASK: i32 = 0xffe;
/// Streams, with the flags that a socket may be made with: what is sent on one goes nowhere before it is connected.
const STREAMS: Check = Check::Only {
    argument: 1,
    values: &[
        libc::SOCK_STREAM as u32,
        (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32,
        (libc::SOCK_STREAM | libc::SOCK_NONBLOCK) as u32,
        (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u32,
    ],
    errno: libc::EPERM,
};

/// A second filter, beside [`machine_filter`]: whoever is under it has streams only, and each `connect` is made for it by
/// a supervisor (seccomp_unotify(2)), or not. The kernel has no other way yet to say to which Unix sockets a process may
/// connect.
#[derive(Debug, Clone)]
pub struct AskedConnects(Filter);

impl AskedConnects {
    /// # Errors
    /// None for the table of this module; the type is that of the compiler.
    pub fn new() -> Result<Self, Error> {
        let streams = [libc::SYS_socket, libc::SYS_socketpair].map(|number| (number, Verdict::Argument(&STREAMS)));
        let table: Vec<_> = streams.into_iter().chain([(libc::SYS_connect, Verdict::Errno(ASK))]).collect();
        let mut filter = compile(&table, Verdict::Allow)?;
        for op in &mut filter.program {
            if op.code == super::compile::RET && op.k == libc::SECCOMP_RET_ERRNO | ASK as u32 {
                op.k = libc::SECCOMP_RET_USER_NOTIF;
            }
        }
        Ok(Self(filter))
    }

    /// Puts the calling thread under the filter for good; returns the descriptor (closed on exec) by which the
    /// supervisor is asked. Once that is closed everywhere, `connect` is ENOSYS.
    ///
    /// # Errors
    /// As [`Filter::install`]; EBUSY where the thread has a supervisor already.
    pub fn install(&self) -> std::io::Result<OwnedFd> {
        let fd = self.0.install_with(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: with that flag the call returns a descriptor that the kernel has just made.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::compile::machine::errno;
    use super::*;

    #[test]
    fn a_monitor_reaches_no_network() {
        let (none, unix) = (machine_filter(Sockets::None).unwrap(), machine_filter(Sockets::Unix).unwrap());
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_VSOCK] {
            let arguments = [family as u64, 1, 0, 0, 0, 0];
            assert_eq!(errno(&none, libc::SYS_socket, arguments), Some(libc::EPERM), "{family}");
            let refused = (family != libc::AF_UNIX).then_some(libc::EAFNOSUPPORT);
            assert_eq!(errno(&unix, libc::SYS_socket, arguments), refused, "{family}");
        }
        assert_eq!(errno(&none, libc::SYS_connect, [0; 6]), Some(libc::EPERM));
        assert_eq!(errno(&none, libc::SYS_socketpair, [1, 1, 0, 0, 0, 0]), None);
        assert_eq!(errno(&none, libc::SYS_socketpair, [2, 1, 0, 0, 0, 0]), Some(libc::EAFNOSUPPORT));
        assert_eq!(errno(&unix, libc::SYS_connect, [0; 6]), None);
        let accept = machine_filter(Sockets::Accept).unwrap();
        assert_eq!(errno(&accept, libc::SYS_socket, [1, 1, 0, 0, 0, 0]), Some(libc::EPERM));
        assert_eq!(errno(&accept, libc::SYS_connect, [0; 6]), Some(libc::EPERM));
        assert_eq!(errno(&accept, libc::SYS_accept4, [0; 6]), None);
        for filter in [&none, &unix, &accept] {
            for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_ioctl] {
                assert_eq!(errno(filter, number, [0; 6]), None, "{number}");
            }
            assert_eq!(errno(filter, libc::SYS_ptrace, [0; 6]), Some(libc::EPERM));
            assert_eq!(errno(filter, libc::SYS_mount, [0; 6]), Some(libc::EPERM));
        }
    }

    #[test]
    fn no_file_gets_a_set_id_bit() {
        let filter = machine_filter(Sockets::None).unwrap();
        for (number, check) in MODE_CALLS.iter().chain(OLD_MODE_CALLS) {
            let Check::Without { argument, .. } = check else { panic!("{number}") };
            for (mode, refused) in [(0o100_644, None), (0o4755, Some(libc::EPERM)), (0o2755, Some(libc::EPERM))] {
                let mut arguments = [0; 6];
                arguments[*argument as usize] = mode;
                assert_eq!(errno(&filter, *number, arguments), refused, "{number} {mode:o}");
            }
        }
        assert_eq!(errno(&filter, libc::SYS_openat2, [0; 6]), Some(libc::ENOSYS));
    }

    #[test]
    fn connects_are_asked_for_and_there_are_streams_only() {
        use super::super::compile::interpret;
        let filter = AskedConnects::new().unwrap().0;
        let of = |number: i64, second: i32| interpret(&filter, None, number as u32, [1, second as u64, 0, 0, 0, 0]);
        assert_eq!(of(libc::SYS_connect, 0), libc::SECCOMP_RET_USER_NOTIF);
        for flags in [0, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK] {
            assert_eq!(of(libc::SYS_socket, libc::SOCK_STREAM | flags), libc::SECCOMP_RET_ALLOW);
            assert_ne!(of(libc::SYS_socket, libc::SOCK_DGRAM | flags), libc::SECCOMP_RET_ALLOW);
            assert_ne!(of(libc::SYS_socketpair, libc::SOCK_SEQPACKET | flags), libc::SECCOMP_RET_ALLOW);
        }
        assert_eq!(of(libc::SYS_accept4, 0), libc::SECCOMP_RET_ALLOW);
    }
}
