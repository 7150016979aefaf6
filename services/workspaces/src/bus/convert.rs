//! From the state to what goes over the bus.

use shipote_bus::Service;
use shipote_bus::workspaces::{CommandInfo, PipelineInfo, RefusalInfo, WorkspaceInfo};
use shipote_sandbox::{Refusal, Why};
use ulid::Ulid;
use zbus::OwnedObjectPath;

use crate::actor::now;
use crate::state::{Command, Pipeline, Workspace};

/// Object of a workspace, command or pipeline. A ULID is a valid path element.
pub(super) fn object_path(kind: &str, id: Ulid) -> OwnedObjectPath {
    let path = format!("{}/{kind}/{id}", Service::Workspaces.path());
    OwnedObjectPath::try_from(path).expect("a ULID has only letters and digits")
}

/// Object of a tapped edge.
pub(super) fn flow_path(pipeline: Ulid, edge: usize) -> OwnedObjectPath {
    let path = format!("{}/flow/{pipeline}_{edge}", Service::Workspaces.path());
    OwnedObjectPath::try_from(path).expect("a ULID has only letters and digits")
}

pub(super) fn workspace(workspace: &Workspace, commands: usize) -> WorkspaceInfo {
    WorkspaceInfo {
        id: workspace.id.to_string(),
        name: workspace.name.clone(),
        state: workspace.state().to_owned(),
        commands: u32::try_from(commands).unwrap_or(u32::MAX),
        created: workspace.created,
        uptime_ms: now().saturating_sub(workspace.created) / 1000,
        uid: workspace.uid,
        ephemeral: workspace.ephemeral,
        sleeps: Some(workspace.sleep.times),
        wake_usec: Some(workspace.sleep.wake_usec),
        given_back: Some(workspace.sleep.given_back),
        labels: workspace.spec.labels.clone(),
    }
}

pub(super) fn command(command: &Command, log_bytes: Option<u64>) -> CommandInfo {
    let argv = [&command.what.command.exec].into_iter().chain(&command.what.command.argv).cloned().collect();
    CommandInfo {
        id: command.what.id.to_string(),
        workspace: command.workspace_name.clone(),
        label: command.what.label.clone(),
        argv,
        pid: command.pid,
        state: command.phase.as_str().to_owned(),
        exit_status: command.exit_status,
        reason: command.reason.to_owned(),
        started: command.started,
        ended: command.ended,
        restarts: command.relaunches,
        uid: command.uid,
        pipeline: command.pipeline.map(|p| p.to_string()).unwrap_or_default(),
        log_bytes,
    }
}

pub(super) fn pipeline(pipeline: &Pipeline, nodes: Vec<(String, String, i32)>) -> PipelineInfo {
    PipelineInfo {
        id: pipeline.what.id.to_string(),
        label: pipeline.what.label.clone(),
        workspace: pipeline.workspace_name.clone(),
        state: if pipeline.exit_status.is_some() { "ended" } else { "running" }.to_owned(),
        exit_status: pipeline.exit_status,
        nodes,
        taps: if pipeline.what.tap { u32::try_from(pipeline.what.edges.len()).unwrap_or(u32::MAX) } else { 0 },
        started: pipeline.started,
        uid: pipeline.uid,
    }
}

pub(super) fn refusal(refusal: &Refusal) -> RefusalInfo {
    let way_out = match refusal.why {
        Why::Absent => "grant it with `[[paths]]`, or more with `permissions.filesystem`",
        Why::ReadOnly => "grant it with `[[paths]]` and `access = \"write\"`, or write to /work or /tmp",
        Why::Permission => "its mode does not let the workspace's user; grant a copy, or change the mode",
        Why::Network => "`permissions.networking`; with `outbound`, through the proxy that `http_proxy` names",
        Why::SystemCall => "none: no command of a workspace may make this call",
        Why::Unseen => "the process that looks at refusals has ended: make the workspace anew to be told of them",
        _ => "",
    };
    let untold = matches!(refusal.why, Why::More | Why::Unseen);
    RefusalInfo {
        system_call: if untold { String::new() } else { refusal.system_call() },
        object: refusal.object.clone(),
        error: if untold { String::new() } else { refusal.error() },
        why: refusal.why.as_str().to_owned(),
        way_out: way_out.to_owned(),
    }
}
