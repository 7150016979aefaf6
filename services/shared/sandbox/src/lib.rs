//! Sandboxed commands: a workspace is a set of namespaces with a root of its own, and commands are
//! started in it one by one.
//!
//! Three kinds of process, each doing little:
//!
//! ```text
//!   service ── control socket ──▶ spawner     forked in main, one thread, keeps the service's rights;
//!      │                             │          also starts helpers, processes of the service's own making
//!      │                             │ clone3: user, mount, pid, ipc, uts and network namespaces
//!      └──── keeper socket ───────▶ keeper    PID 1 of one workspace: builds its root, reaps, reports
//!                                    │ clone3, sharing memory until exec
//!                                 command     landlock, seccomp, no capability, its own session and
//!                                             cgroup namespace
//! ```
//!
//! The [`Spawner`] exists because a service confines itself, and a confined process can neither mount
//! nor cheaply fork once it has grown. Forking a small single-threaded process costs the same however
//! large the service is.
//!
//! What most workspaces have in common is made once: their root, in a mount namespace of which each gets a copy. What is
//! dear and the same for all is made ahead: a network namespace. `docs/speed.md` has what a command and a workspace cost beside
//! a plain child process and bubblewrap (`cargo xtask bench sandbox`).
//!
//! Not for: cgroup hierarchies and limits (a workspace is put into a cgroup it is given), policy on who
//! may run what, and restarting.
//!
//! Invariants: a command is never started with less than its workspace's report says is enforced; no
//! process, mount or descriptor outlives its workspace, and no workspace its connection (a closed socket
//! ends it; whoever wants a workspace to outlive the service has something else hold a duplicate, and the next
//! service [adopts](Keeper::adopt) it); a command's environment, descriptors and signal state are exactly what was asked for.

mod channel;
mod client;
mod connection;
mod error;
mod grants;
mod ids;
mod keeper;
mod probe;
mod refusal;
mod spawner;
mod spec;
mod sys;
mod wire;

pub use channel::{AsyncChannel, Channel, Message};
pub use client::{Adopted, Doors, Event, ExitStream, Held, Keeper, Running, Spawned};
pub use error::{SandboxError, Step};
pub use ids::SpawnerConfig;
pub use keeper::HostMark;
pub use probe::probe;
pub use refusal::{Refusal, Why};
pub use shipote_confinement::{Enforcement, Mechanism};
pub use spawner::Spawner;
pub use spec::{Access, CommandSpec, HostFiles, Network, PathGrant, Rlimits, SandboxSpec, Stdio, Terminal, Usage};

/// TCP port of a workspace's loopback at which the door to the proxy listens, where it has one.
pub const DOOR_PROXY: u16 = 3128;
/// UDP port of a workspace's loopback that queries for names are sent to, where it has a door for them.
pub const DOOR_NAMES: u16 = 53;
