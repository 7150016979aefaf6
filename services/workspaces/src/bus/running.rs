//! What `Run`, `Serve`, `RunPipeline` and `Connect` of the manager do.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use shipote_audit::Event;
use shipote_bus::spec::PipelineSpec;
use shipote_bus::workspaces::RunOptions;
use shipote_sandbox::SandboxError;
use shipote_service::Caller;
use ulid::Ulid;
use zbus::OwnedObjectPath;
use zbus::message::Header;

use super::convert;
use super::doors::{ACTION_MACHINES, ACTION_MANAGE, ACTION_RUN, audited};
use super::manager::{Manager, not_explained, unexpected};
use super::parse::{check_size, new_command, pipe, target, three};
use crate::actor::{Call, node_list};
use crate::effects::Handed;
use crate::error::Error;
use crate::state::{NewCommand, Outcome, Target};

/// A command that runs: its object, its id, and the descriptors that its caller gets.
type Started = (OwnedObjectPath, String, Vec<zbus::OwnedFd>);
/// A pipeline that runs, with the label and process id of each node besides.
type StartedPipeline = (OwnedObjectPath, String, Vec<(String, i32)>, Vec<zbus::OwnedFd>);

impl Manager {
    pub(super) async fn run_command(
        &self,
        header: &Header<'_>,
        workspace: String,
        argv: Vec<String>,
        options: &RunOptions,
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<Started, Error> {
        let command = new_command(argv, options)?;
        let stdio = three(stdio)?;
        if command.terminal.is_some() && stdio.is_some() {
            let text = "run: a command with a terminal takes no other descriptors; hand over none";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        if command.attachable && stdio.is_some() {
            let text = "run: a command that others are to attach to takes no descriptors; hand over none";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        let strict = options.strict.unwrap_or(false);
        let spec = options.spec.as_deref().unwrap_or_default();
        // whoever only runs does so inside limits that somebody else has set
        let action = if spec.is_empty() { ACTION_RUN } else { ACTION_MANAGE };
        let caller = self.doors.authority.check(header, action).await?;
        let mut target = target(workspace, spec)?;
        let explain = options.explain.unwrap_or(false);
        match &mut target {
            Target::Ephemeral { spec, .. } => {
                self.protected.check(spec)?;
                if action == ACTION_RUN {
                    self.allowance.apply(spec, caller.uid);
                }
                spec.explain |= explain;
            }
            Target::Existing(name) => {
                self.doors.may_use_workspace(header, caller, name).await?;
                if explain {
                    let name = name.clone();
                    let explains = self.doors.actor.ask(move |s, _| s.find_workspace(&name).map(|w| w.spec.explain));
                    explains.await??.then_some(()).ok_or_else(not_explained)?;
                }
            }
        }
        self.start(caller, (target, strict), command, stdio).await
    }

    /// Runs what a workspace lists, for a caller who may have just that run.
    pub(super) async fn serve_program(
        &self,
        caller: Caller,
        workspace: String,
        argv: Vec<String>,
        options: RunOptions,
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<Started, Error> {
        let RunOptions { env, cwd, soma, timeout_ms, .. } = options.clone();
        if options != (RunOptions { env, cwd, soma, timeout_ms, ..RunOptions::default() }) || timeout_ms.is_none() {
            let text = "serve: needs the option timeout_ms, and takes env, cwd and soma besides";
            return Err(Error::InvalidArgument(text.to_owned()));
        }
        let command = new_command(argv, &options)?;
        let Some(stdio) = three(stdio)? else {
            let text = "serve: hand over three descriptors (input, output, error)";
            return Err(Error::InvalidArgument(text.to_owned()));
        };
        let program = command.command.exec.clone();
        let id = self.doors.actor.ask(move |state, _| {
            let found = state.find_workspace(&workspace)?;
            if !found.spec.serve.iter().any(|listed| listed.as_os_str() == program.as_str()) {
                return Err(Error::InvalidArgument(format!(
                    "workspace {workspace:?} does not serve {program:?}; name it in `serve` of its spec"
                )));
            }
            Ok(found.id)
        });
        let target = Target::Existing(id.await??.to_string());
        self.start(caller, (target, false), command, Some(stdio)).await
    }

    /// Starts a command that its caller may run there.
    async fn start(
        &self,
        caller: Caller,
        (target, strict): (Target, bool),
        command: NewCommand,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<Started, Error> {
        let (completed, completion) = pipe()?;
        let object = command.command.exec.clone();
        let handed = Handed { stdio, completion: Some(completion) };
        let call = Call::Run { target, strict, uid: caller.uid, command: Box::new(command), handed };
        let done = audited(&self.doors, Event::CommandRun, &object, caller, call).await?;
        let Outcome::Started(id) = done.outcome else { return Err(unexpected()) };
        let descriptors = [Some(completed), done.terminal].into_iter().flatten().map(Into::into).collect();
        Ok((convert::object_path("command", id), id.to_string(), descriptors))
    }

    /// Runs a pipeline for a caller who may run. How: tapped, and strictly.
    pub(super) async fn start_pipeline(
        &self,
        (header, caller): (&Header<'_>, Caller),
        workspace: String,
        (spec, variables, label): (&str, &BTreeMap<String, String>, Option<String>),
        (tap, strict): (bool, bool),
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<StartedPipeline, Error> {
        check_size(spec)?;
        let mut parsed: PipelineSpec =
            shipote_config::parse(spec, "pipeline").map_err(|e| Error::InvalidSpec(format!("run pipeline: {e}")))?;
        if let Some(label) = label {
            parsed.label = label;
        }
        let pipeline =
            parsed.validate(variables).map_err(|e| Error::InvalidSpec(format!("run pipeline: pipeline: {e}")))?;
        let workspace = if workspace.is_empty() { parsed.workspace.unwrap_or_default() } else { workspace };
        let target = target(workspace, "")?;
        let stdio = three(stdio)?;
        if let Target::Existing(name) = &target {
            self.doors.may_use_workspace(header, caller, name).await?;
        }
        if pipeline.nodes.iter().any(|node| node.foreign.as_ref().is_some_and(|f| f.machine().is_some())) {
            // the machines service is asked by us, so whether its caller may is for us to say
            self.doors.authority.check(header, ACTION_MACHINES).await?;
        }
        let (completed, completion) = pipe()?;
        let id = Ulid::generate();
        let label = pipeline.label.clone();
        let handed = Handed { stdio, completion: Some(completion) };
        let call = Call::RunPipeline { target, strict, uid: caller.uid, tap, pipeline: Box::new(pipeline), id, handed };
        audited(&self.doors, Event::PipelineRun, &label, caller, call).await?;
        let pids = self
            .doors
            .actor
            .ask(move |state, _| {
                let nodes = state.pipelines.get(&id).map(|p| node_list(state, p)).unwrap_or_default();
                nodes.into_iter().map(|(label, _, pid)| (label, pid)).collect()
            })
            .await?;
        Ok((convert::object_path("pipeline", id), id.to_string(), pids, vec![completed.into()]))
    }

    /// A connection to a port that a workspace publishes.
    pub(super) async fn connect_to(&self, workspace: &str, port: u16, wake: bool) -> Result<zbus::OwnedFd, Error> {
        let name = workspace.to_owned();
        let id = self.doors.actor.ask(move |state, _| {
            let found = state.find_workspace(&name)?;
            if !found.spec.publish.contains(&port) {
                return Err(Error::InvalidArgument(format!(
                    "workspace {name:?} does not publish port {port}; name it in `publish` of its spec, or by `shipote \
                     workspace publish`"
                )));
            }
            if found.sleep.asleep && !wake {
                return Err(Error::Asleep(name));
            }
            Ok(found.id)
        });
        let id = id.await??;
        // One that sleeps is woken first; while it is, whoever asked is held.
        self.doors.actor.call(Call::Wake { workspace: id.to_string() }).await?;
        let Some(door) = self.doors.actor.ask(move |_, flows| flows.door(id)).await? else {
            return Err(Error::WrongState(format!("workspace {workspace:?} does not stand yet, or ends")));
        };
        let unreached = |error: SandboxError| match error {
            SandboxError::Ended => Error::WrongState(format!("workspace {workspace:?}: {error}")),
            _ => Error::Connect { name: workspace.to_owned(), port, reason: error.to_string() },
        };
        Ok(door.connect(port).await.map_err(unreached)?.into())
    }
}
