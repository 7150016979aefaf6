//! Starting a command.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::pty::{Winsize, openpty};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, open};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::program::Program;
use super::{Command, Mode};
use crate::agent::Agent;
use crate::listen;
use crate::reaper::{Exit, Reaper};

/// What a command finds in its environment unless the request says otherwise.
const ENVIRONMENT: [(&str, &str); 3] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("LANG", "C.UTF-8")];
/// Size of a new terminal.
const TERMINAL: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A command that was started. Dropped, it is killed with all it started.
pub(crate) struct Child {
    pub(crate) pid: i32,
    /// How it ended, once.
    pub(crate) exited: oneshot::Receiver<Exit>,
    pub(crate) streams: Streams,
    reaper: Arc<Reaper>,
    ends_with_us: bool,
}

/// The command's input and output.
pub(crate) enum Streams {
    /// None of it is here.
    None,
    Pipes {
        stdin: Option<pipe::Sender>,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
    Terminal(AsyncFd<OwnedFd>),
}

impl Child {
    /// Kills it with all it started.
    pub(super) fn kill(&self) {
        self.reaper.kill(self.pid);
    }

    /// Lets it go on by itself.
    pub(super) fn leave(mut self) {
        self.ends_with_us = false;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ends_with_us {
            self.kill();
        }
    }
}

/// Starts a command. There is no await in here: the reaper must know the child before it can end.
pub(crate) fn spawn(agent: &Agent, command: &Command, mode: Mode) -> std::io::Result<Child> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    let (mut terminal, mut pipes) = (None, None);
    // What is the child's, which closes here once it has it.
    let theirs: [OwnedFd; 3] = match mode {
        Mode::Background => [null.try_clone()?, null.try_clone()?, null],
        Mode::Collect => {
            let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
            pipes = Some((None, stdout, stderr));
            [null, out, err]
        }
        Mode::Pipes => {
            let ((input, stdin), (stdout, out), (stderr, err)) = (pipe()?, pipe()?, pipe()?);
            pipes = Some((Some(stdin), stdout, stderr));
            [input, out, err]
        }
        Mode::Terminal => {
            let pair = openpty(Some(&TERMINAL), None)?;
            // openpty leaves both inheritable; a copy in the child would keep the terminal from ever hanging up.
            rustix::io::fcntl_setfd(&pair.master, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::fcntl_setfd(&pair.slave, rustix::io::FdFlags::CLOEXEC)?;
            fcntl_setfl(&pair.master, fcntl_getfl(&pair.master)? | OFlags::NONBLOCK)?;
            terminal = Some(listen::watch(pair.master)?);
            [pair.slave.try_clone()?, pair.slave.try_clone()?, pair.slave]
        }
    };
    let (cgroup, folder) = agent.cgroups.create()?.unzip();
    let environment = environment(agent, command, mode == Mode::Terminal);
    let program = Program::new(command, &environment, &theirs, mode == Mode::Terminal)?;
    let pid = program.start(folder.as_ref().map(AsFd::as_fd))?;
    let exited = agent.reaper.adopt(
        pid,
        cgroup,
        mode != Mode::Background,
        command.jail.as_ref().map(|jail| Arc::clone(&jail.keep)),
    );
    let ends_with_us = true;
    let mut child = Child { pid, exited, streams: Streams::None, reaper: Arc::clone(&agent.reaper), ends_with_us };
    if let Some(terminal) = terminal {
        child.streams = Streams::Terminal(terminal);
    } else if let Some((stdin, stdout, stderr)) = pipes {
        child.streams = Streams::Pipes {
            stdin: stdin.map(pipe::Sender::from_owned_fd).transpose()?,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
        };
    }
    Ok(child)
}

/// A pipe's reading and writing end.
fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// What a command finds; what the request says goes before all else.
fn environment(agent: &Agent, command: &Command, terminal: bool) -> BTreeMap<String, String> {
    let own =
        ENVIRONMENT.iter().chain(agent.features.egress.then_some(&crate::egress::ENVIRONMENT).into_iter().flatten());
    let ssh = agent.features.ssh.then_some(("SSH_AUTH_SOCK", crate::ssh::SOCKET));
    let term = terminal.then_some(("TERM", "xterm"));
    let given = own.copied().chain(ssh).chain(term).map(|(name, value)| (name.to_owned(), value.to_owned()));
    given.chain(command.env.iter().cloned()).collect()
}
