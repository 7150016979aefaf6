//! Client proxies. The documentation of each method is the interface's own.

use std::collections::BTreeMap;

use zbus::{OwnedFd, OwnedObjectPath};

use super::{
    CommandInfo, DiscernmentInfo, FlowInfo, PipelineInfo, RefusalInfo, RunOptions, WorkspaceInfo, WorkspacesError,
};
use crate::service::MechanismInfo;

type Options<'a> = BTreeMap<&'a str, zbus::Variant<'a>>;

/// Client of the saved pipelines, at the root object. The documentation of each method is the interface's own.
#[zbus::proxy(
    interface = "org.shipote.Workspaces1.Saved",
    default_service = "org.shipote.Workspaces1",
    default_path = "/org/shipote/Workspaces1"
)]
pub trait Saved {
    /// See the interface.
    fn save(&self, name: &str, spec: &str, options: Options<'_>) -> Result<(), WorkspacesError>;
    /// See the interface.
    fn list(&self, options: Options<'_>) -> Result<Vec<String>, WorkspacesError>;
    /// See the interface.
    fn get(&self, name: &str, options: Options<'_>) -> Result<String, WorkspacesError>;
    /// See the interface.
    fn drop(&self, name: &str, options: Options<'_>) -> Result<bool, WorkspacesError>;
}

/// Client of the root object.
#[zbus::proxy(
    interface = "org.shipote.Workspaces1.Manager",
    default_service = "org.shipote.Workspaces1",
    default_path = "/org/shipote/Workspaces1"
)]
pub trait Manager {
    /// See the interface.
    fn create_workspace(
        &self,
        name: &str,
        spec: &str,
        options: Options<'_>,
    ) -> Result<(OwnedObjectPath, String, Vec<MechanismInfo>), WorkspacesError>;
    /// See the interface.
    fn list_workspaces(&self, options: Options<'_>) -> Result<Vec<WorkspaceInfo>, WorkspacesError>;
    /// See the interface.
    fn get_workspace(&self, workspace: &str) -> Result<OwnedObjectPath, WorkspacesError>;
    /// See the interface.
    fn stop_workspace(&self, workspace: &str, grace_ms: u64, options: Options<'_>) -> Result<u32, WorkspacesError>;
    /// See the interface.
    fn publish(
        &self,
        workspace: &str,
        add: &[u16],
        remove: &[u16],
        options: Options<'_>,
    ) -> Result<Vec<u16>, WorkspacesError>;
    /// See the interface.
    fn run(
        &self,
        workspace: &str,
        argv: &[&str],
        options: &RunOptions,
        stdio: Vec<zbus::Fd<'_>>,
    ) -> Result<(OwnedObjectPath, String, Vec<OwnedFd>), WorkspacesError>;
    /// See the interface.
    fn list_commands(&self, workspace: &str, options: Options<'_>) -> Result<Vec<CommandInfo>, WorkspacesError>;
    /// See the interface.
    fn signal_command(&self, command: &str, signal: i32) -> Result<(), WorkspacesError>;
    /// See the interface.
    fn explain_command(&self, command: &str) -> Result<Vec<RefusalInfo>, WorkspacesError>;
    /// See the interface.
    fn open_log(&self, command: &str, stream: &str, options: Options<'_>) -> Result<OwnedFd, WorkspacesError>;
    /// See the interface.
    fn open_input(&self, command: &str, options: Options<'_>) -> Result<(OwnedFd, bool), WorkspacesError>;
    /// See the interface.
    fn resize_terminal(&self, command: &str, columns: u16, rows: u16) -> Result<(), WorkspacesError>;
    /// See the interface.
    #[allow(clippy::type_complexity)]
    fn run_pipeline(
        &self,
        workspace: &str,
        spec: &str,
        vars: BTreeMap<&str, &str>,
        options: Options<'_>,
        stdio: Vec<zbus::Fd<'_>>,
    ) -> Result<(OwnedObjectPath, String, Vec<(String, i32)>, Vec<OwnedFd>), WorkspacesError>;
    /// See the interface.
    fn stop_pipeline(&self, pipeline: &str, grace_ms: u64, options: Options<'_>) -> Result<u32, WorkspacesError>;
    /// See the interface.
    fn list_pipelines(&self, options: Options<'_>) -> Result<Vec<PipelineInfo>, WorkspacesError>;
    /// See the interface.
    fn list_flows(&self, options: Options<'_>) -> Result<Vec<FlowInfo>, WorkspacesError>;
    /// See the interface.
    fn drop_flows(&self, pipeline: &str, options: Options<'_>) -> Result<bool, WorkspacesError>;
    /// See the interface.
    fn discern(&self, sample: &[u8], hint_path: &str, complete: bool) -> Result<DiscernmentInfo, WorkspacesError>;
    /// See the interface.
    fn connect(&self, workspace: &str, port: u16, options: Options<'_>) -> Result<OwnedFd, WorkspacesError>;
    /// See the interface.
    fn serve(
        &self,
        workspace: &str,
        argv: &[&str],
        options: &RunOptions,
        stdio: Vec<zbus::Fd<'_>>,
    ) -> Result<(OwnedObjectPath, String, Vec<OwnedFd>), WorkspacesError>;
    /// See the interface.
    fn capabilities(&self) -> Result<Vec<MechanismInfo>, WorkspacesError>;
}

/// Client of a workspace's object.
#[zbus::proxy(interface = "org.shipote.Workspaces1.Workspace", default_service = "org.shipote.Workspaces1")]
pub trait Workspace {
    /// See the interface.
    fn stop(&self, grace_ms: u64) -> Result<u32, WorkspacesError>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn spec(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "false"))]
    fn sleeps(&self) -> zbus::Result<u64>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "false"))]
    fn wake_usec(&self) -> zbus::Result<u64>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_given_back(&self) -> zbus::Result<u64>;
    /// See the interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn isolation(&self) -> zbus::Result<Vec<MechanismInfo>>;
}

/// Client of a command's object.
#[zbus::proxy(interface = "org.shipote.Workspaces1.Command", default_service = "org.shipote.Workspaces1")]
pub trait Command {
    /// See the interface.
    fn signal(&self, signal: i32) -> Result<(), WorkspacesError>;
    /// See the interface.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property)]
    fn exit_status(&self) -> zbus::Result<i32>;
}

/// Client of a pipeline's object.
#[zbus::proxy(interface = "org.shipote.Workspaces1.Pipeline", default_service = "org.shipote.Workspaces1")]
pub trait Pipeline {
    /// See the interface.
    fn stop(&self, grace_ms: u64) -> Result<u32, WorkspacesError>;
    /// See the interface.
    #[zbus(property)]
    fn state(&self) -> zbus::Result<String>;
}

/// Client of a tapped edge's object.
#[zbus::proxy(interface = "org.shipote.Workspaces1.Flow", default_service = "org.shipote.Workspaces1")]
pub trait Flow {
    /// See the interface.
    #[zbus(property(emits_changed_signal = "const"))]
    fn socket(&self) -> zbus::Result<String>;
    /// See the interface.
    #[zbus(property)]
    fn ty(&self) -> zbus::Result<String>;
}
