//! Tapped edges: their relays, sockets and what is known of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shipote_bus::workspaces::FlowInfo;
use shipote_sandbox::{AsyncChannel, Channel, Spawner};
use shipote_service::FdStore;
use tokio::sync::{mpsc, oneshot, watch};
use ulid::Ulid;

use super::wiring::JunctionPlan;
use crate::actor::Change;
use crate::helper::Job;
use crate::relay::{Audience, FromRelay, TapPlan, ToRelay};
use crate::state::Pipeline;

/// How long a relay may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Flow {
    info: FlowInfo,
    socket: Option<PathBuf>,
}

/// Number and sink of an edge, and its socket if it is tapped.
pub(super) type Branch = (usize, OwnedFd, Option<UnixListener>);

/// What a relay is to carry.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Sources, each with the numbers, sinks and sockets of its edges.
    pub(super) junctions: Vec<(OwnedFd, Vec<Branch>)>,
    /// How edges with a socket are tapped, by number; the first for those that have none of their own.
    pub(super) plans: Vec<TapPlan>,
    /// Numbers, sockets and pipes of inlets.
    pub(super) inlets: Vec<(usize, UnixListener, OwnedFd, Audience)>,
}

/// A relay, of a pipeline or of what a workspace shares.
#[derive(Debug)]
struct Relay {
    channel: Arc<AsyncChannel>,
    /// Who waits for figures.
    asked: HashMap<u64, oneshot::Sender<()>>,
    begun: Option<oneshot::Sender<Result<(), String>>>,
}

/// All tapped edges, by pipeline and number of the edge.
#[derive(Debug, Clone)]
pub(super) struct Flows {
    folder: PathBuf,
    pub(super) own_uid: u32,
    spawner: Arc<Spawner>,
    store: FdStore,
    changes: mpsc::UnboundedSender<Change>,
    news: watch::Sender<()>,
    table: Arc<Mutex<BTreeMap<(Ulid, usize), Flow>>>,
    relays: Arc<Mutex<HashMap<Ulid, Relay>>>,
    sequence: Arc<AtomicU64>,
}

/// Name of a relay's channel in the store.
fn stored_name(pipeline: Ulid) -> String {
    format!("r{pipeline}")
}

/// The pipeline whose relay's channel has this name in the store.
pub(super) fn pipeline_of(name: &str) -> Option<Ulid> {
    Ulid::from_string(name.strip_prefix('r')?).ok()
}

impl Flows {
    /// Opens the folder of the sockets. Those of relays that live on stay, the others are dead and go.
    pub(super) fn open(
        runtime: &Path,
        spawner: Arc<Spawner>,
        store: FdStore,
        living: &HashSet<Ulid>,
        changes: mpsc::UnboundedSender<Change>,
    ) -> io::Result<Self> {
        let folder = runtime.join("flows");
        std::fs::create_dir_all(&folder)?;
        // no link is followed when a socket is given to a workspace
        let folder = folder.canonicalize()?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711))?;
        for entry in std::fs::read_dir(&folder)?.filter_map(Result::ok) {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| Ulid::from_string(name.split('-').next()?).ok());
            if !owner.is_some_and(|id| living.contains(&id)) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Flows {
            folder,
            own_uid: rustix::process::getuid().as_raw(),
            spawner,
            store,
            changes,
            news: watch::Sender::new(()),
            table: Arc::default(),
            relays: Arc::default(),
            sequence: Arc::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Ulid, usize), Flow>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn relays(&self) -> std::sync::MutexGuard<'_, HashMap<Ulid, Relay>> {
        self.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn socket(&self, pipeline: Ulid, number: usize) -> PathBuf {
        self.folder.join(format!("{pipeline}-{number}.sock"))
    }

    /// Makes the sockets of a pipeline and has a relay carry its junctions. The future ends when it does.
    pub(super) fn start(
        &self,
        pipeline: &Pipeline,
        labels: &[&str],
        plans: Vec<JunctionPlan>,
    ) -> io::Result<impl Future<Output = Result<(), String>> + Send + 'static> {
        let id = pipeline.what.id;
        let mut junctions = Vec::new();
        for plan in plans {
            let mut edges = Vec::new();
            for (number, sink) in plan.edges {
                let listener = if pipeline.what.tap { Some(self.listen(&self.socket(id, number))?) } else { None };
                self.insert(pipeline, labels, number);
                edges.push((number, sink, listener));
            }
            junctions.push((plan.source, edges));
        }
        let audience = Audience::Users(vec![self.own_uid, pipeline.uid]);
        let plan = TapPlan { policy: pipeline.what.discern.clone(), audience };
        let (flows, load) = (self.clone(), Load { junctions, plans: vec![plan], inlets: Vec::new() });
        Ok(async move { flows.carry(id, load).await })
    }

    /// Starts a relay and gives it what it carries.
    pub(super) async fn carry(self, id: Ulid, load: Load) -> Result<(), String> {
        if load.junctions.is_empty() && load.inlets.is_empty() {
            return Ok(());
        }
        let failed = |error: io::Error| format!("start its relay: {error}");
        let channel = self.spawner.helper().await.map_err(|error| error.to_string())?;
        channel.send(&Job::Relay, &[]).map_err(failed)?;
        let stored = stored_name(id);
        // one of an earlier launch
        self.store.forget(&stored);
        if self.store.is_available() && !self.store.keep(&stored, channel.as_fd()) {
            tracing::warn!("{id}: its flows end with this service: the store of descriptors is full");
        }
        let (channel, begun) = self.follow(id, channel).map_err(failed)?;
        for (source, edges) in load.junctions {
            for (number, sink, listener) in edges {
                let plan = listener.as_ref().and_then(|_| load.plans.get(number).or(load.plans.first()));
                let given: Vec<BorrowedFd<'_>> =
                    [Some(sink.as_fd()), listener.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect();
                channel.send(&ToRelay::Edge { number, tap: plan.cloned() }, &given).await.map_err(failed)?;
            }
            channel.send(&ToRelay::Junction, &[source.as_fd()]).await.map_err(failed)?;
        }
        for (number, listener, pipe, audience) in load.inlets {
            let given = [listener.as_fd(), pipe.as_fd()];
            channel.send(&ToRelay::Inlet { number, audience }, &given).await.map_err(failed)?;
        }
        channel.send(&ToRelay::Begin, &[]).await.map_err(failed)?;
        begun.await.unwrap_or_else(|_| Err("start its relay: it ended at once".to_owned()))
    }

    /// Takes over the relay of a pipeline that an earlier instance started.
    pub(super) fn adopt(&self, pipeline: &Pipeline, labels: &[&str], channel: OwnedFd) -> io::Result<()> {
        for number in 0..pipeline.what.edges.len() {
            self.insert(pipeline, labels, number);
        }
        self.go_on(pipeline.what.id, channel)
    }

    /// Listens to a relay that an earlier instance started, and has it tell all it knows.
    pub(super) fn go_on(&self, id: Ulid, channel: OwnedFd) -> io::Result<()> {
        let (channel, _) = self.follow(id, Channel::new(channel))?;
        tokio::spawn(async move {
            if let Err(error) = channel.send(&ToRelay::Tell, &[]).await {
                tracing::warn!("take over the relay of {id}: {error}");
            }
        });
        Ok(())
    }

    /// Whether a relay carries something of this id.
    pub(super) fn carries(&self, id: Ulid) -> bool {
        self.relays().contains_key(&id)
    }

    /// One more user may connect to what a relay serves.
    pub(super) async fn allow(&self, id: Ulid, uid: u32) {
        let Some(channel) = self.relays().get(&id).map(|relay| Arc::clone(&relay.channel)) else { return };
        if let Err(error) = channel.send(&ToRelay::Allow { uid }, &[]).await {
            tracing::warn!("tell the relay of {id} who may connect: {error}");
        }
    }

    pub(super) fn listen(&self, path: &Path) -> io::Result<UnixListener> {
        // that of an earlier launch
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)
            .map_err(|e| io::Error::new(e.kind(), format!("listen on {}: {e}", path.display())))?;
        // who may connect is decided by uid at each connection
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(listener)
    }

    fn insert(&self, pipeline: &Pipeline, labels: &[&str], number: usize) {
        let id = pipeline.what.id;
        let edge = &pipeline.what.edges[number];
        let socket = pipeline.what.tap.then(|| self.socket(id, number));
        let label = |node: usize| labels.get(node).copied().unwrap_or_default().to_owned();
        let from = (label(edge.from), edge.from_output.clone());
        self.enter(id, number, from, (label(edge.to), edge.to_input.clone()), socket);
    }

    /// Enters a flow into the table, by whose it is and its number: where it comes from, where it goes to.
    pub(super) fn enter(
        &self,
        id: Ulid,
        number: usize,
        (from, from_output): (String, String),
        (to, to_input): (String, String),
        socket: Option<PathBuf>,
    ) {
        let info = FlowInfo {
            edge: u32::try_from(number).unwrap_or(u32::MAX),
            pipeline: id.to_string(),
            from,
            from_output,
            to,
            to_input,
            ty: String::new(),
            mime: String::new(),
            lens: String::new(),
            confidence: 0.0,
            bytes_total: 0,
            bytes_per_sec: 0.0,
            socket: socket.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
            subscribers: 0,
            dropped: 0,
            lost_bytes: 0,
            cut_off: Vec::new(),
            state: "flowing".to_owned(),
        };
        if socket.is_some() {
            self.publish(Change::Flow(id, number, Box::new(info.clone())));
        }
        self.lock().insert((id, number), Flow { info, socket });
    }

    /// Listens to a relay until it ends.
    #[allow(clippy::type_complexity)]
    fn follow(
        &self,
        pipeline: Ulid,
        channel: Channel,
    ) -> io::Result<(Arc<AsyncChannel>, oneshot::Receiver<Result<(), String>>)> {
        let channel = Arc::new(channel.into_async()?);
        let (begun, wait) = oneshot::channel();
        let relay = Relay { channel: Arc::clone(&channel), asked: HashMap::new(), begun: Some(begun) };
        self.relays().insert(pipeline, relay);
        let (flows, own) = (self.clone(), Arc::clone(&channel));
        tokio::spawn(async move {
            loop {
                match own.receive::<FromRelay>().await {
                    Ok(Some(message)) => flows.hear(pipeline, message.body),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!("listen to the relay of pipeline {pipeline}: {error}");
                        break;
                    }
                }
            }
            // it may have been replaced by that of the next launch
            let mut relays = flows.relays();
            if relays.get(&pipeline).is_some_and(|relay| Arc::ptr_eq(&relay.channel, &own)) {
                relays.remove(&pipeline);
            }
        });
        Ok((channel, wait))
    }

    /// Takes what a relay tells into the table.
    fn hear(&self, pipeline: Ulid, message: FromRelay) {
        match message {
            FromRelay::Begun { failure } => {
                if let Some(begun) = self.relays().get_mut(&pipeline).and_then(|relay| relay.begun.take()) {
                    let _ = begun.send(failure.map_or(Ok(()), Err));
                }
            }
            FromRelay::Known { edge, known } => {
                let mut table = self.lock();
                let Some(flow) = table.get_mut(&(pipeline, edge)) else { return };
                if let Some(sampled) = known.sampled {
                    flow.info.ty = sampled.ty;
                    flow.info.mime = sampled.mime;
                    flow.info.lens = sampled.lens;
                    flow.info.confidence = f64::from(sampled.confidence);
                }
                if known.ended {
                    "ended".clone_into(&mut flow.info.state);
                }
                if flow.socket.is_some() {
                    self.publish(Change::Flow(pipeline, edge, Box::new(flow.info.clone())));
                }
                drop(table);
                self.news.send_replace(());
            }
            FromRelay::Note { edge, text, failed: true } => {
                tracing::error!("pipeline {pipeline}, edge {edge}: {text}");
            }
            FromRelay::Note { edge, text, .. } => tracing::debug!("pipeline {pipeline}, edge {edge}: {text}"),
            FromRelay::CutOff { edge, lost_bytes, last } => {
                if let Some(flow) = self.lock().get_mut(&(pipeline, edge)) {
                    flow.info.lost_bytes = lost_bytes;
                    flow.info.cut_off = last;
                }
            }
            FromRelay::Figures { sequence, edges } => {
                let mut table = self.lock();
                for (edge, figures) in edges {
                    if let Some(flow) = table.get_mut(&(pipeline, edge)) {
                        flow.info.bytes_total = figures.bytes_total;
                        flow.info.bytes_per_sec = figures.bytes_per_sec as f64;
                        flow.info.subscribers = u32::try_from(figures.subscribers).unwrap_or(u32::MAX);
                        flow.info.dropped = figures.dropped;
                    }
                }
                drop(table);
                if let Some(asked) = self.relays().get_mut(&pipeline).and_then(|relay| relay.asked.remove(&sequence)) {
                    let _ = asked.send(());
                }
            }
        }
    }

    /// Asks all relays for their figures; those of one that does not answer stay what they were.
    pub(super) fn measure(&self) -> impl Future<Output = ()> + Send + 'static {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let waits: Vec<_> = self
            .relays()
            .values_mut()
            .map(|relay| {
                let (answer, wait) = oneshot::channel();
                relay.asked.insert(sequence, answer);
                (Arc::clone(&relay.channel), wait)
            })
            .collect();
        let all = async move {
            // all are asked before any is waited for
            for (channel, _) in &waits {
                let _ = channel.send(&ToRelay::Measure { sequence }, &[]).await;
            }
            for (_, wait) in waits {
                // one that has ended answers no more
                let _ = wait.await;
            }
        };
        let relays = Arc::clone(&self.relays);
        async move {
            if tokio::time::timeout(ANSWER_TIME, all).await.is_err() {
                tracing::warn!("a relay does not answer");
            }
            for relay in relays.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
                relay.asked.remove(&sequence);
            }
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

    /// All tapped edges, with their figures as they were last [measured](Flows::measure).
    pub(super) fn list(&self) -> Vec<FlowInfo> {
        self.lock().values().filter(|flow| flow.socket.is_some()).map(|flow| flow.info.clone()).collect()
    }

    /// Drops the flows of a pipeline: subscribers see the end, sockets go. What still flows goes on.
    pub(super) fn close(&self, pipeline: Ulid) {
        self.remove(pipeline);
        if let Some(channel) = self.relays().get(&pipeline).map(|relay| Arc::clone(&relay.channel)) {
            tokio::spawn(async move {
                // one that has ended has no socket left
                let _ = channel.send(&ToRelay::CloseTaps, &[]).await;
            });
        }
    }

    /// As `close`, of a pipeline that has ended: its relay ends.
    pub(super) fn forget(&self, pipeline: Ulid) {
        self.remove(pipeline);
        self.store.forget(&stored_name(pipeline));
        if let Some(relay) = self.relays().remove(&pipeline) {
            // the task that listens holds it, too
            let _ = rustix::net::shutdown(relay.channel.as_fd(), rustix::net::Shutdown::Both);
        }
    }

    fn remove(&self, pipeline: Ulid) {
        let mut table = self.lock();
        let gone: Vec<_> = table.range((pipeline, 0)..=(pipeline, usize::MAX)).map(|(k, _)| *k).collect();
        for key in gone {
            if let Some(path) = table.remove(&key).and_then(|flow| flow.socket) {
                self.publish(Change::FlowGone(key.0, key.1));
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::warn!("remove {}: {error}", path.display());
                }
            }
        }
    }
}
