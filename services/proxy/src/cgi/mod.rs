//! Programs that answer requests by CGI (RFC 3875).
//!
//! The proxy runs nothing itself. A worker makes three pipes and asks whoever took [`crate::Engine::take_starts`] (on the
//! bus: the workspaces service) to run the program at their other ends; what comes back is handled as an upstream's
//! answer is. A program that nobody waits for any more writes into a closed pipe, and its time limit ends it whatever
//! becomes of the proxy.

mod answer;
mod environment;
mod pass;
mod program;

use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub(crate) use pass::{Way, pass};
pub(crate) use program::Output;

/// Programs that are being asked for at once; more wait for their turn, within their time limit.
const ASKED_MAX: usize = 256;

/// One worker's wish: this program in this workspace.
#[derive(Debug)]
pub struct Start {
    /// Name of the workspace.
    pub workspace: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, each `KEY=VALUE`.
    pub env: Vec<String>,
    /// Working folder inside; absent: the workspace's.
    pub cwd: Option<String>,
    /// Bytes of memory, on top of what its workspace has.
    pub memory_bytes: Option<u64>,
    /// Processes, likewise.
    pub processes: Option<u32>,
    /// How long it may run.
    pub time_limit: Duration,
    /// Its standard input, output and error.
    pub stdio: [OwnedFd; 3],
    /// Where the answer goes, once it runs: a pipe that says how it ended, as one line of JSON
    /// ([`shipote_bus::workspaces::Completion`]). The error says why it does not run.
    pub answer: oneshot::Sender<Result<OwnedFd, String>>,
}

/// The workers' end.
pub(crate) type Starts = mpsc::Sender<Start>;

pub(crate) fn channel() -> (Starts, mpsc::Receiver<Start>) {
    mpsc::channel(ASKED_MAX)
}
