//! The system calls that are looked at before they are made, and where their arguments are.

/// An argument by its position.
pub(super) type Position = usize;

/// What a call would do with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// Open it as open(2) does, with the flags at this position.
    Open(Position),
    /// As `Open`, with the flags in memory (openat2(2)).
    OpenHow(Position),
    /// Make it, write it and cut it off (creat(2)).
    Create,
    /// Execute it.
    Execute,
    /// Make it, where it is not there, and nothing of it is opened.
    Make,
    /// Change or remove it as an entry of the directory that it is in.
    Entry,
    /// Change it.
    Change,
    /// Only find it.
    Find,
}

/// Where the path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathAt {
    /// The directory that a relative path begins at; None: the working directory.
    pub(super) directory: Option<Position>,
    pub(super) path: Position,
    pub(super) intent: Intent,
}

/// What is looked at in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Path(PathAt),
    /// The address of a socket: the position of its pointer and of its length.
    Address(Position, Position),
}

const fn at(directory: Position, path: Position, intent: Intent) -> Call {
    Call::Path(PathAt { directory: Some(directory), path, intent })
}

#[cfg(target_arch = "x86_64")]
const fn path(path: Position, intent: Intent) -> Call {
    Call::Path(PathAt { directory: None, path, intent })
}

const EVERYWHERE: &[(i64, Call)] = &[
    (libc::SYS_openat, at(0, 1, Intent::Open(2))),
    (libc::SYS_openat2, at(0, 1, Intent::OpenHow(2))),
    (libc::SYS_execve, Call::Path(PathAt { directory: None, path: 0, intent: Intent::Execute })),
    (libc::SYS_execveat, at(0, 1, Intent::Execute)),
    (libc::SYS_mkdirat, at(0, 1, Intent::Make)),
    (libc::SYS_mknodat, at(0, 1, Intent::Make)),
    (libc::SYS_unlinkat, at(0, 1, Intent::Entry)),
    (libc::SYS_symlinkat, at(1, 2, Intent::Make)),
    (libc::SYS_linkat, at(2, 3, Intent::Make)),
    (libc::SYS_renameat2, at(0, 1, Intent::Entry)),
    (libc::SYS_fchmodat, at(0, 1, Intent::Change)),
    (libc::SYS_fchownat, at(0, 1, Intent::Change)),
    (libc::SYS_utimensat, at(0, 1, Intent::Change)),
    (libc::SYS_truncate, Call::Path(PathAt { directory: None, path: 0, intent: Intent::Change })),
    (libc::SYS_newfstatat, at(0, 1, Intent::Find)),
    (libc::SYS_statx, at(0, 1, Intent::Find)),
    (libc::SYS_faccessat, at(0, 1, Intent::Find)),
    (libc::SYS_faccessat2, at(0, 1, Intent::Find)),
    (libc::SYS_readlinkat, at(0, 1, Intent::Find)),
    (libc::SYS_chdir, Call::Path(PathAt { directory: None, path: 0, intent: Intent::Find })),
    (libc::SYS_connect, Call::Address(1, 2)),
    (libc::SYS_sendto, Call::Address(4, 5)),
];

#[cfg(target_arch = "x86_64")]
const HERE: &[(i64, Call)] = &[
    (libc::SYS_open, path(0, Intent::Open(1))),
    (libc::SYS_creat, path(0, Intent::Create)),
    (libc::SYS_mkdir, path(0, Intent::Make)),
    (libc::SYS_mknod, path(0, Intent::Make)),
    (libc::SYS_rmdir, path(0, Intent::Entry)),
    (libc::SYS_unlink, path(0, Intent::Entry)),
    (libc::SYS_symlink, path(1, Intent::Make)),
    (libc::SYS_link, path(1, Intent::Make)),
    (libc::SYS_rename, path(0, Intent::Entry)),
    (libc::SYS_renameat, at(0, 1, Intent::Entry)),
    (libc::SYS_chmod, path(0, Intent::Change)),
    (libc::SYS_chown, path(0, Intent::Change)),
    (libc::SYS_lchown, path(0, Intent::Change)),
    (libc::SYS_utime, path(0, Intent::Change)),
    (libc::SYS_utimes, path(0, Intent::Change)),
    (libc::SYS_stat, path(0, Intent::Find)),
    (libc::SYS_lstat, path(0, Intent::Find)),
    (libc::SYS_access, path(0, Intent::Find)),
    (libc::SYS_readlink, path(0, Intent::Find)),
];
#[cfg(not(target_arch = "x86_64"))]
const HERE: &[(i64, Call)] = &[];

/// The numbers that are looked at.
pub(super) fn watched() -> Vec<i64> {
    EVERYWHERE.iter().chain(HERE).map(|(number, _)| *number).collect()
}

/// What to look at in a call of this number.
pub(super) fn call(number: i32) -> Option<Call> {
    EVERYWHERE.iter().chain(HERE).find(|(known, _)| *known == i64::from(number)).map(|(_, call)| *call)
}
