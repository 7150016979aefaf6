//! The filter of virtual machine monitors and device processes: they parse what a hostile guest writes.

use super::Filter;
use super::compile::{Check, Verdict, compile};
use super::service::{NO_NAMESPACES, denied};
use crate::Error;

/// What a process may do with sockets, beyond those it was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sockets {
    /// Nothing: it makes none, connects none, listens on none.
    None,
    /// Unix sockets only.
    Unix,
}

/// `AF_UNIX` and nothing else.
const UNIX: Check = Check::Only { argument: 0, values: &[1], errno: libc::EAFNOSUPPORT };

/// Every call that makes a socket or gives one another end.
const SOCKET_CALLS: [i64; 7] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// The filter of a service ([`super::service_filter`] without namespaces), and sockets only as far as `sockets` says.
/// `clone3` is answered ENOSYS: a filter cannot read its flags, and the C library falls back to clone.
///
/// # Errors
/// None for the tables of this module; the type is that of the compiler.
pub fn machine_filter(sockets: Sockets) -> Result<Filter, Error> {
    let mut table = denied(false);
    table.push((libc::SYS_clone, Verdict::Argument(&NO_NAMESPACES)));
    match sockets {
        Sockets::None => table.extend(SOCKET_CALLS.map(|number| (number, Verdict::Errno(libc::EPERM)))),
        Sockets::Unix => {
            table.extend([libc::SYS_socket, libc::SYS_socketpair].map(|n| (n, Verdict::Argument(&UNIX))));
        }
    }
    compile(&table, Verdict::Allow)
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
        assert_eq!(errno(&unix, libc::SYS_connect, [0; 6]), None);
        for filter in [&none, &unix] {
            for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_sendmsg, libc::SYS_recvmsg, libc::SYS_ioctl] {
                assert_eq!(errno(filter, number, [0; 6]), None, "{number}");
            }
            assert_eq!(errno(filter, libc::SYS_ptrace, [0; 6]), Some(libc::EPERM));
            assert_eq!(errno(filter, libc::SYS_mount, [0; 6]), Some(libc::EPERM));
        }
    }
}
