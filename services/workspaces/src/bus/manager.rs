//! `org.shipote.Workspaces1.Manager`, at the root object.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use shipote_audit::{Door, Event};
use shipote_bus::service::MechanismInfo;
use shipote_bus::spec::PipelineSpec;
use shipote_bus::workspaces::{
    CommandInfo, DISCERN_MAX, DiscernmentInfo, FlowInfo, PipelineInfo, RefusalInfo, RunOptions, WorkspaceInfo,
    WorkspacesError,
};
use shipote_sandbox::SandboxError;
use shipote_service::{Caller, mechanism_info};
use ulid::Ulid;
use zbus::message::Header;
use zbus::{OwnedObjectPath, OwnedVariant};

use super::convert;
use super::doors::{ACTION_CONNECT, ACTION_MACHINES, ACTION_MANAGE, ACTION_RUN, Doors, audited};
use super::parse::{check_size, flag, known, new_command, parse_workspace, pipe, target, three, wrong_type};
use crate::actor::{Call, node_list};
use crate::allowance::Allowance;
use crate::audited::By;
use crate::effects::{Attachments, Explanations, Handed, LogStore, Selection};
use crate::error::Error;
use crate::protected::Protected;
use crate::state::{Command, CommandPhase, NewCommand, Outcome, PublishChange, Target};

pub(super) type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct Manager {
    pub(crate) doors: Doors,
    pub(crate) logs: LogStore,
    pub(crate) explanations: Explanations,
    pub(crate) attachments: Attachments,
    pub(crate) capabilities: Vec<MechanismInfo>,
    pub(crate) protected: Protected,
    pub(crate) allowance: Allowance,
}

#[zbus::interface(name = "org.shipote.Workspaces1.Manager")]
impl Manager {
    /// Creates a workspace. `name` wins over the spec's label; `spec` is TOML, empty for the
    /// defaults. Options: `strict` (b): refuse where a mechanism of isolation is degraded or
    /// missing. Returns the object, its id, and how its commands are isolated.
    #[zbus(out_args("workspace", "id", "isolation"))]
    async fn create_workspace(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        spec: &str,
        options: Options,
    ) -> Result<(OwnedObjectPath, String, Vec<MechanismInfo>), WorkspacesError> {
        let strict = flag(&options, "strict", &["strict"])?;
        let mut spec = parse_workspace(spec)?;
        if !name.is_empty() {
            name.clone_into(&mut spec.label);
        }
        spec.validate().map_err(|e| Error::InvalidSpec(format!("create workspace: {e}")))?;
        let caller = self.doors.authority.check(&header, ACTION_MANAGE).await.map_err(Error::from)?;
        // looks at paths that the caller names: only once it may
        self.protected.check(&spec)?;
        let label = spec.label.clone();
        let call = Call::Create { spec: Box::new(spec), strict, uid: caller.uid, numbered: false };
        let done = audited(&self.doors, Event::WorkspaceCreate, &label, caller, call).await?;
        let Outcome::Created(id) = done.outcome else { return Err(unexpected().into()) };
        let isolation = self
            .doors
            .actor
            .ask(move |state, _| {
                state.workspaces.get(&id).map(|w| w.mechanisms.iter().map(mechanism_info).collect()).unwrap_or_default()
            })
            .await?;
        Ok((convert::object_path("workspace", id), id.to_string(), isolation))
    }

    /// Lists the living workspaces, oldest first. No options yet.
    #[zbus(out_args("workspaces"))]
    async fn list_workspaces(&self, options: Options) -> Result<Vec<WorkspaceInfo>, WorkspacesError> {
        known(&options, &[])?;
        let list = self.doors.actor.ask(|state, _| {
            let all = state.workspaces.values();
            all.map(|w| convert::workspace(w, state.living_in(w.id).count())).collect()
        });
        Ok(list.await?)
    }

    /// The object of a workspace, by name or id.
    #[zbus(out_args("workspace"))]
    async fn get_workspace(&self, workspace: String) -> Result<OwnedObjectPath, WorkspacesError> {
        let id = self.doors.actor.ask(move |state, _| state.find_workspace(&workspace).map(|w| w.id)).await??;
        Ok(convert::object_path("workspace", id))
    }

    /// Ends every command of a workspace, named by name or id (SIGTERM, then SIGKILL after
    /// `grace_ms` milliseconds; 0: at once), and the workspace. Returns the number of
    /// processes that were ended. No options yet.
    #[zbus(out_args("reaped"))]
    async fn stop_workspace(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        grace_ms: u64,
        options: Options,
    ) -> Result<u32, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.authority.check(&header, ACTION_MANAGE).await.map_err(Error::from)?;
        let call = Call::StopWorkspace { workspace: workspace.clone(), grace: Duration::from_millis(grace_ms) };
        match audited(&self.doors, Event::WorkspaceStop, &workspace, caller, call).await?.outcome {
            Outcome::Reaped(count) => Ok(count),
            _ => Err(unexpected().into()),
        }
    }

    /// Publishes ports of a workspace (by name or id) from now on, and others no more; open connections go on. Returns
    /// what it publishes now. One's own workspace takes the right to run, another's the right to manage. No options yet.
    #[zbus(out_args("published"))]
    async fn publish(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        add: Vec<u16>,
        remove: Vec<u16>,
        options: Options,
    ) -> Result<Vec<u16>, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.may_look_at_workspace(&header, &workspace).await?;
        let event = if add.is_empty() { Event::WorkspaceUnpublish } else { Event::WorkspacePublish };
        let call = Call::ChangePublished { workspace: workspace.clone(), change: PublishChange { add, remove } };
        match audited(&self.doors, event, &workspace, caller, call).await?.outcome {
            Outcome::Published(ports) => Ok(ports),
            _ => Err(unexpected().into()),
        }
    }

    /// Runs a command. `workspace` is a name or an id; empty: a workspace of its own that ends
    /// with it. `argv` is the program (a path, or a name looked up in the workspace's `PATH`)
    /// and its arguments. `stdio` holds standard input, output and error, or nothing: then
    /// input is empty and output is kept in a log. Options: `env` (as, each `KEY=VALUE`),
    /// `cwd` (s), `terminal` ((qq), columns and rows: the command gets a terminal of the
    /// workspace, `stdio` must be empty), `timeout_ms` (t), `strict` (b), `label` (s), `spec`
    /// (s, TOML: of the workspace that is made for it), `soma` (s, TOML: limits of this command, as in a spec's `[soma]`),
    /// `explain` (b: of what it is refused, see `ExplainCommand`; a workspace that exists has to explain already),
    /// `attachable` (b: its standard input stays open, or its terminal stays with the service, for `OpenInput`;
    /// `stdio` must be empty, output is kept in a log).
    ///
    /// Answers when the program runs. Returns its object, its id, and descriptors: the first
    /// yields one line of JSON (`id`, `exit_status`, `reason`, `message`) when it has ended,
    /// the second, where a terminal was asked for, is the terminal's master.
    #[zbus(out_args("command", "id", "descriptors"))]
    async fn run(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        argv: Vec<String>,
        options: RunOptions,
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<(OwnedObjectPath, String, Vec<zbus::OwnedFd>), WorkspacesError> {
        let command = new_command(argv, &options)?;
        let stdio = three(stdio)?;
        if command.terminal.is_some() && stdio.is_some() {
            let text = "run: a command with a terminal takes no other descriptors; hand over none";
            return Err(Error::InvalidArgument(text.to_owned()).into());
        }
        if command.attachable && stdio.is_some() {
            let text = "run: a command that others are to attach to takes no descriptors; hand over none";
            return Err(Error::InvalidArgument(text.to_owned()).into());
        }
        let strict = options.strict.unwrap_or(false);
        let spec = options.spec.as_deref().unwrap_or_default();
        // whoever only runs does so inside limits that somebody else has set
        let action = if spec.is_empty() { ACTION_RUN } else { ACTION_MANAGE };
        let caller = self.doors.authority.check(&header, action).await.map_err(Error::from)?;
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
                self.doors.may_use_workspace(&header, caller, name).await?;
                if explain {
                    let name = name.clone();
                    let explains = self.doors.actor.ask(move |s, _| s.find_workspace(&name).map(|w| w.spec.explain));
                    explains.await??.then_some(()).ok_or_else(not_explained)?;
                }
            }
        }
        Ok(self.start(caller, (target, strict), command, stdio).await?)
    }

    /// Lists commands, living and ended, oldest first; of one workspace (name or id) or, where
    /// it is empty, of all. Arguments are shown to the user who started the command and to root.
    /// No options yet.
    #[zbus(out_args("commands"))]
    async fn list_commands(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        options: Options,
    ) -> Result<Vec<CommandInfo>, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.authority.identify(&header).await.map_err(Error::from)?;
        let logs = self.logs.clone();
        let list = self.doors.actor.ask(move |state, _| -> Result<Vec<CommandInfo>, Error> {
            let only = if workspace.is_empty() { None } else { Some(state.find_workspace(&workspace)?.id) };
            let all = state.commands.values().filter(|c| only.is_none_or(|id| c.workspace == id));
            let shown = |c: &Command| {
                let mut info = convert::command(c, logs.bytes(c.what.id));
                if caller.uid != 0 && caller.uid != c.uid {
                    info.argv.clear();
                }
                info
            };
            Ok(all.map(shown).collect())
        });
        Ok(list.await??)
    }

    /// Sends a signal (1 to 64, signal(7)) to a command's process group. The id may be shortened
    /// to its last six characters or more.
    async fn signal_command(
        &self,
        #[zbus(header)] header: Header<'_>,
        command: String,
        signal: i32,
    ) -> Result<(), WorkspacesError> {
        let caller = self.doors.may_use_command(&header, &command).await?;
        let call = Call::Signal { command: command.clone(), signal };
        audited(&self.doors, Event::CommandSignal, &command, caller, call).await?;
        Ok(())
    }

    /// What a command was refused so far, each kind once, in order: system call, error, the path or address, why,
    /// and the way out. Its workspace has to have `explain = true` in its spec; a command that was run with the
    /// option `explain` has one.
    #[zbus(out_args("refusals"))]
    async fn explain_command(
        &self,
        #[zbus(header)] header: Header<'_>,
        command: String,
    ) -> Result<Vec<RefusalInfo>, WorkspacesError> {
        self.doors.may_use_command(&header, &command).await?;
        let id = self.doors.actor.ask(move |state, _| state.find_command(&command).map(|c| c.what.id)).await??;
        let told = self.explanations.of(id).ok_or_else(not_explained)?;
        Ok(told.iter().map(convert::refusal).collect())
    }

    /// A pipe with a command's kept output; end of file at its end. `stream` is `stdout`,
    /// `stderr` or `both` (in order of arrival). Options: `tail` (t): only the last bytes,
    /// 0 for all that is kept; `follow` (b): go on until the command ends; `since_stdout` and `since_stderr` (t): only
    /// from these offsets of the streams on, what is no longer kept left out; `framed` (b): each piece begins with its
    /// stream (1 byte: 1 stdout, 2 stderr), its offset in the stream (8 bytes, big endian) and its length (4 bytes, big
    /// endian), and the last thing is a frame of stream 0: without it the service went away, and the rest is to be
    /// asked for with the offsets.
    #[zbus(out_args("output"))]
    async fn open_log(
        &self,
        #[zbus(header)] header: Header<'_>,
        command: String,
        stream: &str,
        options: Options,
    ) -> Result<zbus::OwnedFd, WorkspacesError> {
        self.doors.may_use_command(&header, &command).await?;
        const OPTIONS: &[&str] = &["follow", "framed", "since_stderr", "since_stdout", "tail"];
        let (follow, framed) = (flag(&options, "follow", OPTIONS)?, flag(&options, "framed", OPTIONS)?);
        let number = |name: &str| match options.get(name) {
            Some(value) => u64::try_from(value).map_err(|_| wrong_type(name, "t")),
            None => Ok(0),
        };
        let tail = number("tail")?;
        let since = [number("since_stdout")?, number("since_stderr")?];
        let (stdout, stderr) = match stream {
            "both" | "" => (true, true),
            "stdout" => (true, false),
            "stderr" => (false, true),
            other => {
                let text = format!("read a log: stream {other:?} does not exist; there are stdout, stderr and both");
                return Err(Error::InvalidArgument(text).into());
            }
        };
        let wanted = command.clone();
        let found = self.doors.actor.ask(move |state, _| state.find_command(&wanted).map(|c| c.what.id)).await?;
        // an earlier instance's commands are known by their whole id only
        let id = match (found, Ulid::from_string(&command)) {
            (Ok(id), _) | (Err(_), Ok(id)) => id,
            (Err(error), Err(_)) => return Err(error.into()),
        };
        match self.logs.read(id, Selection { stdout, stderr, tail, follow, since, framed }) {
            Ok(Some(fd)) => Ok(fd.into()),
            Ok(None) => Err(Error::NoSuchCommand(format!(
                "{command} (with a log: the output of a command that was handed descriptors is not kept)"
            ))
            .into()),
            Err(error) => Err(Error::Failed(format!("read the log of command {command}: {error}")).into()),
        }
    }

    /// A pipe that leads into a command which was run as `attachable`, and whether a terminal is at its end. What
    /// comes out of it is in its log: `OpenLog` with `follow`. Several may be open. Options: `last` (b): there will be
    /// no further one, and standard input ends when those that are open are closed; a terminal's never does.
    #[zbus(out_args("input", "terminal"))]
    async fn open_input(
        &self,
        #[zbus(header)] header: Header<'_>,
        command: String,
        options: Options,
    ) -> Result<(zbus::OwnedFd, bool), WorkspacesError> {
        let last = flag(&options, "last", &["last"])?;
        let caller = self.doors.may_use_command(&header, &command).await?;
        let by = By { uid: caller.uid, door: Door::Bus };
        let open = async {
            let id = self.living(&command).await?;
            let opened = self.attachments.open(id);
            let opened = opened.map_err(|e| Error::Failed(format!("attach to command {command}: {e}")))?;
            let opened = opened.ok_or_else(|| {
                Error::WrongState(format!(
                    "attach to command {command}: its input is not kept; run it with `--detach` and `--interactive` or \
                     `--tty`, or attach with `--no-stdin` to follow its output"
                ))
            })?;
            if last {
                self.attachments.close(id).await;
            }
            Ok(opened)
        };
        let (input, terminal) =
            crate::audited::audited(&self.doors.audit, Event::CommandAttach, &command, by, open).await?;
        Ok((input.into(), terminal))
    }

    /// Gives the terminal of a command which was run as `attachable` another size, in characters.
    async fn resize_terminal(
        &self,
        #[zbus(header)] header: Header<'_>,
        command: String,
        columns: u16,
        rows: u16,
    ) -> Result<(), WorkspacesError> {
        self.doors.may_use_command(&header, &command).await?;
        let id = self.living(&command).await?;
        match self.attachments.resize(id, columns, rows) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let text = format!("resize the terminal of command {command}: none is kept for it");
                Err(Error::WrongState(text).into())
            }
            Err(error) => Err(Error::Failed(format!("resize the terminal of command {command}: {error}")).into()),
        }
    }

    /// Runs a pipeline. `workspace` as in `Run` (the spec's where empty); `spec` is TOML;
    /// `variables` are put for `${KEY}` in it; `stdio` as in `Run`: the input goes to the first
    /// node without an edge into it, output and error come from every node without an edge.
    /// Options: `tap` (b): sample, meter and offer every edge; `strict` (b).
    ///
    /// Answers when all nodes run. Returns the object, its id, label and process id of each
    /// node, and a descriptor that yields the completion, as in `Run`.
    #[zbus(out_args("pipeline", "id", "pids", "descriptors"))]
    #[allow(clippy::type_complexity, clippy::too_many_arguments)]
    async fn run_pipeline(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        spec: &str,
        variables: BTreeMap<String, String>,
        options: Options,
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<(OwnedObjectPath, String, Vec<(String, i32)>, Vec<zbus::OwnedFd>), WorkspacesError> {
        // nothing of a stranger's is parsed
        let caller = self.doors.authority.check(&header, ACTION_RUN).await.map_err(Error::from)?;
        let tap = flag(&options, "tap", &["strict", "tap"])?;
        let strict = flag(&options, "strict", &["strict", "tap"])?;
        check_size(spec)?;
        let parsed: PipelineSpec =
            shipote_config::parse(spec, "pipeline").map_err(|e| Error::InvalidSpec(format!("run pipeline: {e}")))?;
        let pipeline =
            parsed.validate(&variables).map_err(|e| Error::InvalidSpec(format!("run pipeline: pipeline: {e}")))?;
        let workspace = if workspace.is_empty() { parsed.workspace.unwrap_or_default() } else { workspace };
        let target = target(workspace, "")?;
        let stdio = three(stdio)?;
        if let Target::Existing(name) = &target {
            self.doors.may_use_workspace(&header, caller, name).await?;
        }
        if pipeline.nodes.iter().any(|node| node.foreign.as_ref().is_some_and(|f| f.machine().is_some())) {
            // the machines service is asked by us, so whether its caller may is for us to say
            self.doors.authority.check(&header, ACTION_MACHINES).await.map_err(Error::from)?;
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

    /// Ends every node of a pipeline (SIGTERM, then SIGKILL after `grace_ms` milliseconds; 0: at
    /// once). Returns the number of nodes. No options yet.
    #[zbus(out_args("reaped"))]
    async fn stop_pipeline(
        &self,
        #[zbus(header)] header: Header<'_>,
        pipeline: String,
        grace_ms: u64,
        options: Options,
    ) -> Result<u32, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.may_use_pipeline(&header, &pipeline).await?;
        let call = Call::StopPipeline { pipeline: pipeline.clone(), grace: Duration::from_millis(grace_ms) };
        match audited(&self.doors, Event::PipelineStop, &pipeline, caller, call).await?.outcome {
            Outcome::Reaped(count) => Ok(count),
            _ => Err(unexpected().into()),
        }
    }

    /// Lists pipelines, running and ended, oldest first. No options yet.
    #[zbus(out_args("pipelines"))]
    async fn list_pipelines(&self, options: Options) -> Result<Vec<PipelineInfo>, WorkspacesError> {
        known(&options, &[])?;
        let list = self
            .doors
            .actor
            .ask(|state, _| state.pipelines.values().map(|p| convert::pipeline(p, node_list(state, p))).collect());
        Ok(list.await?)
    }

    /// Lists the edges of pipelines that are tapped, with type, throughput and the socket that
    /// serves their bytes: a Unix stream socket, replay first, then live, raw. An ended
    /// pipeline's flows stay for five minutes. No options yet.
    #[zbus(out_args("flows"))]
    async fn list_flows(&self, options: Options) -> Result<Vec<FlowInfo>, WorkspacesError> {
        known(&options, &[])?;
        self.doors.actor.measure().await?;
        Ok(self.doors.actor.ask(|_, flows| flows.flows()).await?)
    }

    /// Closes the flow sockets of a pipeline (by id), or of what a workspace shares (by name or id): subscribers see the
    /// end. What flows goes on. Whether there were any. No options yet.
    #[zbus(out_args("existed"))]
    async fn drop_flows(
        &self,
        #[zbus(header)] header: Header<'_>,
        pipeline: String,
        options: Options,
    ) -> Result<bool, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.may_use_pipeline(&header, &pipeline).await?;
        let name = pipeline.clone();
        let found = self.doors.actor.ask(move |state, _| {
            let workspace = |error| state.find_workspace(&name).map(|w| w.id).map_err(|_| error);
            state.find_pipeline(&name).map(|p| p.what.id).or_else(workspace)
        });
        let call = Call::DropFlows { pipeline: found.await?? };
        match audited(&self.doors, Event::FlowDrop, &pipeline, caller, call).await?.outcome {
            Outcome::FlowsDropped(existed) => Ok(existed),
            _ => Err(unexpected().into()),
        }
    }

    /// Says what kind of data a sample (64 KiB at most) is. `hint_path` is the file's name or
    /// empty; `complete` says that the sample is all of it.
    #[zbus(out_args("discernment"))]
    async fn discern(
        &self,
        sample: Vec<u8>,
        hint_path: &str,
        complete: bool,
    ) -> Result<DiscernmentInfo, WorkspacesError> {
        if sample.len() > DISCERN_MAX {
            let text = format!("discern: the sample has {} bytes; send the first {DISCERN_MAX}", sample.len());
            return Err(Error::InvalidArgument(text).into());
        }
        let hint = (!hint_path.is_empty()).then(|| Path::new(hint_path));
        let found = shipote_discern::discern(&sample, hint, complete);
        Ok(DiscernmentInfo {
            ty: found.ty.to_string(),
            confidence: f64::from(found.confidence),
            mime: found.mime.map(ToString::to_string),
            lens: found.lens.map(ToString::to_string),
        })
    }

    /// A TCP connection to a port that a workspace publishes, made inside the workspace's own network: a connected
    /// socket. A workspace that sleeps is woken first; with the option `wake` (b) false it is left asleep, and the call
    /// refused. Whoever may call this reaches what is published, of every workspace, and nothing else.
    #[zbus(out_args("socket"))]
    async fn connect(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: &str,
        port: u16,
        options: Options,
    ) -> Result<zbus::OwnedFd, WorkspacesError> {
        let wake = options.is_empty() || flag(&options, "wake", &["wake"])?;
        self.doors.authority.check(&header, ACTION_CONNECT).await.map_err(Error::from)?;
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
            return Err(Error::WrongState(format!("workspace {workspace:?} does not stand yet, or ends")).into());
        };
        let unreached = |error: SandboxError| match error {
            SandboxError::Ended => Error::WrongState(format!("workspace {workspace:?}: {error}")),
            _ => Error::Connect { name: workspace.to_owned(), port, reason: error.to_string() },
        };
        Ok(door.connect(port).await.map_err(unreached)?.into())
    }

    /// Runs a program that a workspace lists under `serve` of its spec, for a request that came to somebody else (CGI): as
    /// `Run` in that workspace, with `argv` beginning with a path of that list and three descriptors. A workspace that
    /// sleeps is woken first. Options of `Run`: `env`, `cwd`, `soma`, and `timeout_ms`, which has to be there. Whoever may call
    /// this runs what is listed, of every workspace, and nothing else.
    #[zbus(out_args("command", "id", "descriptors"))]
    async fn serve(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        argv: Vec<String>,
        options: RunOptions,
        stdio: Vec<zbus::OwnedFd>,
    ) -> Result<(OwnedObjectPath, String, Vec<zbus::OwnedFd>), WorkspacesError> {
        let caller = self.doors.authority.check(&header, ACTION_CONNECT).await.map_err(Error::from)?;
        let RunOptions { env, cwd, soma, timeout_ms, .. } = options.clone();
        if options != (RunOptions { env, cwd, soma, timeout_ms, ..RunOptions::default() }) || timeout_ms.is_none() {
            let text = "serve: needs the option timeout_ms, and takes env, cwd and soma besides";
            return Err(Error::InvalidArgument(text.to_owned()).into());
        }
        let command = new_command(argv, &options)?;
        let Some(stdio) = three(stdio)? else {
            let text = "serve: hand over three descriptors (input, output, error)";
            return Err(Error::InvalidArgument(text.to_owned()).into());
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
        Ok(self.start(caller, (target, false), command, Some(stdio)).await?)
    }

    /// Every mechanism of isolation with what this host allows: name, `enforced`, `degraded` or
    /// `missing`, and the reason. Found out by trying, when the service started.
    #[zbus(out_args("mechanisms"))]
    fn capabilities(&self) -> Vec<MechanismInfo> {
        self.capabilities.clone()
    }
}

impl Manager {
    /// Starts a command that its caller may run there.
    async fn start(
        &self,
        caller: Caller,
        (target, strict): (Target, bool),
        command: NewCommand,
        stdio: Option<[OwnedFd; 3]>,
    ) -> Result<(OwnedObjectPath, String, Vec<zbus::OwnedFd>), Error> {
        let (completed, completion) = pipe()?;
        let object = command.command.exec.clone();
        let handed = Handed { stdio, completion: Some(completion) };
        let call = Call::Run { target, strict, uid: caller.uid, command: Box::new(command), handed };
        let done = audited(&self.doors, Event::CommandRun, &object, caller, call).await?;
        let Outcome::Started(id) = done.outcome else { return Err(unexpected()) };
        let descriptors = [Some(completed), done.terminal].into_iter().flatten().map(Into::into).collect();
        Ok((convert::object_path("command", id), id.to_string(), descriptors))
    }

    /// A command that lives.
    async fn living(&self, command: &str) -> Result<Ulid, Error> {
        let name = command.to_owned();
        let found = self.doors.actor.ask(move |state, _| state.find_command(&name).map(|c| (c.what.id, c.phase)));
        match found.await?? {
            (_, CommandPhase::Ended) => Err(Error::WrongState(format!(
                "attach to command {command}: it has ended; `shipote logs` has its output"
            ))),
            (id, _) => Ok(id),
        }
    }
}

fn not_explained() -> Error {
    Error::WrongState(
        "explain: the workspace does not explain refusals; set `explain = true` in its spec, or run the command in \
         one of its own with `shipote run --explain`"
            .to_owned(),
    )
}

pub(super) fn unexpected() -> Error {
    Error::Failed("the state actor gave an answer of another kind; this is a defect of Shipote".to_owned())
}
