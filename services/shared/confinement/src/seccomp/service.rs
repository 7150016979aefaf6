//! The filter of our own services: they may do all but what no service of ours has to do.

use super::Filter;
use super::compile::{Check, Verdict, compile};
use crate::Error;

/// Flags of clone(2) that make namespaces.
pub(super) const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32
    | 0x80; // CLONE_NEWTIME, which clone(2) itself takes for the exit signal

/// As [`NAMESPACES`], for clone(2), whose lowest byte is the signal.
pub(super) const NO_NAMESPACES: Check = Check::Without { argument: 0, bits: NAMESPACES & !0xff, errno: libc::EPERM };

/// As [`NAMESPACES`], for unshare(2), which also parts what threads share, such as their working folder.
const NOTHING_NEW: Check = Check::Without { argument: 0, bits: NAMESPACES, errno: libc::EPERM };

const KERNEL: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

const NAMESPACE_CALLS: &[i64] = &[
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
];

#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt, libc::SYS_uselib];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// The filter for a service: calls that change the kernel, the clock or other processes fail with
/// EPERM, and so do mounts and new namespaces unless `namespaces` is set. io_uring, whose work no
/// filter sees, is answered ENOSYS; so is clone3 where namespaces are denied, because a filter
/// cannot read its flags: the C library then falls back to clone.
///
/// # Errors
/// None for the tables of this module; the type is that of the compiler.
pub fn service_filter(namespaces: bool) -> Result<Filter, Error> {
    let mut table = denied(namespaces);
    if !namespaces {
        table.push((libc::SYS_clone, Verdict::Argument(&NO_NAMESPACES)));
    }
    compile(&table, Verdict::Allow)
}

/// The calls that are refused whatever their arguments.
pub(super) fn denied(namespaces: bool) -> Vec<(i64, Verdict)> {
    let mut table: Vec<(i64, Verdict)> =
        KERNEL.iter().chain(OLD).map(|number| (*number, Verdict::Errno(libc::EPERM))).collect();
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        table.push((number, Verdict::Errno(libc::ENOSYS)));
    }
    if !namespaces {
        table.extend(NAMESPACE_CALLS.iter().map(|number| (*number, Verdict::Errno(libc::EPERM))));
        table.push((libc::SYS_unshare, Verdict::Argument(&NOTHING_NEW)));
        table.push((libc::SYS_clone3, Verdict::Errno(libc::ENOSYS)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::compile::machine::errno;
    use super::*;

    #[test]
    fn ordinary_work_is_allowed_and_the_kernel_is_not_touched() {
        for namespaces in [false, true] {
            let filter = service_filter(namespaces).unwrap();
            for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_socket, libc::SYS_epoll_pwait, 9999] {
                assert_eq!(errno(&filter, number, [0; 6]), None, "{number}");
            }
            for number in KERNEL.iter().chain(OLD) {
                assert_eq!(errno(&filter, *number, [0; 6]), Some(libc::EPERM), "{number}");
            }
            assert_eq!(errno(&filter, libc::SYS_io_uring_setup, [0; 6]), Some(libc::ENOSYS));
            let fork = [libc::SIGCHLD as u64, 0, 0, 0, 0, 0];
            assert_eq!(errno(&filter, libc::SYS_clone, fork), None);
            let user = [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0];
            let refused = (!namespaces).then_some(libc::EPERM);
            assert_eq!(errno(&filter, libc::SYS_clone, user), refused);
            assert_eq!(errno(&filter, libc::SYS_unshare, user), refused);
            assert_eq!(errno(&filter, libc::SYS_unshare, [0x80, 0, 0, 0, 0, 0]), refused, "CLONE_NEWTIME");
            assert_eq!(errno(&filter, libc::SYS_unshare, [libc::CLONE_FS as u64, 0, 0, 0, 0, 0]), None);
            assert_eq!(errno(&filter, libc::SYS_mount, [0; 6]), refused);
        }
    }
}
