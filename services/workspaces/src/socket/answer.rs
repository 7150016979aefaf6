//! From a request to its response.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shipote_audit::Event;
use shipote_bus::spec::{Filesystem, Networking, RestartPolicy, SpecError};
use shipote_workspace_protocol::spec::{WorkspaceId, WorkspaceSpec};
use shipote_workspace_protocol::{
    CommandInfo, FRAME_MAX, FlowInfo, FlowThroughputInfo, Request, Response, WorkspaceSummary, convert,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use ulid::Ulid;

use super::Door;
use crate::actor::{Call, Done, now};
use crate::audited::{By, audited};
use crate::effects::{Handed, Selection};
use crate::error::Error;
use crate::request::new_command;
use crate::saved::Kept;
use crate::state::{CommandPhase, Outcome, State, Target, manages};

/// Most bytes of a log in one answer: what a frame holds beside the variant and the length.
const LOG_MAX: u64 = FRAME_MAX as u64 - 16;

/// A refused spec, as the doors say it.
pub(super) fn invalid(what: &str) -> impl FnOnce(SpecError) -> Error {
    let what = what.to_owned();
    move |error| Error::InvalidSpec(format!("{what}: {error}"))
}

pub(super) fn unexpected() -> Error {
    Error::Failed("the state actor gave an answer of another kind; this is a defect of Shipote".to_owned())
}

/// Refuses a spec that asks for more than its caller may give: anything of the host.
fn check_rights(spec: &shipote_bus::spec::WorkspaceSpec, uid: u32) -> Result<(), Error> {
    if manages(uid) {
        return Ok(());
    }
    let permissions = &spec.permissions;
    let asked = [
        ("permissions.networking", !matches!(permissions.networking, Networking::None | Networking::Loopback)),
        ("permissions.filesystem", permissions.filesystem != Filesystem::None),
        ("permissions.ipc", !permissions.ipc.allow.is_empty()),
        ("permissions.processes", permissions.processes),
        ("paths", !spec.paths.is_empty()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        None => Ok(()),
        Some((field, _)) => Err(Error::NotAuthorized(format!(
            "create workspace: {field}: what is the host's takes the right to manage workspaces; leave it out, or ask \
             for it over the bus (`shipote workspace create`)"
        ))),
    }
}

impl Door {
    /// Answers one request of the user `uid`.
    pub(super) async fn answer(&self, uid: u32, request: Request) -> Response {
        let by = By { uid, door: shipote_audit::Door::Socket };
        self.dispatch(by, request).await.unwrap_or_else(|error| Response::Error { message: error.to_string() })
    }

    async fn dispatch(&self, by: By, request: Request) -> Result<Response, Error> {
        match request {
            Request::Ping => Ok(Response::Pong),
            Request::Health => self.health().await,
            Request::WorkspaceCreate { spec } => self.create(by, spec).await,
            Request::WorkspaceList => self.workspaces().await,
            Request::WorkspaceStop { id, grace_ms } => self.stop_workspace(by, id, grace_ms).await,
            Request::Run { workspace, exec, argv, envp, restart_on_failure } => {
                let command = shipote_bus::spec::NodeCommand { exec, argv, envp };
                self.run(by, workspace, command, restart_on_failure.then(RestartPolicy::default)).await
            }
            Request::PipelineRun { spec, tap, vars } => self.run_pipeline(by, &spec, tap, &vars).await,
            Request::Discern { sample, hint_path } => Ok(discern(&sample, hint_path.as_deref())),
            Request::Capabilities => Ok(self.host()),
            Request::CommandList { workspace } => {
                Ok(Response::CommandList { items: self.commands(workspace.0).await? })
            }
            Request::CommandLogs { workspace, command, tail_bytes, stream } => {
                self.owns_command(by, command).await?;
                self.logs_of(workspace, command, tail_bytes, &stream).await
            }
            Request::PipelineSave { name, spec } => {
                audited(
                    &self.audit,
                    Event::PipelineSave,
                    &name,
                    by,
                    self.saved.save(&name, by.uid, None, Kept::Spec(spec)),
                )
                .await?;
                Ok(Response::PipelineSaved { name })
            }
            Request::PipelineSavedList => Ok(Response::PipelineSavedList { names: self.saved.names().await }),
            Request::PipelineDrop { name } => {
                let existed =
                    audited(&self.audit, Event::PipelineDrop, &name, by, self.saved.remove(&name, by.uid, None))
                        .await?;
                Ok(Response::PipelineDropped { name, existed })
            }
            Request::PipelineRunSaved { name, tap, vars } => {
                let Kept::Spec(spec) = self.saved.get(&name).await? else {
                    let text = "was saved over the bus, and names its workspace as that does";
                    return Err(Error::WrongState(format!(
                        "run saved pipeline {name:?}: it {text}; `shipote pipeline run-saved` runs it"
                    )));
                };
                self.run_pipeline(by, &spec, tap, &vars).await
            }
            Request::WorkspaceStats { workspace } => {
                self.owns_workspace(by, workspace.0).await?;
                Ok(Response::WorkspaceStats { info: self.figures(workspace.0).await?.stats })
            }
            Request::WorkspaceQuota { workspace } => {
                self.owns_workspace(by, workspace.0).await?;
                Ok(Response::WorkspaceQuota { info: self.figures(workspace.0).await?.quota })
            }
            Request::WorkspaceStatsHistory { workspace, tail } => {
                self.owns_workspace(by, workspace.0).await?;
                let known = self.actor.ask(move |state, _| known(state, workspace.0));
                known.await??;
                Ok(self.history(workspace.0, tail))
            }
            Request::WorkspaceFullSummary { workspace } => {
                self.owns_workspace(by, workspace.0).await?;
                self.summary(workspace.0).await
            }
            Request::PipelineStop { pipeline, grace_ms } => self.stop_pipeline(by, pipeline, grace_ms).await,
            Request::FlowList => self.flow_list().await,
            Request::FlowThroughput => self.throughput().await,
            Request::FlowDrop { pipeline } => {
                self.owns_pipeline(by, pipeline).await?;
                let call = Call::DropFlows { pipeline };
                match self.change(by, Event::FlowDrop, &pipeline.to_string(), call).await?.outcome {
                    Outcome::FlowsDropped(existed) => Ok(Response::FlowDropped { pipeline, existed }),
                    _ => Err(unexpected()),
                }
            }
        }
    }

    /// A mutation with its record.
    pub(super) async fn change(&self, by: By, event: Event, object: &str, call: Call) -> Result<Done, Error> {
        audited(&self.audit, event, object, by, self.actor.call(call)).await
    }

    /// Refuses what is somebody else's to all but those who manage; what is not there is found out later.
    async fn owns(
        &self,
        by: By,
        what: &str,
        owner: impl Future<Output = Result<Option<u32>, Error>>,
    ) -> Result<(), Error> {
        if manages(by.uid) {
            return Ok(());
        }
        match owner.await? {
            Some(owner) if owner != by.uid => Err(Error::NotAuthorized(format!(
                "{what} is another user's (uid {owner}); to touch it takes the right to manage workspaces, over the bus"
            ))),
            _ => Ok(()),
        }
    }

    pub(super) async fn owns_workspace(&self, by: By, id: Ulid) -> Result<(), Error> {
        let owner = self.actor.ask(move |state, _| state.workspaces.get(&id).map(|w| w.uid));
        self.owns(by, &format!("workspace {id}"), owner).await
    }

    async fn owns_command(&self, by: By, id: Ulid) -> Result<(), Error> {
        // one of an earlier instance has no owner that is known
        let owner = self.actor.ask(move |state, _| Some(state.commands.get(&id).map_or(u32::MAX, |c| c.uid)));
        self.owns(by, &format!("command {id}"), owner).await
    }

    async fn owns_pipeline(&self, by: By, id: Ulid) -> Result<(), Error> {
        // what a workspace shares of flows goes by the workspace's id
        let owner = self.actor.ask(move |state, _| {
            let shared = || state.workspaces.get(&id).map(|w| w.uid);
            state.pipelines.get(&id).map(|p| p.uid).or_else(shared)
        });
        self.owns(by, &format!("pipeline {id}"), owner).await
    }

    async fn create(&self, by: By, spec: WorkspaceSpec) -> Result<Response, Error> {
        let mut spec = convert::workspace(spec).map_err(invalid("create workspace"))?;
        check_rights(&spec, by.uid)?;
        self.allowance.apply(&mut spec, by.uid);
        self.protected.check(&spec)?;
        let label = spec.label.clone();
        let call = Call::Create { spec: Box::new(spec), strict: false, uid: by.uid, numbered: true };
        let Outcome::Created(id) = self.change(by, Event::WorkspaceCreate, &label, call).await?.outcome else {
            return Err(unexpected());
        };
        let warnings = self
            .actor
            .ask(move |state, _| {
                let mechanisms = state.workspaces.get(&id).map(|w| w.mechanisms.as_slice()).unwrap_or_default();
                mechanisms.iter().filter(|m| !m.is_enforced()).map(ToString::to_string).collect()
            })
            .await?;
        Ok(Response::WorkspaceCreated { id: WorkspaceId(id), warnings })
    }

    async fn workspaces(&self) -> Result<Response, Error> {
        let items = self.actor.ask(|state, _| {
            let all = state.workspaces.values();
            all.map(|w| WorkspaceSummary {
                id: WorkspaceId(w.id),
                label: w.spec.label.clone(),
                commands: count(state.living_in(w.id).count()),
                uptime_ms: now().saturating_sub(w.created) / 1000,
            })
            .collect()
        });
        Ok(Response::WorkspaceList { items: items.await? })
    }

    async fn stop_workspace(&self, by: By, id: WorkspaceId, grace_ms: u64) -> Result<Response, Error> {
        self.owns_workspace(by, id.0).await?;
        let workspace = id.0.to_string();
        let call = Call::StopWorkspace { workspace: workspace.clone(), grace: Duration::from_millis(grace_ms) };
        match self.change(by, Event::WorkspaceStop, &workspace, call).await?.outcome {
            Outcome::Reaped(reaped) => Ok(Response::WorkspaceStopped { id, reaped }),
            _ => Err(unexpected()),
        }
    }

    async fn run(
        &self,
        by: By,
        workspace: WorkspaceId,
        command: shipote_bus::spec::NodeCommand,
        restart: Option<RestartPolicy>,
    ) -> Result<Response, Error> {
        self.owns_workspace(by, workspace.0).await?;
        let mut command = new_command(command, None)?;
        command.restart = restart;
        let object = command.command.exec.clone();
        let call = Call::Run {
            target: Target::Existing(workspace.0.to_string()),
            strict: false,
            uid: by.uid,
            command: Box::new(command),
            handed: Handed::default(),
        };
        let Outcome::Started(id) = self.change(by, Event::CommandRun, &object, call).await?.outcome else {
            return Err(unexpected());
        };
        let pid = self.actor.ask(move |state, _| state.commands.get(&id).map_or(0, |c| c.pid)).await?;
        Ok(Response::RunStarted { workspace, command_id: id, pid })
    }

    /// Commands of a workspace, living or stopped.
    pub(super) async fn commands(&self, workspace: Ulid) -> Result<Vec<CommandInfo>, Error> {
        let logs = self.logs.clone();
        let items = self.actor.ask(move |state, _| {
            known(state, workspace)?;
            let all = state.commands.values().filter(|c| c.workspace == workspace);
            Ok(all
                .map(|c| CommandInfo {
                    id: c.what.id,
                    label: c.what.label.clone(),
                    pid: c.pid,
                    alive: c.phase != CommandPhase::Ended,
                    exit_status: c.exit_status,
                    log_bytes: logs.bytes(c.what.id).unwrap_or_default(),
                })
                .collect())
        });
        items.await?
    }

    async fn logs_of(
        &self,
        workspace: WorkspaceId,
        command: Ulid,
        tail_bytes: usize,
        stream: &str,
    ) -> Result<Response, Error> {
        let (stdout, stderr) = match stream {
            "both" | "" => (true, true),
            "stdout" => (true, false),
            "stderr" => (false, true),
            other => {
                let text = format!("read a log: stream {other:?} does not exist; there are stdout, stderr and both");
                return Err(Error::InvalidArgument(text));
            }
        };
        let belongs =
            self.actor.ask(move |state, _| state.commands.get(&command).is_some_and(|c| c.workspace == workspace.0));
        if !belongs.await? {
            return Err(Error::NoSuchCommand(format!("{command} in workspace {}", workspace.0)));
        }
        let tail = match u64::try_from(tail_bytes).unwrap_or(u64::MAX) {
            0 => LOG_MAX,
            bytes => bytes.min(LOG_MAX),
        };
        let failed = |e: std::io::Error| Error::Failed(format!("read the log of command {command}: {e}"));
        let Some(output) =
            self.logs.read(command, Selection { stdout, stderr, tail, ..Selection::default() }).map_err(failed)?
        else {
            let text =
                format!("{command} (with a log: the output of a command that was handed descriptors is not kept)");
            return Err(Error::NoSuchCommand(text));
        };
        rustix::io::ioctl_fionbio(&output, true).map_err(|e| failed(e.into()))?;
        let mut bytes = Vec::new();
        let output = pipe::Receiver::from_owned_fd(output).map_err(failed)?;
        output.take(LOG_MAX).read_to_end(&mut bytes).await.map_err(failed)?;
        Ok(Response::CommandLogs { bytes })
    }

    async fn stop_pipeline(&self, by: By, pipeline: Ulid, grace_ms: u64) -> Result<Response, Error> {
        self.owns_pipeline(by, pipeline).await?;
        let name = pipeline.to_string();
        let call = Call::StopPipeline { pipeline: name.clone(), grace: Duration::from_millis(grace_ms) };
        match self.change(by, Event::PipelineStop, &name, call).await?.outcome {
            Outcome::Reaped(reaped) => Ok(Response::PipelineStopped { pipeline, reaped }),
            _ => Err(unexpected()),
        }
    }

    async fn flow_list(&self) -> Result<Response, Error> {
        let (running, flows) = self
            .actor
            .ask(|state, flows| {
                let running = state.pipelines.values().filter(|p| p.exit_status.is_none()).map(|p| p.what.id);
                (running.collect::<Vec<_>>(), flows.flows())
            })
            .await?;
        let mut items: BTreeMap<Ulid, Vec<PathBuf>> = running.into_iter().map(|id| (id, Vec::new())).collect();
        for flow in flows {
            if let Ok(id) = Ulid::from_string(&flow.pipeline) {
                items.entry(id).or_default().push(flow.socket.into());
            }
        }
        let items = items.into_iter().map(|(pipeline, sockets)| FlowInfo { pipeline, sockets }).collect();
        Ok(Response::FlowList { items })
    }

    async fn throughput(&self) -> Result<Response, Error> {
        self.actor.measure().await?;
        let flows = self.actor.ask(|_, flows| flows.flows()).await?;
        let items = flows.into_iter().map(|flow| FlowThroughputInfo {
            socket: flow.socket.into(),
            bytes_total: flow.bytes_total,
            bytes_per_sec: flow.bytes_per_sec,
        });
        Ok(Response::FlowThroughput { items: items.collect() })
    }
}

/// The workspace lives, or something that ran in it is still remembered.
pub(super) fn known(state: &State, workspace: Ulid) -> Result<(), Error> {
    if state.workspaces.contains_key(&workspace) || state.commands.values().any(|c| c.workspace == workspace) {
        return Ok(());
    }
    Err(Error::NoSuchWorkspace(workspace.to_string()))
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn discern(sample: &[u8], hint: Option<&Path>) -> Response {
    let found = shipote_discern::discern(sample, hint, true);
    Response::Discernment {
        ty: found.ty.to_string(),
        confidence: found.confidence,
        mime: found.mime.map(ToString::to_string),
        lens: found.lens.map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::WorkspaceSpec;

    use super::*;

    #[test]
    fn only_those_who_manage_get_anything_of_the_host() {
        let somebody = rustix::process::geteuid().as_raw().wrapping_add(4711);
        let plain = ["", "[permissions]\nnetworking = \"loopback\"\n", "hidden = [\"/usr/bin/perl\"]\n"];
        let host = [
            "[permissions]\nnetworking = \"full\"\n",
            "[permissions]\nfilesystem = \"read-only\"\n",
            "[permissions]\nprocesses = true\n",
            "[permissions.ipc]\nallow = [\"/run/docker.sock\"]\n",
            "[[paths]]\npath = \"/srv\"\n",
        ];
        let spec = |text: &str| toml::from_str::<WorkspaceSpec>(text).unwrap();
        for text in plain {
            assert!(check_rights(&spec(text), somebody).is_ok(), "{text}");
        }
        for text in host {
            let refused = check_rights(&spec(text), somebody);
            assert!(matches!(refused, Err(Error::NotAuthorized(_))), "{text}: {refused:?}");
            assert!(check_rights(&spec(text), 0).is_ok(), "{text}");
        }
    }
}
