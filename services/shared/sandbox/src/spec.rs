//! What a workspace and a command are made of.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// What network a workspace has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A network namespace with nothing in it, the loopback interface down.
    #[default]
    None,
    /// As `None` with the loopback interface up: commands of one workspace reach each other.
    Loopback,
    /// As `Loopback`, with doors in it that the keeper opened and that somebody outside serves; see
    /// [`crate::Keeper::doors`].
    Outbound,
    /// The network of the service: no isolation at all, reported as a missing mechanism.
    Host,
}

/// What a workspace sees of the host's files beside the system's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostFiles {
    /// Nothing.
    #[default]
    None,
    /// Every directory of the host's root but those that hold devices, processes, sockets and scratch (`/dev`,
    /// `/proc`, `/sys`, `/run`, `/tmp`), read-only, as far as file modes let the workspace's user read.
    Read,
    /// As `Read`, writable but for the system (`/usr`, `/bin`, `/lib*`, `/etc`, `/boot`), as far as file modes let
    /// the workspace's user write.
    Write,
}

/// How a granted path may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read and execute.
    #[default]
    Read,
    /// Read, execute, write, create, remove; as far as the host's file modes let the workspace's user, which
    /// on the host is a user of its own and owns nothing.
    Write,
    /// As `Write`, with the rights of the path's owner: its files are the command's own, and what the
    /// command makes belongs to the owner (an id-mapped mount). The caller of this library answers for who
    /// may grant that. Not for what root owns.
    Owner,
    /// As `Owner`, for a directory that was made for a workspace: one that root owns and that is empty is given an
    /// owner of its own first, which nothing else on the host is.
    Own,
    /// A directory that is written to through an overlay: what is there stays as it is, what is changed lies in a layer
    /// of the workspace's own. With the rights of the path's owner, as with `Owner`; where root owns it, with those of
    /// another.
    Overlay,
    /// As `Own`, and seen by nobody: where the layers of those granted as `Overlay` are. One at most; without it they are
    /// in the workspace's scratch, and go with it.
    Layers,
    /// A Unix socket to connect to, as far as its mode lets the workspace's user. Anything else is refused.
    Socket,
}

/// A path of the host that a workspace sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathGrant {
    /// The path on the host; absolute, and without symbolic links at the time when it is opened: resolve them, look at
    /// what they lead to, and give what you have looked at.
    pub path: PathBuf,
    /// Where it appears in the workspace; absolute; the same path when absent.
    pub target: Option<PathBuf>,
    /// How it may be used.
    pub access: Access,
}

/// Resource limits (setrlimit(2)); soft and hard alike. Absent: as the service has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimits {
    /// Address space of one process, bytes.
    pub mem_bytes: Option<u64>,
    /// Processes and threads of the workspace's user at one time.
    pub nproc: Option<u64>,
    /// Open descriptors of one process.
    pub nofile: Option<u64>,
    /// Largest file a process may write, bytes.
    pub fsize_bytes: Option<u64>,
    /// CPU time of one process, seconds.
    pub cpu_seconds: Option<u64>,
    /// Largest core dump, bytes; absent means none.
    pub core_bytes: Option<u64>,
}

impl Rlimits {
    /// The stricter of each pair: a command can ask for less than its workspace has, never for more.
    #[must_use]
    pub fn tightened_by(self, other: Self) -> Self {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            mem_bytes: least(self.mem_bytes, other.mem_bytes),
            nproc: least(self.nproc, other.nproc),
            nofile: least(self.nofile, other.nofile),
            fsize_bytes: least(self.fsize_bytes, other.fsize_bytes),
            cpu_seconds: least(self.cpu_seconds, other.cpu_seconds),
            core_bytes: least(self.core_bytes, other.core_bytes),
        }
    }
}

/// A workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Host name inside, at most 64 bytes.
    pub hostname: String,
    /// Its network.
    pub network: Network,
    /// Size of the private writable space (`/work`, `/tmp` and `/dev/shm` together), bytes; it is memory.
    pub scratch_bytes: u64,
    /// Paths of the host it sees besides the system's `/usr` and the like.
    pub paths: Vec<PathGrant>,
    /// Paths inside that are covered by nothing: an empty directory or an empty file.
    pub hidden: Vec<PathBuf>,
    /// The host's files that it sees; where not none, `/etc` is the host's too.
    pub host_files: HostFiles,
    /// As `hidden`, but without an error for those that are not there. For what must not be seen whoever asks.
    pub protected: Vec<PathBuf>,
    /// `/proc` shows the processes that the service sees instead of the workspace's own; read-only, and none of
    /// them can be signalled.
    pub host_processes: bool,
    /// Limits of each of its processes.
    pub rlimits: Rlimits,
    /// CPUs its processes may run on; empty: as the service.
    pub cpu_affinity: Vec<usize>,
    /// Directory of an existing cgroup v2 that its first process starts in, and so all whose command names
    /// no other. For commands in cgroups of their own give a leaf, and put theirs beside it.
    pub cgroup: Option<PathBuf>,
    /// Explain what commands are refused ([`crate::Event::Refused`]): each of their system calls that is refused or
    /// names a path is looked at before it is made, which costs it some microseconds.
    pub explain: bool,
    /// Refuse to make the workspace when a mechanism cannot be enforced fully.
    pub strict: bool,
    /// Somebody besides the service holds on to the connection (see [`crate::Keeper::adopt`]). Then an ended
    /// workspace's keeper stays until each end was acknowledged and all it holds was released, and where the
    /// connection is lost for good its processes get SIGTERM, and SIGKILL so many milliseconds later. Absent:
    /// the workspace ends at once with its connection.
    pub handover_ms: Option<u64>,
}

impl Default for SandboxSpec {
    fn default() -> Self {
        Self {
            hostname: "workspace".to_owned(),
            network: Network::None,
            scratch_bytes: 64 << 20,
            paths: Vec::new(),
            hidden: Vec::new(),
            host_files: HostFiles::None,
            protected: Vec::new(),
            host_processes: false,
            rlimits: Rlimits::default(),
            cpu_affinity: Vec::new(),
            cgroup: None,
            explain: false,
            strict: false,
            handover_ms: None,
        }
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// A command to be started in a workspace.
#[derive(Debug, Clone, Default)]
pub struct CommandSpec {
    /// Program: a path inside the workspace, or a name looked up in the `PATH` of `env`.
    pub exec: String,
    /// Arguments, without the program's name.
    pub argv: Vec<String>,
    /// Its whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside the workspace; empty: `/work`.
    pub cwd: PathBuf,
    /// Limits stricter than the workspace's.
    pub rlimits: Rlimits,
    /// CPUs it may run on; empty: as the workspace.
    pub cpu_affinity: Vec<u32>,
    /// Give it a terminal of the workspace's own as stdin, stdout and stderr.
    pub terminal: Option<Terminal>,
    /// An open directory of a cgroup v2 that it starts in; beside or beneath the workspace's.
    pub cgroup: Option<Arc<OwnedFd>>,
    /// Further descriptors it is given, by their number in the command; numbers from 3 to 1023. None may be
    /// of a directory, which would lead out of the workspace's root.
    pub descriptors: Vec<(i32, Arc<OwnedFd>)>,
    /// Descriptors that are not for the command: the keeper holds them, each under an owner (this command's id or
    /// another number) and a tag, until they are released or the owner's end is acknowledged, and gives them to a
    /// service that takes over.
    pub held: Vec<(u64, u8, Arc<OwnedFd>)>,
    /// The tag under which the keeper holds the master of the command's terminal as well, owned by the command's id.
    pub hold_terminal: Option<u8>,
}

/// The three standard descriptors of a command. Absent ones are `/dev/null`. With a terminal all three
/// are the terminal, and these are not used.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// What a command has used, as the kernel accounted it when it was reaped (with its own reaped children).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub user_usec: u64,
    /// CPU time in the kernel, microseconds.
    pub system_usec: u64,
    /// Largest resident set, KiB.
    pub max_rss_kib: u64,
}

impl SandboxSpec {
    /// Refuses what can be seen to be wrong without asking the kernel.
    pub(crate) fn check(&self) -> Result<(), crate::SandboxError> {
        let refuse = |text: String| Err(crate::SandboxError::Spec(text));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if self.hostname.is_empty() || self.hostname.len() > 64 || !self.hostname.bytes().all(plain) {
            return refuse("host name: has to be 1 to 64 letters, digits, hyphens, dots and underscores".to_owned());
        }
        if self.scratch_bytes < 1 << 20 {
            return refuse(format!("scratch space of {} bytes: at least 1 MiB is needed", self.scratch_bytes));
        }
        let targets = self.paths.iter().flat_map(|grant| [Some(&grant.path), grant.target.as_ref()]).flatten();
        for path in targets.chain(&self.hidden).chain(&self.protected) {
            let plain = path.is_absolute()
                && path.components().skip(1).all(|part| matches!(part, std::path::Component::Normal(_)));
            if !plain {
                return refuse(format!("path {}: has to be absolute and without ..", path.display()));
            }
        }
        if self.paths.iter().filter(|grant| grant.access == Access::Layers).count() > 1 {
            return refuse("layers of overlays: in one folder, not in several".to_owned());
        }
        for grant in &self.paths {
            let target = grant.target.as_ref().unwrap_or(&grant.path);
            if target.as_os_str() == "/" || grant.path.as_os_str() == "/" {
                return refuse("path /: grant what is beneath it".to_owned());
            }
        }
        Ok(())
    }
}
