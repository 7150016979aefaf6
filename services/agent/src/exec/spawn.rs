//! Starting a command.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::Arc;

use nix::pty::{Winsize, openpty};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

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
    let mut process = std::process::Command::new(&command.argv[0]);
    process.args(&command.argv[1..]).env_clear().envs(ENVIRONMENT);
    if agent.features.egress {
        process.envs(crate::egress::ENVIRONMENT);
    }
    if agent.features.ssh {
        process.env("SSH_AUTH_SOCK", crate::ssh::SOCKET);
    }
    if let Some(directory) = &command.workdir {
        process.current_dir(directory);
    }
    let mut terminal = None;
    match mode {
        Mode::Background => drop(process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())),
        Mode::Collect => drop(process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())),
        Mode::Pipes => drop(process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())),
        Mode::Terminal => {
            let pair = openpty(Some(&TERMINAL), None)?;
            // openpty leaves both inheritable; a copy in the child would keep the terminal from ever hanging up.
            rustix::io::fcntl_setfd(&pair.master, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::fcntl_setfd(&pair.slave, rustix::io::FdFlags::CLOEXEC)?;
            fcntl_setfl(&pair.master, fcntl_getfl(&pair.master)? | OFlags::NONBLOCK)?;
            process.stdin(pair.slave.try_clone()?).stdout(pair.slave.try_clone()?).stderr(pair.slave);
            process.env("TERM", "xterm");
            terminal = Some(listen::watch(pair.master)?);
        }
    }
    process.envs(command.env.iter().map(|(name, value)| (name, value)));
    let (cgroup, join) = agent.cgroups.create()?.unzip();
    let controls_terminal = terminal.is_some();
    let jail = command.jail.clone();
    let groups: Vec<Gid> = jail.iter().flat_map(|jail| &jail.groups).map(|&gid| Gid::from_raw(gid)).collect();
    // SAFETY: between fork and exec only system calls are made (setsid, ioctl, write, chroot and those that set ids), on
    // descriptors that are open and paths and lists made before. `jail` is never dropped in the child: exec replaces it.
    unsafe {
        process.pre_exec(move || {
            rustix::process::setsid()?;
            if controls_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            if let Some(join) = &join {
                rustix::io::write(join.as_fd(), b"0")?;
            }
            if let Some(jail) = &jail {
                rustix::process::chroot(&jail.root)?;
                rustix::process::chdir(&jail.directory)?;
                setgroups(&groups)?;
                setgid(Gid::from_raw(jail.gid))?;
                setuid(Uid::from_raw(jail.uid))?;
            }
            Ok(())
        });
    }
    let mut started = process.spawn()?;
    let pid = started.id().cast_signed();
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
    } else if let (Some(stdout), Some(stderr)) = (started.stdout.take(), started.stderr.take()) {
        child.streams = Streams::Pipes {
            stdin: started.stdin.take().map(|stdin| pipe::Sender::from_owned_fd(stdin.into())).transpose()?,
            stdout: pipe::Receiver::from_owned_fd(stdout.into())?,
            stderr: pipe::Receiver::from_owned_fd(stderr.into())?,
        };
    }
    Ok(child)
}
