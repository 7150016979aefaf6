//! Keeps the objects on the bus in step with the state: the actor says what changed, this
//! task adds, changes and removes objects, in the same order.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use shipote_audit::{Door, Event, Record};
use shipote_bus::Service;
use shipote_bus::workspaces::{CommandInfo, FlowInfo, PipelineInfo};
use shipote_service::mechanism_info;
use tokio::sync::mpsc;
use ulid::Ulid;
use zbus::fdo::Properties;
use zbus::object_server::{Interface, SignalEmitter};
use zbus::{ObjectPath, ObjectServer, Variant};

use super::convert;
use super::doors::Doors;
use super::egress::{Egress, goes_out};
use super::objects::{CommandObject, FlowObject, PipelineObject, Shared, WorkspaceObject, WorkspaceView, exit_status};
use crate::actor::Change;
use crate::state::{Command, CommandPhase, Pipeline, Workspace};

/// Changes that are published one after the other, without a look at what else there is to do.
const TOGETHER: usize = 64;

struct Publisher {
    connection: zbus::Connection,
    doors: Doors,
    workspaces: HashMap<Ulid, Shared<WorkspaceView>>,
    commands: HashMap<Ulid, Shared<CommandInfo>>,
    pipelines: HashMap<Ulid, Shared<PipelineInfo>>,
    flows: HashMap<(Ulid, usize), Shared<FlowInfo>>,
    /// Workspaces that go out through the proxy.
    going_out: HashSet<Ulid>,
}

/// Publishes until the actor ends.
pub(crate) async fn publish(connection: zbus::Connection, doors: Doors, mut changes: mpsc::UnboundedReceiver<Change>) {
    let mut publisher = Publisher {
        connection,
        doors,
        workspaces: HashMap::new(),
        commands: HashMap::new(),
        pipelines: HashMap::new(),
        flows: HashMap::new(),
        going_out: HashSet::new(),
    };
    let mut some = Vec::new();
    while changes.recv_many(&mut some, TOGETHER).await > 0 {
        // Whoever waits for a command to start or to have ended comes before those who only hear of it: this goes on
        // once nothing else is to be done at once.
        tokio::task::yield_now().await;
        for change in some.drain(..) {
            if let Err(error) = publisher.take(change).await {
                tracing::warn!("publish a change on the bus: {error}");
            }
        }
    }
}

fn write<T>(shared: &Shared<T>, value: T) {
    *shared.write().unwrap_or_else(PoisonError::into_inner) = value;
}

impl Publisher {
    fn server(&self) -> &ObjectServer {
        self.connection.object_server()
    }

    async fn take(&mut self, change: Change) -> zbus::Result<()> {
        match change {
            Change::Workspace(workspace) => self.workspace(*workspace).await,
            Change::WorkspaceGone(id) => {
                if self.going_out.remove(&id) {
                    self.egress_changed(id).await?;
                }
                if self.workspaces.remove(&id).is_some() {
                    self.server().remove::<WorkspaceObject, _>(convert::object_path("workspace", id)).await?;
                }
                Ok(())
            }
            Change::Command(command) => self.command(&command).await,
            Change::CommandForgotten(id) => {
                if self.commands.remove(&id).is_some() {
                    self.server().remove::<CommandObject, _>(convert::object_path("command", id)).await?;
                }
                Ok(())
            }
            Change::Flow(pipeline, edge, info) => self.flow(pipeline, edge, *info).await,
            Change::FlowGone(pipeline, edge) => {
                if self.flows.remove(&(pipeline, edge)).is_some() {
                    self.server().remove::<FlowObject, _>(convert::flow_path(pipeline, edge)).await?;
                }
                Ok(())
            }
            Change::Pipeline(pipeline, nodes) => self.pipeline(&pipeline, nodes).await,
            Change::PipelineForgotten(id) => {
                if self.pipelines.remove(&id).is_some() {
                    self.server().remove::<PipelineObject, _>(convert::object_path("pipeline", id)).await?;
                }
                Ok(())
            }
        }
    }

    /// Says what has become of an object, in one signal: whoever hears of one property has the others with it.
    async fn changed<I: Interface>(
        &self,
        path: &ObjectPath<'_>,
        properties: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(&self.connection, path)?;
        Properties::properties_changed(&emitter, I::name(), properties, Cow::Borrowed(&[])).await
    }

    /// Tells whoever serves the doors to look again.
    async fn egress_changed(&self, id: Ulid) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(&self.connection, Service::Workspaces.path())?;
        Egress::changed(&emitter, &id.to_string()).await
    }

    /// A workspace falls asleep and is woken by what it is asked for: nobody's mutation, but one.
    fn record_sleep(&self, workspace: &Workspace) {
        let event = if workspace.sleep.asleep { Event::WorkspaceFreeze } else { Event::WorkspaceThaw };
        let own = rustix::process::getuid().as_raw();
        if let Err(error) = self.doors.audit.record(&Record::new(event, &workspace.name, own, Door::Itself)) {
            tracing::error!("record {event:?} of {}: {error}", workspace.name);
        }
    }

    async fn workspace(&mut self, workspace: Workspace) -> zbus::Result<()> {
        if goes_out(&workspace) {
            self.going_out.insert(workspace.id);
            self.egress_changed(workspace.id).await?;
        }
        let path = convert::object_path("workspace", workspace.id);
        let shared = self.workspaces.get(&workspace.id);
        let slept = shared.map(|shared| shared.read().unwrap_or_else(PoisonError::into_inner).state == "sleeping");
        if slept.is_some_and(|slept| slept != workspace.sleep.asleep) {
            self.record_sleep(&workspace);
        }
        let view = WorkspaceView {
            id: workspace.id.to_string(),
            state: workspace.state().to_owned(),
            name: workspace.name,
            spec: workspace.spec,
            created: workspace.created,
            uid: workspace.uid,
            isolation: workspace.mechanisms.iter().map(mechanism_info).collect(),
            sleeps: workspace.sleep.times,
            wake_usec: workspace.sleep.wake_usec,
            given_back: workspace.sleep.given_back,
        };
        if let Some(shared) = shared {
            let properties = HashMap::from([("State", view.state.clone().into())]);
            write(shared, view);
            self.changed::<WorkspaceObject>(&path, properties).await
        } else {
            let shared = Arc::new(RwLock::new(view));
            self.workspaces.insert(workspace.id, Arc::clone(&shared));
            self.server().at(&path, WorkspaceObject { doors: self.doors.clone(), view: shared }).await?;
            Ok(())
        }
    }

    async fn command(&mut self, command: &Command) -> zbus::Result<()> {
        let id = command.what.id;
        let path = convert::object_path("command", id);
        let info = convert::command(command, None);
        if let Some(shared) = self.commands.get(&id) {
            let properties = HashMap::from([
                ("Pid", info.pid.into()),
                ("State", info.state.clone().into()),
                ("ExitStatus", exit_status(info.exit_status).into()),
                ("Reason", info.reason.clone().into()),
            ]);
            write(shared, info);
            self.changed::<CommandObject>(&path, properties).await
        } else if command.phase == CommandPhase::Ended {
            // it never ran: nobody has been told of an object
            Ok(())
        } else {
            let shared = Arc::new(RwLock::new(info));
            self.commands.insert(id, Arc::clone(&shared));
            self.server().at(&path, CommandObject { doors: self.doors.clone(), info: shared }).await?;
            Ok(())
        }
    }

    async fn pipeline(&mut self, pipeline: &Pipeline, nodes: Vec<(String, String, i32)>) -> zbus::Result<()> {
        let id = pipeline.what.id;
        let path = convert::object_path("pipeline", id);
        let info = convert::pipeline(pipeline, nodes);
        if let Some(shared) = self.pipelines.get(&id) {
            let properties = HashMap::from([
                ("State", info.state.clone().into()),
                ("ExitStatus", exit_status(info.exit_status).into()),
            ]);
            write(shared, info);
            self.changed::<PipelineObject>(&path, properties).await
        } else if pipeline.exit_status.is_some() {
            Ok(())
        } else {
            let shared = Arc::new(RwLock::new(info));
            self.pipelines.insert(id, Arc::clone(&shared));
            self.server().at(&path, PipelineObject { doors: self.doors.clone(), info: shared }).await?;
            Ok(())
        }
    }

    async fn flow(&mut self, pipeline: Ulid, edge: usize, info: FlowInfo) -> zbus::Result<()> {
        let path = convert::flow_path(pipeline, edge);
        if let Some(shared) = self.flows.get(&(pipeline, edge)) {
            let properties = HashMap::from([("Ty", info.ty.clone().into()), ("State", info.state.clone().into())]);
            write(shared, info);
            self.changed::<FlowObject>(&path, properties).await
        } else {
            let shared = Arc::new(RwLock::new(info));
            self.flows.insert((pipeline, edge), Arc::clone(&shared));
            self.server().at(&path, FlowObject { doors: self.doors.clone(), info: shared }).await?;
            Ok(())
        }
    }
}
