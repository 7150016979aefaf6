//! Tapped edges: their junctions, sockets and what is known of them.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use shipote_bus::spec::DiscernPolicy;
use shipote_bus::workspaces::FlowInfo;
use shipote_flow::{EdgeId, EdgeSink, FlowEvent, Junction, Tap, TapSpec};
use tokio::sync::{mpsc, watch};
use ulid::Ulid;

use super::wiring::JunctionPlan;
use crate::actor::Change;
use crate::state::Pipeline;

/// Most subscribers of one edge.
const SUBSCRIBERS_MAX: usize = 64;

#[derive(Debug)]
struct Flow {
    info: FlowInfo,
    junction: Arc<Junction>,
    edge: EdgeId,
    socket: Option<PathBuf>,
}

/// All tapped edges, by pipeline and number of the edge.
#[derive(Debug, Clone)]
pub(super) struct Flows {
    folder: PathBuf,
    own_uid: u32,
    changes: mpsc::UnboundedSender<Change>,
    news: watch::Sender<()>,
    table: Arc<Mutex<BTreeMap<(Ulid, usize), Flow>>>,
}

impl Flows {
    /// Opens the folder of the sockets; those of an earlier instance are dead and go.
    pub(super) fn open(runtime: &Path, changes: mpsc::UnboundedSender<Change>) -> io::Result<Self> {
        let folder = runtime.join("flows");
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir_all(&folder)?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711))?;
        Ok(Flows {
            folder,
            own_uid: rustix::process::getuid().as_raw(),
            changes,
            news: watch::Sender::new(()),
            table: Arc::default(),
        })
    }

    /// Starts the junctions of a pipeline.
    pub(super) fn start(&self, pipeline: &Pipeline, labels: &[&str], plans: Vec<JunctionPlan>) -> io::Result<()> {
        for plan in plans {
            self.start_junction(pipeline, labels, plan)?;
        }
        Ok(())
    }

    fn start_junction(&self, pipeline: &Pipeline, labels: &[&str], plan: JunctionPlan) -> io::Result<()> {
        let id = pipeline.what.id;
        let mut sockets = Vec::new();
        let mut sinks = Vec::new();
        for (number, sink) in plan.edges {
            let tap = if pipeline.what.tap {
                let path = self.folder.join(format!("{id}-{number}.sock"));
                let listener = UnixListener::bind(&path)
                    .map_err(|e| io::Error::new(e.kind(), format!("listen on {}: {e}", path.display())))?;
                // who may connect is decided by uid at each connection
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
                sockets.push((number, Some(path)));
                let (own, owner) = (self.own_uid, pipeline.uid);
                let allow = Arc::new(move |uid: u32| uid == 0 || uid == own || uid == owner);
                Some(Tap { spec: tap_spec(&pipeline.what.discern), listener, allow })
            } else {
                sockets.push((number, None));
                None
            };
            sinks.push(EdgeSink { id: EdgeId(number as u64), sink, tap });
        }
        let (events, receiver) = mpsc::unbounded_channel();
        let junction = Arc::new(Junction::start(plan.source, sinks, events).map_err(io::Error::other)?);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, socket) in sockets {
            let edge = &pipeline.what.edges[number];
            let label = |node: usize| labels.get(node).copied().unwrap_or_default().to_owned();
            let info = FlowInfo {
                edge: u32::try_from(number).unwrap_or(u32::MAX),
                pipeline: id.to_string(),
                from: label(edge.from),
                from_output: edge.from_output.clone(),
                to: label(edge.to),
                to_input: edge.to_input.clone(),
                ty: String::new(),
                mime: String::new(),
                lens: String::new(),
                confidence: 0.0,
                bytes_total: 0,
                bytes_per_sec: 0.0,
                socket: socket.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
                subscribers: 0,
                dropped: 0,
                state: "flowing".to_owned(),
            };
            if socket.is_some() {
                self.publish(Change::Flow(id, number, Box::new(info.clone())));
            }
            let flow = Flow { info, junction: Arc::clone(&junction), edge: EdgeId(number as u64), socket };
            table.insert((id, number), flow);
        }
        tokio::spawn(self.clone().follow(id, receiver));
        Ok(())
    }

    /// Takes what the junction tells into the table.
    async fn follow(self, pipeline: Ulid, mut events: mpsc::UnboundedReceiver<FlowEvent>) {
        while let Some(event) = events.recv().await {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let mut with = |edge: EdgeId, change: &mut dyn FnMut(&mut FlowInfo)| {
                if let Some(flow) = usize::try_from(edge.0).ok().and_then(|n| table.get_mut(&(pipeline, n))) {
                    change(&mut flow.info);
                    if flow.socket.is_some() {
                        self.publish(Change::Flow(pipeline, flow.info.edge as usize, Box::new(flow.info.clone())));
                    }
                }
            };
            match event {
                FlowEvent::Sampled { id, discernment } => with(id, &mut |info| {
                    info.ty = discernment.ty.to_string();
                    info.mime = discernment.mime.map(ToString::to_string).unwrap_or_default();
                    info.lens = discernment.lens.map(ToString::to_string).unwrap_or_default();
                    info.confidence = f64::from(discernment.confidence);
                }),
                FlowEvent::Ended { id, .. } => with(id, &mut |info| "ended".clone_into(&mut info.state)),
                FlowEvent::Failed { id, reason, .. } => {
                    tracing::error!("pipeline {pipeline}, edge {id:?}: {reason}");
                }
                other => tracing::debug!("pipeline {pipeline}: {other:?}"),
            }
            drop(table);
            self.news.send_replace(());
        }
    }

    fn publish(&self, change: Change) {
        // the publisher ends only with the service
        let _ = self.changes.send(change);
    }

    /// Changes whenever something becomes known of a flow.
    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// All tapped edges with their figures.
    pub(super) fn list(&self) -> Vec<FlowInfo> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table
            .values()
            .filter(|flow| flow.socket.is_some())
            .map(|flow| {
                let mut info = flow.info.clone();
                if let Some(stats) = flow.junction.stats(flow.edge) {
                    info.bytes_total = stats.bytes_total;
                    info.bytes_per_sec = stats.bytes_per_sec as f64;
                    info.subscribers = u32::try_from(stats.subscribers).unwrap_or(u32::MAX);
                    info.dropped = stats.dropped_subscribers;
                }
                info
            })
            .collect()
    }

    /// Drops the flows of a pipeline: subscribers see the end, sockets go.
    pub(super) fn forget(&self, pipeline: Ulid) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = table.range((pipeline, 0)..=(pipeline, usize::MAX)).map(|(k, _)| *k).collect();
        for key in gone {
            if let Some(flow) = table.remove(&key) {
                self.publish(Change::FlowGone(key.0, key.1));
                flow.junction.close_taps();
                if let Some(path) = flow.socket
                    && let Err(error) = std::fs::remove_file(&path)
                {
                    tracing::warn!("remove {}: {error}", path.display());
                }
            }
        }
    }
}

fn tap_spec(policy: &DiscernPolicy) -> TapSpec {
    TapSpec {
        sample_bytes: policy.sample_bytes,
        replay_chunks: policy.replay_chunks,
        replay_bytes: policy.replay_bytes,
        max_bytes_per_sec: policy.max_bytes_per_sec,
        lossless: policy.lossless,
        max_subscribers: SUBSCRIBERS_MAX,
    }
}
