//! System calls made by a process that runs already, to see what its confinement makes of them.
//!
//! For the proof that a service is confined as its unit and its policy say: not a copy of it under the same settings,
//! but the very process, each of its threads, tries what it must not. A landlock domain and a seccomp filter belong to a
//! thread, so one thread says nothing of the others. A thread is stopped (ptrace(2)), its registers are set as for the
//! call, it takes one step, and goes on where it was.
//!
//! Inside the test machine only, as root. Standard input has one attempt a line; each line of the output is the thread's
//! number and name, the attempt and what came of it (`ok`, or the error's name), separated by tabs.

use std::fs::{self, File};
use std::io::{BufRead, Write};
use std::net::SocketAddrV4;
use std::os::unix::fs::FileExt;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// So far below the stack pointer that neither the red zone nor the thread's own data is touched.
const SCRATCH: u64 = 2048;
/// Longest path, its end included.
const PATH_MAX: usize = 1024;
/// `syscall` on x86-64.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Something that a confined process should not be able to do, or should.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    /// Opens a file with these flags; one that this has made is removed again.
    Open { path: String, flags: i32 },
    /// Becomes another program. A thread that succeeds is no more: nothing is reported of it.
    Execute(String),
    /// Connects to an address, without waiting for it.
    Tcp(SocketAddrV4),
    /// Makes a socket of a family.
    Socket(i32),
    /// Makes memory that can be written to and executed.
    WriteExecute,
    /// A call with these arguments that leaves nothing behind.
    Call(c_long, [u64; 3]),
}

impl Attempt {
    fn parse(line: &str) -> anyhow::Result<Self> {
        let (name, argument) = line.split_once(' ').unwrap_or((line, ""));
        let path = || -> anyhow::Result<String> {
            anyhow::ensure!(argument.starts_with('/') && argument.len() < PATH_MAX, "{line:?}: not a path");
            Ok(argument.to_owned())
        };
        Ok(match name {
            "read" => Attempt::Open { path: path()?, flags: libc::O_RDONLY },
            "write" => Attempt::Open { path: path()?, flags: libc::O_WRONLY },
            "create" => Attempt::Open { path: path()?, flags: libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL },
            "execute" => Attempt::Execute(path()?),
            "tcp" => Attempt::Tcp(argument.parse().with_context(|| format!("{line:?}: not an address"))?),
            "socket" => Attempt::Socket(match argument {
                "inet" => libc::AF_INET,
                "netlink" => libc::AF_NETLINK,
                "packet" => libc::AF_PACKET,
                "vsock" => libc::AF_VSOCK,
                other => bail!("{line:?}: family {other:?} is not known"),
            }),
            "write-execute" => Attempt::WriteExecute,
            "user-namespace" => Attempt::Call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
            "mount-namespace" => Attempt::Call(libc::SYS_unshare, [libc::CLONE_NEWNS as u64, 0, 0]),
            // of another process: with the number of none it fails otherwise where it is allowed
            "ptrace" => Attempt::Call(libc::SYS_ptrace, [libc::PTRACE_ATTACH as u64, i32::MAX as u64, 0]),
            "bpf" => Attempt::Call(libc::SYS_bpf, [u64::MAX, 0, 0]),
            "module" => Attempt::Call(libc::SYS_delete_module, [0, 0, 0]),
            "keyring" => Attempt::Call(libc::SYS_keyctl, [u64::MAX, 0, 0]),
            "io_uring" => Attempt::Call(libc::SYS_io_uring_setup, [0, 0, 0]),
            "performance" => Attempt::Call(libc::SYS_perf_event_open, [0, 0, 0]),
            "root" => Attempt::Call(libc::SYS_setuid, [0, 0, 0]),
            _ => bail!("{line:?}: attempt {name:?} is not known"),
        })
    }
}

/// Has every thread of `process` try each line of `attempts`.
pub(super) fn run(process: i32, attempts: impl BufRead, mut report: impl Write) -> anyhow::Result<()> {
    let lines = attempts.lines().collect::<Result<Vec<_>, _>>().context("read the attempts")?;
    let attempts = lines.iter().map(|line| Attempt::parse(line)).collect::<anyhow::Result<Vec<_>>>()?;
    let folder = format!("/proc/{process}/task");
    for entry in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let number = entry?.file_name().to_string_lossy().parse().context("read the number of a thread")?;
        let name = fs::read_to_string(format!("{folder}/{number}/comm")).unwrap_or_default();
        // a thread that ended meanwhile has nothing to prove
        let mut thread = match Thread::stop(Pid::from_raw(number)) {
            Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => continue,
            thread => thread.with_context(|| format!("stop thread {number} of process {process}"))?,
        };
        for (line, attempt) in lines.iter().zip(&attempts) {
            let result = thread.attempt(attempt).with_context(|| format!("{line:?} in thread {number}"))?;
            let result = result.map_or_else(|errno| format!("{errno:?}"), |_| "ok".to_owned());
            writeln!(report, "{number}\t{}\t{line}\t{result}", name.trim())?;
        }
        thread.go_on().with_context(|| format!("let thread {number} of process {process} go on"))?;
    }
    Ok(())
}

/// A thread that is stopped.
struct Thread {
    id: Pid,
    memory: File,
    /// As it was stopped.
    registers: user_regs_struct,
    /// Where a `syscall` instruction is.
    instruction: u64,
    /// A signal that arrived meanwhile.
    pending: Option<Signal>,
}

impl Thread {
    fn stop(id: Pid) -> anyhow::Result<Self> {
        ptrace::seize(id, ptrace::Options::empty())?;
        loop {
            ptrace::interrupt(id)?;
            match waitpid(id, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(..) => {}
                WaitStatus::Stopped(_, signal) => {
                    ptrace::cont(id, signal)?;
                    continue;
                }
                other => bail!("it did not stop but {other:?}"),
            }
            let memory = File::options().read(true).write(true).open(format!("/proc/{id}/mem"))?;
            let registers = ptrace::getregs(id)?;
            let instruction = registers.rip.wrapping_sub(2);
            let mut bytes = [0; 2];
            memory.read_exact_at(&mut bytes, instruction)?;
            // else it was computing; the next time it waits for something
            if bytes == INSTRUCTION {
                return Ok(Thread { id, memory, registers, instruction, pending: None });
            }
            ptrace::cont(id, None)?;
            super::pause(std::time::Duration::from_millis(1));
        }
    }

    /// Gives the registers back; a call that was waited in begins again by itself.
    fn go_on(self) -> nix::Result<()> {
        ptrace::setregs(self.id, self.registers)?;
        ptrace::detach(self.id, self.pending)
    }

    fn attempt(&mut self, attempt: &Attempt) -> anyhow::Result<Result<u64, Errno>> {
        let here = libc::AT_FDCWD as u64;
        Ok(match attempt {
            Attempt::Open { path, flags } => {
                let text = self.text(path)?;
                let opened = self.call(libc::SYS_openat, &[here, text, (flags | libc::O_CLOEXEC) as u64, 0o600])?;
                if let Ok(descriptor) = opened {
                    self.call(libc::SYS_close, &[descriptor])?.context("close what was opened")?;
                    if flags & libc::O_CREAT != 0 {
                        self.call(libc::SYS_unlinkat, &[here, text, 0])?.context("remove what was made")?;
                    }
                }
                opened
            }
            Attempt::Execute(path) => {
                let text = self.text(path)?;
                self.call(libc::SYS_execve, &[text, 0, 0])?
            }
            Attempt::Tcp(address) => match self.call(libc::SYS_socket, &stream(libc::AF_INET))? {
                Err(errno) => Err(errno),
                Ok(descriptor) => {
                    let mut bytes = [0; 16];
                    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
                    bytes[4..8].copy_from_slice(&address.ip().octets());
                    let place = self.place(&bytes)?;
                    let connected = self.call(libc::SYS_connect, &[descriptor, place, bytes.len() as u64])?;
                    self.call(libc::SYS_close, &[descriptor])?.context("close the socket")?;
                    connected
                }
            },
            Attempt::Socket(family) => {
                // what a packet socket is made of is asked after the family was looked at
                let made = self.call(libc::SYS_socket, &datagram(*family))?;
                if let Ok(descriptor) = made {
                    self.call(libc::SYS_close, &[descriptor])?.context("close the socket")?;
                }
                made
            }
            Attempt::WriteExecute => {
                let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let made = self.call(libc::SYS_mmap, &[0, 4096, protection as u64, flags as u64, u64::MAX, 0])?;
                if let Ok(place) = made {
                    self.call(libc::SYS_munmap, &[place, 4096])?.context("give the memory back")?;
                }
                made
            }
            Attempt::Call(number, arguments) => self.call(*number, arguments)?,
        })
    }

    fn text(&self, text: &str) -> anyhow::Result<u64> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.place(&bytes)
    }

    /// Puts bytes where the thread can read them.
    fn place(&self, bytes: &[u8]) -> anyhow::Result<u64> {
        let place = self.registers.rsp - SCRATCH;
        self.memory.write_all_at(bytes, place).context("write to its memory")?;
        Ok(place)
    }

    /// One system call, made by the thread.
    fn call(&mut self, number: c_long, arguments: &[u64]) -> anyhow::Result<Result<u64, Errno>> {
        let argument = |position: usize| arguments.get(position).copied().unwrap_or(0);
        let mut registers = self.registers;
        registers.rip = self.instruction;
        registers.rax = number as u64;
        // not a call that is to be begun again
        registers.orig_rax = u64::MAX;
        (registers.rdi, registers.rsi, registers.rdx) = (argument(0), argument(1), argument(2));
        (registers.r10, registers.r8, registers.r9) = (argument(3), argument(4), argument(5));
        ptrace::setregs(self.id, registers)?;
        loop {
            ptrace::step(self.id, None)?;
            match waitpid(self.id, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => break,
                WaitStatus::Stopped(_, signal) => self.pending = Some(signal),
                WaitStatus::PtraceEvent(..) => {}
                other => bail!("it did not take a step but {other:?}"),
            }
        }
        let result = ptrace::getregs(self.id)?.rax.cast_signed();
        Ok(match i32::try_from(-result) {
            Ok(errno @ 1..4096) => Err(Errno::from_raw(errno)),
            _ => Ok(result.cast_unsigned()),
        })
    }
}

/// Arguments of socket(2) for a stream that does not wait.
fn stream(family: i32) -> [u64; 3] {
    [family as u64, (libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u64, 0]
}

fn datagram(family: i32) -> [u64; 3] {
    [family as u64, (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u64, 0]
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// What each line comes to in a process of ours, which goes on afterwards.
    fn tried(lines: &str) -> Vec<String> {
        // it waits in read(2) until its input ends
        let mut child: Child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut report = Vec::new();
        run(child.id().cast_signed(), lines.as_bytes(), &mut report).unwrap();
        child.stdin.take().unwrap().write_all(b"goes on").unwrap();
        assert_eq!(child.wait_with_output().unwrap().stdout, b"goes on");
        let report = String::from_utf8(report).unwrap();
        report.lines().map(|line| line.rsplit('\t').next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_process_makes_the_calls_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().display();
        let lines = format!("read /proc/self/status\nread {place}/none\ncreate {place}/new\nwrite-execute\nmodule");
        assert_eq!(tried(&lines)[..4], ["ok", "ENOENT", "ok", "ok"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "what was made for a trial is gone");
    }

    #[test]
    fn an_attempt_that_nobody_knows_is_refused() {
        for line in ["fly", "read etc/passwd", "tcp localhost:1", "socket token-ring"] {
            assert!(Attempt::parse(line).is_err(), "{line}");
        }
        let tcp = Attempt::Tcp("127.0.0.1:9".parse().unwrap());
        assert_eq!(Attempt::parse("tcp 127.0.0.1:9").unwrap(), tcp);
    }
}
