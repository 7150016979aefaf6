//! Starting one command.
//!
//! The child shares the keeper's memory until it executes its program, as with vfork(2): nothing is
//! copied, and whether it worked is known when the keeper goes on.

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use shipote_confinement::seccomp::Filter;
use shipote_spawn::{Stack, duplicate, execute};

use super::explain::Explainer;
use super::{Ids, WORK};
use crate::error::{Failure, Step};
use crate::spec::{Rlimits, Terminal};
use crate::sys;
use crate::wire::Command;

/// Where a name is looked up when the environment has no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Descriptors of the keeper that a command gets are moved above its own numbers before they are placed.
const ABOVE: RawFd = 1024;

/// A command whose program runs.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    /// The master of its terminal.
    pub(super) terminal: Option<OwnedFd>,
}

/// What every command of the workspace has in common.
pub(super) struct Common {
    pub(super) ids: Ids,
    pub(super) rlimits: Rlimits,
    pub(super) nofile: u64,
    pub(super) filter: Filtered,
    pub(super) stack: Stack,
}

/// How commands come under their seccomp filter.
pub(super) enum Filtered {
    /// The kernel has none.
    No,
    /// By its last part, which the keeper itself could not bear; it bears the first.
    Rest(Filter),
    /// By a whole one of their own, whose refusals are explained.
    Explained(Explainer),
}

impl Filtered {
    /// What explains has ended.
    pub(super) fn explains_no_more(&self) -> bool {
        matches!(self, Self::Explained(explainer) if explainer.is_gone())
    }
}

/// Everything that the child needs, made before it exists: it allocates nothing.
struct Plan<'a> {
    candidates: Vec<CString>,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: CString,
    stdio: [RawFd; 3],
    terminal: bool,
    descriptors: Vec<(RawFd, RawFd)>,
    limits: Vec<(libc::__rlimit_resource_t, u64)>,
    affinity: Option<rustix::thread::CpuSet>,
    common: &'a Common,
    id: u64,
    /// Where the child leaves what went wrong.
    failed: Cell<Option<(Step, i32)>>,
}

/// Starts `command`. When this returns its program runs, or did not come to it and is reaped.
pub(super) fn start(id: u64, command: &Command, given: Vec<OwnedFd>, common: &Common) -> Result<Started, Failure> {
    // The cgroup's is known by its place: one among the others would lead out of the root as any directory does.
    let at = command.cgroup.then(|| command.stdio.iter().filter(|given| **given).count());
    for (place, fd) in given.iter().enumerate() {
        let stat = rustix::fs::fstat(fd).map_err(|error| Failure::new(Step::Descriptors, "given", error))?;
        let directory = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
        if directory && !(at == Some(place) && is_cgroup(fd)) {
            let error = io::Error::from_raw_os_error(libc::EISDIR);
            return Err(Failure::new(Step::Descriptors, "given: one is a directory", error));
        }
    }
    let text = |text: &str| {
        CString::new(text).map_err(|_| {
            Failure::new(Step::Request, "text with a NUL byte", io::Error::from_raw_os_error(libc::EINVAL))
        })
    };
    let mut given = given.into_iter();
    let mut next = |wanted: bool| if wanted { given.next().map(Some).ok_or(()) } else { Ok(None) };
    let missing = |()| {
        let error = io::Error::from_raw_os_error(libc::EBADMSG);
        Failure::new(Step::Request, "fewer descriptors than announced", error)
    };
    let [a, b, c] = command.stdio;
    let stdio = [next(a).map_err(missing)?, next(b).map_err(missing)?, next(c).map_err(missing)?];
    let cgroup = next(command.cgroup).map_err(missing)?;
    let mut further = Vec::with_capacity(command.descriptors.len());
    for number in &command.descriptors {
        if !(3..ABOVE).contains(number) {
            let error = io::Error::from_raw_os_error(libc::EBADF);
            return Err(Failure::new(Step::Descriptors, format!("number {number}, from 3 to 1023"), error));
        }
        let fd = next(true).map_err(missing)?.ok_or(()).map_err(missing)?;
        let fd = rustix::io::fcntl_dupfd_cloexec(&fd, ABOVE)
            .map_err(|error| Failure::new(Step::Descriptors, format!("number {number}"), error))?;
        further.push((fd, *number));
    }

    let terminal = match command.terminal {
        None => None,
        Some(size) => Some(open_terminal(size, common.ids).map_err(|e| Failure::new(Step::Terminal, "/dev/ptmx", e))?),
    };
    let argv =
        std::iter::once(&command.exec).chain(&command.argv).map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
    let env = command.env.iter().map(|(key, value)| text(&format!("{key}={value}"))).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let slave = terminal.as_ref().map(|(_, slave)| slave.as_raw_fd());
    let plan = Plan {
        candidates: candidates(command).iter().map(|path| text(path)).collect::<Result<_, _>>()?,
        argv: pointers(&argv),
        envp: pointers(&env),
        cwd: text(if command.cwd.is_empty() { "/work" } else { &command.cwd })?,
        stdio: std::array::from_fn(|index| match (slave, &stdio[index]) {
            (Some(slave), _) => slave,
            (None, Some(fd)) => fd.as_raw_fd(),
            // The keeper's own 0, 1 and 2 are /dev/null.
            (None, None) => 0,
        }),
        terminal: slave.is_some(),
        descriptors: further.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect(),
        limits: limits(common, command.rlimits),
        affinity: affinity(&command.cpu_affinity)?,
        common,
        id,
        failed: Cell::new(None),
    };
    // SAFETY: the keeper has one thread and handles no signal; `become_command` ends in exec or exit, and all it writes to
    // is the plan's cell.
    let spawned =
        unsafe { shipote_spawn::spawn_sharing(&common.stack, cgroup.as_ref().map(AsFd::as_fd), become_command, &plan) };
    let step = if cgroup.is_some() { Step::Cgroup } else { Step::Process };
    let (pid, pidfd) = spawned.map_err(|error| Failure::new(step, command.exec.clone(), error))?;
    if let Some((step, errno)) = plan.failed.get() {
        reap(pid);
        let object = if step == Step::Directory { plan.cwd.to_string_lossy() } else { command.exec.as_str().into() };
        return Err(Failure { step, errno, object: object.into_owned() });
    }
    Ok(Started { pid, pidfd, terminal: terminal.map(|(master, _)| master) })
}

fn is_cgroup(fd: &OwnedFd) -> bool {
    const CGROUP2: u64 = 0x6367_7270;
    rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type as u64 == CGROUP2)
}

/// The child's part, on the keeper's memory.
extern "C" fn become_command(plan: &Plan<'_>) -> ! {
    let (step, error) = match prepare(plan) {
        // SAFETY: argv and envp end with a null pointer and point into strings that outlive the call.
        Ok(()) => (Step::Exec, unsafe { execute(&plan.candidates, &plan.argv, &plan.envp) }.error),
        Err(failed) => failed,
    };
    plan.failed.set(Some((step, error.raw_os_error().unwrap_or(libc::EIO))));
    sys::exit(127)
}

fn prepare(plan: &Plan<'_>) -> Result<(), (Step, io::Error)> {
    let at = |step| move |error: rustix::io::Errno| (step, io::Error::from(error));
    rustix::process::setsid().map_err(at(Step::Process))?;
    for (number, fd) in (0..).zip(plan.stdio) {
        // SAFETY: the command's own descriptors; nothing else in this process owns these numbers.
        unsafe { duplicate(fd, number) }.map_err(|error| (Step::Descriptors, error))?;
    }
    if plan.terminal {
        // SAFETY: descriptor 0 has just been placed.
        let terminal = unsafe { BorrowedFd::borrow_raw(0) };
        rustix::process::ioctl_tiocsctty(terminal).map_err(at(Step::Terminal))?;
    }
    sys::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    for (fd, number) in &plan.descriptors {
        // SAFETY: as above.
        unsafe { duplicate(*fd, *number) }.map_err(|error| (Step::Descriptors, error))?;
    }
    for (resource, value) in &plan.limits {
        sys::limit(*resource, *value).map_err(|error| (Step::Limits, error))?;
    }
    if let Some(affinity) = &plan.affinity {
        rustix::thread::sched_setaffinity(None, affinity).map_err(at(Step::Limits))?;
    }
    // SAFETY: no memory arguments; a cgroup namespace holds nothing but its root, the present cgroup.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } != 0 {
        return Err((Step::Namespaces, io::Error::last_os_error()));
    }
    let ids = plan.common.ids;
    if ids.keeper == 0 {
        let (uid, gid) = (rustix::fs::Uid::from_raw(WORK), rustix::fs::Gid::from_raw(WORK));
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Step::Ids))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Step::Ids))?;
    }
    let none = rustix::thread::CapabilitySet::empty();
    let none = rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, none).map_err(at(Step::Capabilities))?;
    rustix::process::chdir(plan.cwd.as_c_str()).map_err(at(Step::Directory))?;
    // Before the filter, so that as little as possible of this has to pass it.
    sys::block_signals(false);
    match &plan.common.filter {
        Filtered::No => Ok(()),
        Filtered::Rest(filter) => filter.install(),
        Filtered::Explained(explainer) => explainer.watch(plan.id),
    }
    .map_err(|error| (Step::Seccomp, error))
}

fn candidates(command: &Command) -> Vec<String> {
    let path = command.env.iter().find(|(key, _)| key == "PATH").map_or(PATH, |(_, value)| value);
    shipote_spawn::candidates(&command.exec, path).collect()
}

fn limits(common: &Common, asked: Rlimits) -> Vec<(libc::__rlimit_resource_t, u64)> {
    let limits = common.rlimits.tightened_by(asked);
    [
        (libc::RLIMIT_AS, limits.mem_bytes),
        (libc::RLIMIT_NPROC, limits.nproc),
        // The keeper raised its own to take descriptors in.
        (libc::RLIMIT_NOFILE, Some(limits.nofile.unwrap_or(common.nofile))),
        (libc::RLIMIT_FSIZE, limits.fsize_bytes),
        (libc::RLIMIT_CPU, limits.cpu_seconds),
        (libc::RLIMIT_CORE, Some(limits.core_bytes.unwrap_or(0))),
    ]
    .into_iter()
    .filter_map(|(resource, value)| Some((resource, value?)))
    .collect()
}

/// The CPUs as the kernel takes them; none where none are named.
fn affinity(cpus: &[u32]) -> Result<Option<rustix::thread::CpuSet>, Failure> {
    let mut set = rustix::thread::CpuSet::new();
    for &cpu in cpus {
        let cpu = cpu as usize;
        if cpu >= rustix::thread::CpuSet::MAX_CPU {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(Failure::new(Step::Limits, format!("CPU {cpu}"), error));
        }
        set.set(cpu);
    }
    Ok((!cpus.is_empty()).then_some(set))
}

/// A terminal of the workspace's devpts: master and slave, the slave belonging to the command's user.
fn open_terminal(size: Terminal, ids: Ids) -> io::Result<(OwnedFd, OwnedFd)> {
    // The node belongs to whoever opens the master.
    // SAFETY: numbers only.
    unsafe { libc::setfsuid(WORK) };
    let master = rustix::pty::openpt(
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    );
    // SAFETY: numbers only.
    unsafe { libc::setfsuid(ids.keeper) };
    let master = master?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY | rustix::pty::OpenptFlags::CLOEXEC,
    )?;
    let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&slave, size)?;
    Ok((master, slave))
}

/// Whether there is any process beside the keeper: those whose parents have ended are its children.
pub(super) fn has_any() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, look), Err(rustix::io::Errno::CHILD))
}

/// Reaps any child that has ended.
pub(super) fn reap_any() -> Reaped {
    let (pid, status, usage) = wait(-1, libc::WNOHANG);
    match pid {
        0 => Reaped::NoneNow,
        -1 => Reaped::NoChildren,
        pid => Reaped::Child { pid, status, usage: Box::new(usage) },
    }
}

/// Reaps this child, which is about to end.
fn reap(pid: i32) {
    wait(pid, 0);
}

fn wait(pid: i32, options: i32) -> (i32, i32, libc::rusage) {
    let mut status = 0;
    // SAFETY: rusage is plain numbers; both outlive the call.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(pid, &raw mut status, options, &raw mut usage), status, usage)
    }
}

/// What waiting for a child found.
pub(super) enum Reaped {
    Child { pid: i32, status: i32, usage: Box<libc::rusage> },
    NoneNow,
    NoChildren,
}
