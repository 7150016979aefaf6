//! `org.shipote.Workspaces1.Manager`, at the root object. What is more than a question or one change stands in `running`
//! and `output`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use shipote_audit::Event;
use shipote_bus::service::MechanismInfo;
use shipote_bus::workspaces::{
    CommandInfo, DISCERN_MAX, DiscernmentInfo, FlowInfo, PipelineInfo, RefusalInfo, RunOptions, WorkspaceInfo,
    WorkspacesError,
};
use shipote_service::mechanism_info;
use zbus::message::Header;
use zbus::{OwnedObjectPath, OwnedVariant};

use super::convert;
use super::doors::{ACTION_CONNECT, ACTION_MANAGE, ACTION_RUN, Doors, audited};
use super::parse::{flag, known, parse_workspace, text};
use crate::actor::{Call, node_list};
use crate::allowance::Allowance;
use crate::effects::{Attachments, Explanations, LogStore};
use crate::error::Error;
use crate::protected::Protected;
use crate::state::{Command, Outcome, PublishChange};

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
        Ok(self.run_command(&header, workspace, argv, &options, stdio).await?)
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
        Ok(self.log(&command, stream, &options).await?)
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
        Ok(self.input(caller, &command, last).await?)
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
        Ok(self.resize(&command, columns, rows).await?)
    }

    /// Runs a pipeline. `workspace` as in `Run` (the spec's where empty); `spec` is TOML;
    /// `variables` are put for `${KEY}` in it; `stdio` as in `Run`: the input goes to the first
    /// node without an edge into it, output and error come from every node without an edge.
    /// Options: `tap` (b): sample, meter and offer every edge; `strict` (b); `label` (s): its name, instead of the
    /// spec's.
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
        let names = ["label", "strict", "tap"];
        let how = (flag(&options, "tap", &names)?, flag(&options, "strict", &names)?);
        let label = text(&options, "label", &names)?;
        Ok(self.start_pipeline((&header, caller), workspace, (spec, &variables, label), how, stdio).await?)
    }

    /// Ends every node of a pipeline (SIGTERM, then SIGKILL after `grace_ms` milliseconds; 0: at
    /// once), named by its id or by a name that no other one that runs has. Returns the number of
    /// nodes. No options yet.
    #[zbus(out_args("reaped"))]
    async fn stop_pipeline(
        &self,
        #[zbus(header)] header: Header<'_>,
        pipeline: String,
        grace_ms: u64,
        options: Options,
    ) -> Result<u32, WorkspacesError> {
        known(&options, &[])?;
        // One look-up for who may and for what is done: another may come to run by that name in between.
        let found = self
            .doors
            .actor
            .ask(move |state, _| state.find_running_pipeline(&pipeline).map(|found| found.what.id.to_string()));
        let pipeline = match found.await? {
            // that it was asked for in vain is recorded below
            Err(Error::NoSuchPipeline(name)) => name,
            found => found?,
        };
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
        Ok(self.connect_to(workspace, port, wake).await?)
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
        Ok(self.serve_program(caller, workspace, argv, options, stdio).await?)
    }

    /// Every mechanism of isolation with what this host allows: name, `enforced`, `degraded` or
    /// `missing`, and the reason. Found out by trying, when the service started.
    #[zbus(out_args("mechanisms"))]
    fn capabilities(&self) -> Vec<MechanismInfo> {
        self.capabilities.clone()
    }
}

pub(super) fn not_explained() -> Error {
    Error::WrongState(
        "explain: the workspace does not explain refusals; set `explain = true` in its spec, or run the command in \
         one of its own with `shipote run --explain`"
            .to_owned(),
    )
}

pub(super) fn unexpected() -> Error {
    Error::Failed("the state actor gave an answer of another kind; this is a defect of Shipote".to_owned())
}
