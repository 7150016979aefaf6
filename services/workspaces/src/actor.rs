//! The actor: the one place where the state lives. Calls come in from the bus, inputs come
//! back from effects, and nothing else touches the state.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shipote_bus::spec::{ValidatedPipeline, WorkspaceSpec};
use shipote_bus::workspaces::FlowInfo;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use ulid::Ulid;

use crate::effects::{Effects, Handed};
use crate::error::Error;
use crate::state::{
    Command, CommandPhase, Effect, EgressChange, Input, NewCommand, NewPipeline, Outcome, Pipeline, PublishChange,
    RequestId, State, Survivors, Target, Timer, Usec, Workspace,
};

/// Calls that may wait for the actor; past that the bus side waits.
const CALLS_MAX: usize = 1024;

type Answer<T> = oneshot::Sender<T>;

/// What the doors ask.
pub(crate) enum Call {
    Create {
        spec: Box<WorkspaceSpec>,
        strict: bool,
        uid: u32,
        /// A taken name is numbered instead of refused.
        numbered: bool,
    },
    Run {
        target: Target,
        strict: bool,
        uid: u32,
        command: Box<NewCommand>,
        handed: Handed,
    },
    RunPipeline {
        target: Target,
        strict: bool,
        uid: u32,
        tap: bool,
        pipeline: Box<ValidatedPipeline>,
        id: Ulid,
        handed: Handed,
    },
    Signal {
        command: String,
        signal: i32,
    },
    StopWorkspace {
        workspace: String,
        grace: Duration,
    },
    /// Answered once the workspace is awake.
    Wake {
        workspace: String,
    },
    ChangeEgress {
        workspace: String,
        change: EgressChange,
    },
    ChangePublished {
        workspace: String,
        change: PublishChange,
    },
    StopPipeline {
        pipeline: String,
        grace: Duration,
    },
    /// Close the flow sockets of a pipeline that goes on.
    DropFlows {
        pipeline: Ulid,
    },
}

/// An outcome with what belongs to it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    /// Master of the terminal that the started command has.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Questions that change nothing: a closure that sees the state.
type Question = Box<dyn FnOnce(&State, &dyn FlowSource) + Send>;

/// Where figures of flows come from; they are not the state machine's.
pub(crate) trait FlowSource {
    /// All tapped edges, with the figures of the last measurement.
    fn flows(&self) -> Vec<FlowInfo>;
    /// Measures all of them.
    fn measure(&self) -> BoxFuture;
    /// The way into a workspace that stands.
    fn door(&self, workspace: Ulid) -> Option<Arc<shipote_sandbox::Keeper>>;
}

/// Something that is waited for outside of the actor.
pub(crate) type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Message {
    Call(Call, Answer<Result<Done, Error>>),
    Question(Question),
}

/// What the objects on the bus must learn.
#[derive(Debug)]
pub(crate) enum Change {
    Workspace(Box<Workspace>),
    WorkspaceGone(Ulid),
    Command(Box<Command>),
    CommandForgotten(Ulid),
    Pipeline(Box<Pipeline>, Vec<(String, String, i32)>),
    PipelineForgotten(Ulid),
    /// A tapped edge, by pipeline and number.
    Flow(Ulid, usize, Box<FlowInfo>),
    FlowGone(Ulid, usize),
}

/// A way to talk to the actor; cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    messages: mpsc::Sender<Message>,
}

fn gone<T>(_: T) -> Error {
    Error::Failed("the state actor has ended; the service is stopping".to_owned())
}

impl Handle {
    /// Asks for a mutation and waits for its outcome.
    pub(crate) async fn call(&self, call: Call) -> Result<Done, Error> {
        let (answer, answered) = oneshot::channel();
        self.messages.send(Message::Call(call, answer)).await.map_err(gone)?;
        answered.await.map_err(gone)?
    }

    /// Looks at the state.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State, &dyn FlowSource) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |state, flows| {
            let _ = answer.send(question(state, flows));
        });
        self.messages.send(Message::Question(question)).await.map_err(gone)?;
        answered.await.map_err(gone)
    }

    /// Has all tapped edges measured, so that the next look at them shows what is so now.
    pub(crate) async fn measure(&self) -> Result<(), Error> {
        self.ask(|_, flows| flows.measure()).await?.await;
        Ok(())
    }
}

/// The actor itself.
pub(crate) struct Actor<E> {
    state: State,
    effects: E,
    messages: mpsc::Receiver<Message>,
    inputs: mpsc::UnboundedReceiver<Input>,
    inputs_sender: mpsc::UnboundedSender<Input>,
    changes: mpsc::UnboundedSender<Change>,
    waiting: HashMap<RequestId, Answer<Result<Done, Error>>>,
    timers: HashMap<Timer, AbortHandle>,
    next_request: u64,
}

impl<E: Effects> Actor<E> {
    /// An actor with its handle. `inputs` is the channel by which the effects answer: what is
    /// in it is bounded by the number of living commands.
    pub(crate) fn new(
        effects: E,
        inputs: (mpsc::UnboundedSender<Input>, mpsc::UnboundedReceiver<Input>),
        changes: mpsc::UnboundedSender<Change>,
        state: State,
    ) -> (Self, Handle) {
        let (sender, messages) = mpsc::channel(CALLS_MAX);
        let actor = Actor {
            state,
            effects,
            messages,
            inputs: inputs.1,
            inputs_sender: inputs.0,
            changes,
            waiting: HashMap::new(),
            timers: HashMap::new(),
            next_request: 0,
        };
        (actor, Handle { messages: sender })
    }

    /// Goes on with what an earlier instance left behind, then works until the last handle is gone.
    pub(crate) async fn run(mut self, survivors: Survivors) {
        self.step(Input::Resume { survivors: Box::new(survivors) });
        loop {
            tokio::select! {
                biased;
                Some(input) = self.inputs.recv() => self.step(input),
                message = self.messages.recv() => match message {
                    Some(Message::Call(call, answer)) => self.call(call, answer),
                    Some(Message::Question(question)) => question(&self.state, &self.effects),
                    None => return,
                },
            }
        }
    }

    fn call(&mut self, call: Call, answer: Answer<Result<Done, Error>>) {
        // flows are no part of the state: nothing in it changes with them
        if let Call::DropFlows { pipeline } = call {
            let id = pipeline.to_string();
            let existed = self.effects.flows().iter().any(|flow| flow.pipeline == id);
            self.effects.close_flows(pipeline);
            let _ = answer.send(Ok(Done { outcome: Outcome::FlowsDropped(existed), terminal: None }));
            return;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.waiting.insert(request, answer);
        let mut handed_for = None;
        let input = match call {
            Call::DropFlows { .. } => unreachable!("answered above"),
            Call::Create { spec, strict, uid, numbered } => {
                Input::Create { request, id: Ulid::generate(), spec, strict, uid, numbered }
            }
            Call::Run { mut target, strict, uid, mut command, handed } => {
                self.effects.lend(&mut target, strict, uid);
                command.foreground = handed.stdio.is_some() || command.terminal.is_some();
                handed_for = Some(command.id);
                self.effects.hand_over(command.id, handed);
                Input::Run { request, target, strict, uid, commands: vec![*command], pipeline: None }
            }
            Call::RunPipeline { mut target, strict, uid, tap, pipeline, id, handed } => {
                self.effects.lend(&mut target, strict, uid);
                handed_for = Some(id);
                let foreground = handed.stdio.is_some();
                self.effects.hand_over(id, handed);
                let ValidatedPipeline { label, nodes, edges, discern, restart } = *pipeline;
                let commands = nodes
                    .into_iter()
                    .map(|node| NewCommand {
                        id: Ulid::generate(),
                        label: node.label,
                        command: node.command,
                        foreign: node.foreign,
                        further: node.further,
                        soma: node.soma,
                        cwd: None,
                        terminal: None,
                        timeout: None,
                        restart: node.restart,
                        attachable: false,
                        foreground,
                    })
                    .collect();
                let pipeline = Some(NewPipeline { id, label, edges, discern, tap, restart });
                Input::Run { request, target, strict, uid, commands, pipeline }
            }
            Call::Signal { command, signal } => Input::Signal { request, command, signal },
            Call::StopWorkspace { workspace, grace } => Input::StopWorkspace { request, workspace, grace },
            Call::Wake { workspace } => Input::Wake { request, workspace },
            Call::ChangeEgress { workspace, change } => Input::ChangeEgress { request, workspace, change },
            Call::ChangePublished { workspace, change } => Input::ChangePublished { request, workspace, change },
            Call::StopPipeline { pipeline, grace } => Input::StopPipeline { request, pipeline, grace },
        };
        self.step(input);
        // a refused call has started nothing that would use its descriptors: its caller waits for their end
        if let Some(id) = handed_for
            && !self.state.commands.contains_key(&id)
            && !self.state.pipelines.contains_key(&id)
        {
            self.effects.take_back(id);
        }
    }

    fn step(&mut self, input: Input) {
        let mut ended = match &input {
            Input::Exited { command, .. } => vec![*command],
            _ => Vec::new(),
        };
        let effects = self.state.handle(input, now());
        // before anything comes of it: what was begun must be known to whoever has to go on with it
        if self.effects.record(&self.state.take_records()) {
            self.effects.rewrite(&self.state.all_records());
        }
        for effect in effects {
            // those that waited for a launch that will not be, too
            if let Effect::Complete { id, .. } = &effect
                && !ended.contains(id)
            {
                ended.push(*id);
            }
            self.perform(effect);
        }
        for command in ended {
            self.effects.exit_recorded(command, self.state.commands.get(&command));
        }
    }

    fn perform(&mut self, effect: Effect) {
        let state = &self.state;
        match effect {
            Effect::StartKeeper { workspace } => {
                if let Some(workspace) = state.workspaces.get(&workspace) {
                    self.effects.start_keeper(workspace);
                }
            }
            Effect::EndKeeper { workspace, grace } => self.effects.end_keeper(workspace, grace),
            Effect::Wire { pipeline } => {
                if let Some(pipeline) = state.pipelines.get(&pipeline) {
                    let labels: Vec<&str> = pipeline
                        .nodes
                        .iter()
                        .map(|n| state.commands.get(n).map_or("", |c| c.what.label.as_str()))
                        .collect();
                    if let Err(error) = self.effects.wire(pipeline, &labels) {
                        // before the nodes are started: what has failed is not
                        for command in pipeline.nodes.clone() {
                            self.step(Input::StartFailed { command, error: error.clone() });
                        }
                    }
                }
            }
            Effect::StartCommand { command } => {
                if let Some(command) = state.commands.get(&command)
                    && command.phase == CommandPhase::Starting
                    && let Some(workspace) = state.workspaces.get(&command.workspace)
                {
                    self.effects.start_command(workspace, command);
                }
            }
            Effect::Signal { workspace, command, signal } => self.effects.signal(workspace, command, signal),
            Effect::Look { workspace, since } => {
                if let Some(workspace) = state.workspaces.get(&workspace) {
                    self.effects.look(workspace, since);
                }
            }
            Effect::Freeze { workspace } => self.effects.sleep(workspace, true),
            Effect::Thaw { workspace } => self.effects.sleep(workspace, false),
            Effect::Sweep { workspace } => self.effects.sweep(workspace),
            Effect::After { delay, input } => {
                let inputs = self.inputs_sender.clone();
                let task = tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = inputs.send(match input {
                        Timer::Deadline(command) => Input::Deadline { command },
                        Timer::Escalate(command) => Input::Escalate { command },
                        Timer::Idle(workspace) => Input::IdleDue { workspace },
                        Timer::Ttl(workspace) => Input::TtlExpired { workspace },
                        Timer::Relaunch(command) => Input::Relaunch { command },
                        Timer::RelaunchPipeline(pipeline) => Input::RelaunchPipeline { pipeline },
                    });
                });
                // a second, shorter grace comes instead of the first
                if let Some(earlier) = self.timers.insert(input, task.abort_handle()) {
                    earlier.abort();
                }
            }
            Effect::Reply { request, result } => {
                if let Some(answer) = self.waiting.remove(&request) {
                    let result = result.map(|outcome| {
                        let terminal = match outcome {
                            Outcome::Started(id) => self.effects.take_terminal(id),
                            _ => None,
                        };
                        Done { outcome, terminal }
                    });
                    // a caller that went away has nobody left to tell
                    let _ = answer.send(result);
                }
            }
            Effect::DropDescriptors { command } => self.effects.drop_descriptors(command),
            Effect::Complete { id, status, reason, message } => self.effects.complete(id, status, reason, message),
            Effect::WorkspaceChanged { workspace } => {
                if let Some(workspace) = state.workspaces.get(&workspace) {
                    self.publish(Change::Workspace(Box::new(workspace.clone())));
                }
            }
            Effect::WorkspaceGone { workspace } => {
                self.disarm(Timer::Ttl(workspace));
                self.disarm(Timer::Idle(workspace));
                self.effects.forget_keeper(workspace);
                self.publish(Change::WorkspaceGone(workspace));
            }
            Effect::CommandChanged { command } => {
                if let Some(command) = state.commands.get(&command).cloned() {
                    if command.phase == CommandPhase::Ended {
                        self.disarm(Timer::Deadline(command.what.id));
                        self.disarm(Timer::Escalate(command.what.id));
                        self.disarm(Timer::Relaunch(command.what.id));
                    }
                    self.publish(Change::Command(Box::new(command)));
                }
            }
            Effect::CommandForgotten { command } => {
                self.effects.forget_log(command);
                self.publish(Change::CommandForgotten(command));
            }
            Effect::PipelineChanged { pipeline } => {
                if let Some(pipeline) = state.pipelines.get(&pipeline).cloned() {
                    let nodes = node_list(state, &pipeline);
                    if let Some(ended) = pipeline.ended {
                        self.effects.pipeline_ended(&pipeline, now().saturating_sub(ended));
                        self.disarm(Timer::RelaunchPipeline(pipeline.what.id));
                    }
                    self.publish(Change::Pipeline(Box::new(pipeline), nodes));
                }
            }
            Effect::PipelineForgotten { pipeline } => {
                self.effects.forget_flows(pipeline);
                self.publish(Change::PipelineForgotten(pipeline));
            }
        }
    }

    /// A timer whose subject has ended would only hold memory.
    fn disarm(&mut self, timer: Timer) {
        if let Some(task) = self.timers.remove(&timer) {
            task.abort();
        }
    }

    fn publish(&self, change: Change) {
        // the publisher ends only with the service
        let _ = self.changes.send(change);
    }
}

/// Label, command id and process id of each node.
pub(crate) fn node_list(state: &State, pipeline: &Pipeline) -> Vec<(String, String, i32)> {
    let nodes = pipeline.nodes.iter().filter_map(|n| state.commands.get(n));
    nodes.map(|c| (c.what.label.clone(), c.what.id.to_string(), c.pid)).collect()
}

/// Figures for `Health`.
pub(crate) fn figures(state: &State) -> BTreeMap<String, u64> {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    BTreeMap::from([
        ("workspaces".to_owned(), count(state.workspaces.len())),
        ("commands".to_owned(), count(state.living())),
        ("pipelines".to_owned(), count(state.pipelines.values().filter(|p| p.exit_status.is_none()).count())),
    ])
}

pub(crate) fn now() -> Usec {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}
