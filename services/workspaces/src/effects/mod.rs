//! The I/O of the service, behind a trait: the actor says what is to be done, the answers
//! come back as inputs.

mod adoption;
mod ahead;
mod attach;
mod breach;
mod cgroups;
mod completion;
mod explanations;
mod flows;
mod foreign;
pub(crate) mod gauge;
mod joining;
mod journal;
mod keepers;
mod kept;
mod kept_size;
mod launch;
mod lingering;
mod live;
mod log;
mod numbers;
mod sleep;
mod slots;
mod wiring;

use std::os::fd::OwnedFd;
use std::time::Duration;

use ulid::Ulid;

use crate::actor::FlowSource;
use crate::error::Error;
use crate::state::{Command, Pipeline, Record, Target, Usec, Workspace};

pub(crate) use ahead::Ahead;
pub(crate) use attach::Attachments;
pub(crate) use cgroups::{Cgroups, Share};
pub(crate) use explanations::Explanations;
pub(crate) use foreign::{Foreigners, Runner};
pub(crate) use journal::Journal;
pub(crate) use kept::KeptFolders;
pub(crate) use kept_size::KeptSize;
pub(crate) use live::{Live, Means};
pub(crate) use log::{LogStore, Selection};

/// Descriptors that a caller hands over for a command or a pipeline.
#[derive(Debug, Default)]
pub(crate) struct Handed {
    /// Standard input, output and error; none: output is kept in a log.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Where the completion is written.
    pub(crate) completion: Option<OwnedFd>,
}

/// What the actor has done. Nothing here blocks; nothing here decides.
pub(crate) trait Effects: FlowSource {
    /// Keeps the descriptors of a command or pipeline until it starts or fails to.
    fn hand_over(&mut self, id: Ulid, handed: Handed);
    /// Closes the descriptors of a command or pipeline that was refused.
    fn take_back(&mut self, id: Ulid);
    /// Names a workspace that is to be made after one that was made ahead, where that is like it.
    fn lend(&mut self, _target: &mut Target, _strict: bool, _uid: u32) {}
    /// Makes a workspace's namespaces; answers `KeeperReady` or `KeeperFailed`.
    fn start_keeper(&mut self, workspace: &Workspace);
    /// Ends everything in a workspace; answers `KeeperEnded`.
    fn end_keeper(&mut self, workspace: Ulid, grace: Duration);
    /// The workspace is gone: drop what is left of its keeper.
    fn forget_keeper(&mut self, workspace: Ulid);
    /// Makes the pipes and taps of a pipeline and hands their ends to its nodes.
    fn wire(&mut self, pipeline: &Pipeline, labels: &[&str]) -> Result<(), Error>;
    /// Starts a command; answers `Started` or `StartFailed`, later `Exited`.
    fn start_command(&mut self, workspace: &Workspace, command: &Command);
    /// Signals a command's process group.
    fn signal(&mut self, workspace: Ulid, command: Ulid, signal: i32);
    /// Looks whether something goes on in a workspace that seems idle since then; answers `Looked`.
    fn look(&mut self, workspace: &Workspace, since: Usec);
    /// Puts a workspace to sleep or wakes it; answers `Slept` or `Woken`.
    fn sleep(&mut self, workspace: Ulid, asleep: bool);
    /// Ends what ended commands left behind in a workspace.
    fn sweep(&mut self, workspace: Ulid);
    /// Closes the descriptors of a command that will not start.
    fn drop_descriptors(&mut self, command: Ulid);
    /// The terminal's master of a command that has just started.
    fn take_terminal(&mut self, command: Ulid) -> Option<OwnedFd>;
    /// Tells whoever waits that a command or pipeline has ended.
    fn complete(&mut self, id: Ulid, status: i32, reason: &'static str, message: String);
    /// A pipeline ended so many microseconds ago: its flows serve their replay for a while longer.
    fn pipeline_ended(&mut self, pipeline: &Pipeline, since: Usec);
    /// Closes the sockets of a pipeline's flows; the pipeline goes on.
    fn close_flows(&mut self, pipeline: Ulid);
    /// Drops a pipeline's flows.
    fn forget_flows(&mut self, pipeline: Ulid);
    /// Writes down what has changed, for the next instance of the service.
    /// True: there are so many by now that they had better be written anew.
    fn record(&mut self, records: &[Record]) -> bool;
    /// Writes everything down anew.
    fn rewrite(&mut self, records: &[Record]);
    /// The end of a launch is written down: its keeper need not remember it.
    fn exit_recorded(&mut self, id: Ulid, command: Option<&Command>);
    /// Removes a command's log.
    fn forget_log(&mut self, command: Ulid);
}
