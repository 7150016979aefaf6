//! The filter of sandboxed commands: an allow-list in the manner of the container runtimes' default
//! profile, less what they leave to capabilities and to the kernel's own checks.
//!
//! Three answers: a call that ordinary programs make is made; one that is known and not meant for
//! a sandbox fails with EPERM; a number nobody knows yet fails with ENOSYS, so that a C library
//! newer than this table takes its fall-back.

use super::Filter;
use super::compile::{Check, Verdict, compile};
use super::service::NO_NAMESPACES;
use crate::Error;

/// Made as they are, on every architecture.
const ALLOWED: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_getcpu,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_get_robust_list,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_io_cancel,
    libc::SYS_io_destroy,
    libc::SYS_io_getevents,
    libc::SYS_ioprio_get,
    libc::SYS_ioprio_set,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lseek,
    libc::SYS_lsetxattr,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_mincore,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
    libc::SYS_mremap,
    libc::SYS_mseal,
    libc::SYS_msgctl,
    libc::SYS_msgget,
    libc::SYS_msgrcv,
    libc::SYS_msgsnd,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munlockall,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pkey_mprotect,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_prlimit64,
    libc::SYS_process_mrelease,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_remap_file_pages,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getattr,
    libc::SYS_sched_getparam,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_rr_get_interval,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_semctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_sendfile,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setitimer,
    libc::SYS_setpgid,
    libc::SYS_setpriority,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_set_robust_list,
    libc::SYS_setsid,
    libc::SYS_setsockopt,
    libc::SYS_set_tid_address,
    libc::SYS_setuid,
    libc::SYS_setxattr,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_shmget,
    libc::SYS_shutdown,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_sysinfo,
    libc::SYS_tee,
    libc::SYS_tgkill,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_tkill,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_write,
    libc::SYS_writev,
    // Newer than the constants of libc; the numbers are the same everywhere.
    451, // cachestat
    452, // fchmodat2
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    463, // setxattrat
    464, // getxattrat
    465, // listxattrat
    466, // removexattrat
];

/// Made as they are on x86_64, which has the older forms too.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = &[
    libc::SYS_access,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_creat,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_fork,
    libc::SYS_futimesat,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_inotify_init,
    libc::SYS_lchown,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mknod,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_setrlimit,
    libc::SYS_signalfd,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_sync_file_range,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_vfork,
    333, // io_pgetevents
];

/// Made as they are on aarch64, by number where libc has no constant for it.
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[i64] = &[
    38,  // renameat
    84,  // sync_file_range
    163, // getrlimit
    164, // setrlimit
    292, // io_pgetevents
];

/// Known, and refused with EPERM.
const DENIED: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    457, // statmount
    458, // listmount
    459, // lsm_get_self_attr
    460, // lsm_set_self_attr
    461, // lsm_list_modules
    467, // open_tree_attr
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS__sysctl,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_modify_ldt,
    libc::SYS_sysfs,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// Pushing input into a terminal, and the console's clipboard, which does the same.
const TERMINAL_INPUT: Check = Check::Not { argument: 1, values: &[0x5412, 0x541c], errno: libc::EPERM };

/// Unix, IPv4 and IPv6, and of netlink only the family that lists addresses and routes.
const FAMILIES: Check = Check::Socket { families: &[1, 2, 10], with_protocol_0: 16, errno: libc::EAFNOSUPPORT };

/// The personalities of ordinary programs, the query, and no address randomisation is not one.
const PERSONALITIES: Check =
    Check::Only { argument: 0, values: &[0, 0x0008, 0x0002_0000, 0x0002_0008, 0xffff_ffff], errno: libc::EPERM };

/// The filter for sandboxed commands. A call of another architecture kills the process.
///
/// # Errors
/// None for the tables of this module; the type is that of the compiler.
pub fn command_filter() -> Result<Filter, Error> {
    build(Verdict::Errno(libc::ENOSYS), Verdict::Errno(libc::EPERM), &[])
}

/// The same filter in two parts, for a process that starts many commands with clone3, each in a cgroup
/// namespace of its own: it puts itself under the first, which its children inherit, and each child adds
/// the second, which only takes clone3 and unshare away. Installing the second costs the kernel a fifth
/// of what the whole costs (8 to 41 microseconds where this was measured).
///
/// # Errors
/// As [`command_filter`].
pub fn command_filter_in_parts() -> Result<(Filter, Filter), Error> {
    let rest = [(libc::SYS_clone3, Verdict::Errno(libc::ENOSYS)), (libc::SYS_unshare, Verdict::Errno(libc::EPERM))];
    Ok((build(Verdict::Allow, Verdict::Allow, &[])?, compile(&rest, Verdict::Allow)?))
}

/// The table, with what becomes of clone3, unshare and the calls of `besides`. The flags of clone3 lie in memory, out of a
/// filter's sight; refused as unknown, the C library falls back to clone.
pub(super) fn build(clone3: Verdict, unshare: Verdict, besides: &[(i64, Verdict)]) -> Result<Filter, Error> {
    let mut table: Vec<(i64, Verdict)> = Vec::with_capacity(400);
    table.extend(ALLOWED.iter().chain(ALLOWED_HERE).map(|number| (*number, Verdict::Allow)));
    table.extend(DENIED.iter().chain(DENIED_HERE).map(|number| (*number, Verdict::Errno(libc::EPERM))));
    table.extend([
        (libc::SYS_clone, Verdict::Argument(&NO_NAMESPACES)),
        (libc::SYS_clone3, clone3),
        (libc::SYS_unshare, unshare),
        (libc::SYS_ioctl, Verdict::Argument(&TERMINAL_INPUT)),
        (libc::SYS_socket, Verdict::Argument(&FAMILIES)),
        (libc::SYS_personality, Verdict::Argument(&PERSONALITIES)),
    ]);
    table.extend(besides);
    compile(&table, Verdict::Errno(libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::super::compile::machine::errno;
    use super::*;

    #[test]
    fn each_list_is_answered_as_it_says() {
        let filter = command_filter().unwrap();
        for number in ALLOWED.iter().chain(ALLOWED_HERE) {
            assert_eq!(errno(&filter, *number, [0; 6]), None, "{number}");
        }
        for number in DENIED.iter().chain(DENIED_HERE) {
            assert_eq!(errno(&filter, *number, [0; 6]), Some(libc::EPERM), "{number}");
        }
        assert_eq!(errno(&filter, libc::SYS_unshare, [0; 6]), Some(libc::EPERM));
        for number in [libc::SYS_clone3, 600, 1 << 30] {
            assert_eq!(errno(&filter, number, [0; 6]), Some(libc::ENOSYS), "{number}");
        }
    }

    #[test]
    fn the_parts_together_are_the_whole() {
        let whole = command_filter().unwrap();
        let (first, second) = command_filter_in_parts().unwrap();
        for number in 0..1000 {
            for argument in [0, 0x5412, i64::from(libc::CLONE_NEWUSER)] {
                let arguments = [argument as u64; 6];
                let parts = errno(&first, number, arguments).or(errno(&second, number, arguments));
                assert_eq!(errno(&whole, number, arguments), parts, "{number}");
            }
        }
    }

    #[test]
    fn the_lists_do_not_overlap() {
        let mut all: Vec<i64> = [ALLOWED, ALLOWED_HERE, DENIED, DENIED_HERE].concat();
        all.extend([libc::SYS_clone, libc::SYS_clone3, libc::SYS_ioctl, libc::SYS_socket, libc::SYS_personality]);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn arguments_are_looked_at() {
        let filter = command_filter().unwrap();
        let first = |value: i64| [value as u64, 0, 0, 0, 0, 0];
        let cases: [(i64, [u64; 6], Option<i32>); 14] = [
            (libc::SYS_clone, first(i64::from(libc::SIGCHLD)), None),
            (libc::SYS_clone, first(i64::from(libc::CLONE_VM | libc::CLONE_THREAD)), None),
            (libc::SYS_clone, first(i64::from(libc::CLONE_NEWUSER)), Some(libc::EPERM)),
            (libc::SYS_clone, first(i64::from(libc::CLONE_NEWNET | libc::SIGCHLD)), Some(libc::EPERM)),
            (libc::SYS_ioctl, [0, libc::TCGETS, 0, 0, 0, 0], None),
            (libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0], Some(libc::EPERM)),
            (libc::SYS_ioctl, [0, 0x1_0000_541c, 0, 0, 0, 0], Some(libc::EPERM)),
            (libc::SYS_socket, first(i64::from(libc::AF_UNIX)), None),
            (libc::SYS_socket, first(i64::from(libc::AF_INET6)), None),
            (libc::SYS_socket, first(i64::from(libc::AF_NETLINK)), None),
            (libc::SYS_socket, [16, 3, 9, 0, 0, 0], Some(libc::EAFNOSUPPORT)),
            (libc::SYS_socket, first(i64::from(libc::AF_VSOCK)), Some(libc::EAFNOSUPPORT)),
            (libc::SYS_socket, first(i64::from(libc::AF_PACKET)), Some(libc::EAFNOSUPPORT)),
            (libc::SYS_personality, first(0x0040_0000), Some(libc::EPERM)),
        ];
        for (number, arguments, expected) in cases {
            assert_eq!(errno(&filter, number, arguments), expected, "{number} {arguments:?}");
        }
    }

    #[test]
    fn the_program_stays_short() {
        // The kernel runs it some 900 times at each installation; a chain would have over 800.
        assert!(command_filter().unwrap().instructions() < 300);
    }
}
