//! Objects below the root: one for each workspace, command and pipeline. They show what the
//! publisher last heard from the actor.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use shipote_audit::Event;
use shipote_bus::service::MechanismInfo;
use shipote_bus::spec::WorkspaceSpec;
use shipote_bus::workspaces::{CommandInfo, FlowInfo, PipelineInfo, WorkspacesError};
use zbus::message::Header;

use super::doors::{ACTION_MANAGE, Doors, audited};
use crate::actor::Call;
use crate::error::Error;
use crate::state::Outcome;

/// A value that the publisher changes and properties read.
pub(super) type Shared<T> = Arc<RwLock<T>>;

fn read<T, R>(shared: &Shared<T>, get: impl FnOnce(&T) -> R) -> R {
    get(&shared.read().unwrap_or_else(PoisonError::into_inner))
}

/// As the property `ExitStatus` has it.
pub(super) fn exit_status(known: Option<i32>) -> i32 {
    known.unwrap_or(-1)
}

/// What a workspace's object shows.
pub(super) struct WorkspaceView {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: String,
    pub(super) spec: WorkspaceSpec,
    pub(super) created: u64,
    pub(super) uid: u32,
    pub(super) isolation: Vec<MechanismInfo>,
    pub(super) sleeps: u64,
    pub(super) wake_usec: u64,
    pub(super) given_back: u64,
}

pub(super) struct WorkspaceObject {
    pub(super) doors: Doors,
    pub(super) view: Shared<WorkspaceView>,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Workspace")]
impl WorkspaceObject {
    /// Ends every command (SIGTERM, then SIGKILL after `grace_ms` milliseconds; 0: at once) and
    /// the workspace. Returns the number of processes that were ended.
    async fn stop(&self, #[zbus(header)] header: Header<'_>, grace_ms: u64) -> Result<u32, WorkspacesError> {
        let workspace = read(&self.view, |v| v.name.clone());
        let call = Call::StopWorkspace { workspace: workspace.clone(), grace: Duration::from_millis(grace_ms) };
        let caller = self.doors.authority.check(&header, ACTION_MANAGE).await.map_err(Error::from)?;
        match audited(&self.doors, Event::WorkspaceStop, &workspace, caller, call).await?.outcome {
            Outcome::Reaped(count) => Ok(count),
            _ => Ok(0),
        }
    }

    /// ULID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        read(&self.view, |v| v.id.clone())
    }

    /// Name, unique among the living.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> String {
        read(&self.view, |v| v.name.clone())
    }

    /// `starting`, `running`, `sleeping` or `stopping`.
    #[zbus(property)]
    fn state(&self) -> String {
        read(&self.view, |v| v.state.clone())
    }

    /// The spec, as TOML; empty where somebody else than its creator or root asks.
    #[zbus(property(emits_changed_signal = "const"))]
    async fn spec(&self, #[zbus(header)] header: Option<Header<'_>>) -> String {
        let uid = read(&self.view, |v| v.uid);
        if !self.doors.is_owner(header.as_ref(), uid).await {
            return String::new();
        }
        read(&self.view, |v| toml::to_string(&v.spec).unwrap_or_default())
    }

    /// When it was created, microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created(&self) -> u64 {
        read(&self.view, |v| v.created)
    }

    /// User that created it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn created_by_uid(&self) -> u32 {
        read(&self.view, |v| v.uid)
    }

    /// How often it has fallen asleep.
    #[zbus(property(emits_changed_signal = "false"))]
    fn sleeps(&self) -> u64 {
        read(&self.view, |v| v.sleeps)
    }

    /// What the last waking took, microseconds; 0: it was never woken.
    #[zbus(property(emits_changed_signal = "false"))]
    fn wake_usec(&self) -> u64 {
        read(&self.view, |v| v.wake_usec)
    }

    /// Bytes of memory that it gave back when it fell asleep last.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_given_back(&self) -> u64 {
        read(&self.view, |v| v.given_back)
    }

    /// How its commands are isolated: name, `enforced`, `degraded` or `missing`, and the reason.
    #[zbus(property(emits_changed_signal = "const"))]
    fn isolation(&self) -> Vec<MechanismInfo> {
        read(&self.view, |v| v.isolation.clone())
    }
}

pub(super) struct CommandObject {
    pub(super) doors: Doors,
    pub(super) info: Shared<CommandInfo>,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Command")]
impl CommandObject {
    /// Sends a signal (1 to 64, signal(7)) to the command's process group.
    async fn signal(&self, #[zbus(header)] header: Header<'_>, signal: i32) -> Result<(), WorkspacesError> {
        let id = read(&self.info, |i| i.id.clone());
        let caller = self.doors.may_use_command(&header, &id).await?;
        audited(&self.doors, Event::CommandSignal, &id, caller, Call::Signal { command: id.clone(), signal }).await?;
        Ok(())
    }

    /// ULID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        read(&self.info, |i| i.id.clone())
    }

    /// Name of its workspace.
    #[zbus(property(emits_changed_signal = "const"))]
    fn workspace(&self) -> String {
        read(&self.info, |i| i.workspace.clone())
    }

    /// The program's name, or the node's label in a pipeline.
    #[zbus(property(emits_changed_signal = "const"))]
    fn label(&self) -> String {
        read(&self.info, |i| i.label.clone())
    }

    /// Program and arguments; empty where somebody else than the user who started it or root asks.
    #[zbus(property(emits_changed_signal = "const"))]
    async fn argv(&self, #[zbus(header)] header: Option<Header<'_>>) -> Vec<String> {
        let (argv, uid) = read(&self.info, |i| (i.argv.clone(), i.uid));
        if self.doors.is_owner(header.as_ref(), uid).await { argv } else { Vec::new() }
    }

    /// Process id on the host; 0 before it started.
    #[zbus(property)]
    fn pid(&self) -> i32 {
        read(&self.info, |i| i.pid)
    }

    /// `starting`, `running`, `waiting` (for its next start) or `ended`.
    #[zbus(property)]
    fn state(&self) -> String {
        read(&self.info, |i| i.state.clone())
    }

    /// Exit code, or 128 + signal; -1 while it lives.
    #[zbus(property)]
    fn exit_status(&self) -> i32 {
        read(&self.info, |i| exit_status(i.exit_status))
    }

    /// `exited`, `signalled`, `timeout`, `stopped`, `out-of-memory` (the kernel ended it for want of memory),
    /// `process-limit` (it was refused processes and failed), `quota` (its workspace's quota ended it), `spawn-failed`
    /// or `lost`; empty while it lives.
    #[zbus(property)]
    fn reason(&self) -> String {
        read(&self.info, |i| i.reason.clone())
    }

    /// User that started it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_uid(&self) -> u32 {
        read(&self.info, |i| i.uid)
    }

    /// When it was started, microseconds since the epoch.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started(&self) -> u64 {
        read(&self.info, |i| i.started)
    }
}

pub(super) struct PipelineObject {
    pub(super) doors: Doors,
    pub(super) info: Shared<PipelineInfo>,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Pipeline")]
impl PipelineObject {
    /// Ends every node (SIGTERM, then SIGKILL after `grace_ms` milliseconds; 0: at once). Returns
    /// the number of nodes.
    async fn stop(&self, #[zbus(header)] header: Header<'_>, grace_ms: u64) -> Result<u32, WorkspacesError> {
        let id = read(&self.info, |i| i.id.clone());
        let call = Call::StopPipeline { pipeline: id.clone(), grace: Duration::from_millis(grace_ms) };
        let caller = self.doors.may_use_pipeline(&header, &id).await?;
        match audited(&self.doors, Event::PipelineStop, &id, caller, call).await?.outcome {
            Outcome::Reaped(count) => Ok(count),
            _ => Ok(0),
        }
    }

    /// ULID.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        read(&self.info, |i| i.id.clone())
    }

    /// Label of the spec.
    #[zbus(property(emits_changed_signal = "const"))]
    fn label(&self) -> String {
        read(&self.info, |i| i.label.clone())
    }

    /// Name of its workspace.
    #[zbus(property(emits_changed_signal = "const"))]
    fn workspace(&self) -> String {
        read(&self.info, |i| i.workspace.clone())
    }

    /// `running` or `ended`.
    #[zbus(property)]
    fn state(&self) -> String {
        read(&self.info, |i| i.state.clone())
    }

    /// Exit status of the first node that failed, 0 where none did; -1 while it lives.
    #[zbus(property)]
    fn exit_status(&self) -> i32 {
        read(&self.info, |i| exit_status(i.exit_status))
    }

    /// Label, command id and process id of each node.
    #[zbus(property(emits_changed_signal = "const"))]
    fn nodes(&self) -> Vec<(String, String, i32)> {
        read(&self.info, |i| i.nodes.clone())
    }

    /// User that started it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started_by_uid(&self) -> u32 {
        read(&self.info, |i| i.uid)
    }
}

pub(super) struct FlowObject {
    pub(super) doors: Doors,
    pub(super) info: Shared<FlowInfo>,
}

impl FlowObject {
    /// The figures of this moment: the table of flows has them, the view does not.
    async fn figures(&self) -> FlowInfo {
        let known = read(&self.info, FlowInfo::clone);
        let (pipeline, edge) = (known.pipeline.clone(), known.edge);
        // where that fails the last figures are shown
        let _ = self.doors.actor.measure().await;
        let now = self
            .doors
            .actor
            .ask(move |_, flows| flows.flows().into_iter().find(|f| f.pipeline == pipeline && f.edge == edge));
        now.await.ok().flatten().unwrap_or(known)
    }
}

#[zbus::interface(name = "org.shipote.Workspaces1.Flow")]
impl FlowObject {
    /// Pipeline's id.
    #[zbus(property(emits_changed_signal = "const"))]
    fn pipeline(&self) -> String {
        read(&self.info, |i| i.pipeline.clone())
    }

    /// Producer: the node's label, and its output.
    #[zbus(property(emits_changed_signal = "const"))]
    fn from(&self) -> (String, String) {
        read(&self.info, |i| (i.from.clone(), i.from_output.clone()))
    }

    /// Consumer: the node's label, and its input.
    #[zbus(property(emits_changed_signal = "const"))]
    fn to(&self) -> (String, String) {
        read(&self.info, |i| (i.to.clone(), i.to_input.clone()))
    }

    /// Unix stream socket with the bytes: replay first, then live, raw, end of file when the
    /// producer ends.
    #[zbus(property(emits_changed_signal = "const"))]
    fn socket(&self) -> String {
        read(&self.info, |i| i.socket.clone())
    }

    /// `flowing` or `ended`.
    #[zbus(property)]
    fn state(&self) -> String {
        read(&self.info, |i| i.state.clone())
    }

    /// Discerned type, as `Primitive { name: "json" }`; empty before the sample is whole.
    #[zbus(property)]
    fn ty(&self) -> String {
        read(&self.info, |i| i.ty.clone())
    }

    /// MIME type; empty: not known.
    #[zbus(property(emits_changed_signal = "false"))]
    fn mime(&self) -> String {
        read(&self.info, |i| i.mime.clone())
    }

    /// View that suits it, as `tree` or `table`; empty: none.
    #[zbus(property(emits_changed_signal = "false"))]
    fn lens(&self) -> String {
        read(&self.info, |i| i.lens.clone())
    }

    /// Confidence of the discernment, 0 to 1.
    #[zbus(property(emits_changed_signal = "false"))]
    fn confidence(&self) -> f64 {
        read(&self.info, |i| i.confidence)
    }

    /// Bytes that went over the edge.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn bytes_total(&self) -> u64 {
        self.figures().await.bytes_total
    }

    /// Bytes a second.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn bytes_per_sec(&self) -> f64 {
        self.figures().await.bytes_per_sec
    }

    /// Subscribers now.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn subscribers(&self) -> u32 {
        self.figures().await.subscribers
    }
}
