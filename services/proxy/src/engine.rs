//! The data plane as a whole: its workers, what they listen on, and the plan they run by.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use shipote_bus::proxy::{CertInfo, PoolInfo};
use shipote_rules::{Graph, ListenSpec, Listener, Terminator, Transport};
use tokio::sync::{mpsc, oneshot};

use crate::acme::{Acme, Challenges};
use crate::cgi::{self, Start};
use crate::figures::Figures;
use crate::flows::{Flow, Flows};
use crate::health::Health;
use crate::listen::{Inherited, Listeners, Opened};
use crate::plan::{LinkError, Plan, Plugins};
use crate::plugin::own::Own;
use crate::plugin::{CanaryFailed, Place, PluginCode, Runtime};
use crate::settings::Settings;
use crate::shared::Shared;
use crate::upstream::{Ask, Registry};
use crate::worker::{self, Command, Window};

/// Why a graph was not taken; the one before goes on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A rule asks for what this build cannot do.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Plugins cannot be run at all.
    #[error("start the engine of plugins: {0}")]
    Plugins(String),
    /// An address could not be bound.
    #[error("{whose}: listen on {address}: {source}; {}", way_out(.source))]
    Listen {
        /// File and name of the first rule that wants it.
        whose: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

/// What to do about an address that could not be bound.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "end what listens there (`ss -lntup` shows it), or give the rule another address",
        io::ErrorKind::PermissionDenied => {
            "give the rule a port from 1024 on, or the proxy CAP_NET_BIND_SERVICE, as its unit does"
        }
        io::ErrorKind::AddrNotAvailable => "give the rule an address that this host has",
        _ => "give the rule another address",
    }
}

/// The first rule that has a socket of this address opened.
fn listens(graph: &Graph, spec: &ListenSpec) -> String {
    // One socket may stand for two addresses of a port.
    let same = |l: &&Listener| l.listen.socket() == spec.socket();
    let port = |l: &&Listener| l.listen.address.port() == spec.address.port();
    let listener = graph.listeners.iter().find(same).or_else(|| graph.listeners.iter().find(port));
    graph.whose(listener.and_then(|l| l.rules.first()).map_or("", String::as_str))
}

/// An open connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its number; flows name it.
    pub id: u64,
    /// Who connected.
    pub remote: SocketAddr,
    /// Where.
    pub listener: SocketAddr,
    /// For how long, milliseconds.
    pub age_ms: u64,
}

/// What is known of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamInfo {
    /// Its address as rules write it.
    pub address: String,
    /// Whether it is passed by because it could not be reached.
    pub down: bool,
    /// Requests and tunnels open now.
    pub open: u64,
    /// Requests and tunnels in all.
    pub total: u64,
    /// Connections that could not be made.
    pub failures: u64,
}

struct Handle {
    /// Taken when the engine ends, which ends the worker.
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<std::thread::JoinHandle<()>>,
    window: Window,
}

/// What the workers listen on.
#[derive(Debug)]
struct Listening {
    /// The addresses of the rules.
    wanted: Vec<ListenSpec>,
    /// Those that have sockets of their own.
    sockets: Vec<ListenSpec>,
    listeners: Listeners,
}

/// A running data plane.
pub struct Engine {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    registry: Registry,
    /// The workers' wishes for programs, until somebody takes them.
    starts: Mutex<Option<mpsc::Receiver<Start>>>,
    workers: Vec<Handle>,
    /// The plan before the one that holds. Kept so that no worker is the last to let go of it: taking a large one to
    /// pieces takes milliseconds, which its requests would wait for.
    retired: Mutex<Option<Arc<Plan>>>,
    acme: Acme,
    listening: Mutex<Listening>,
    health: Health,
    runtime: OnceLock<Runtime>,
    tell: mpsc::UnboundedSender<CanaryFailed>,
    told: Mutex<Option<mpsc::UnboundedReceiver<CanaryFailed>>>,
}

impl Engine {
    /// What the workers ask for by name (ports of workspaces): whoever takes this answers from now on, and only then
    /// rules may name such upstreams. None when it was taken before.
    pub fn take_asked(&self) -> Option<tokio::sync::mpsc::Receiver<Ask>> {
        self.registry.take_asked()
    }

    /// The programs that workers want to run (CGI): whoever takes this runs them from now on, and only then rules may name
    /// some. None when it was taken before.
    pub fn take_starts(&self) -> Option<mpsc::Receiver<Start>> {
        self.starts.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Starts the workers, with rules that match nothing. `inherited` is what was listened on before.
    ///
    /// # Errors
    /// A thread could not be started, or an inherited socket has no address.
    pub fn start(settings: Settings, inherited: Inherited) -> io::Result<Self> {
        let listeners = Listeners::new(inherited)?;
        let settings = Arc::new(settings);
        let registry = Registry::new();
        let empty = Graph {
            listeners: Vec::new(),
            nodes: Vec::new(),
            checks: Vec::new(),
            middleware: Vec::new(),
            terminators: Vec::new(),
            files: Vec::new(),
            sources: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let none = Plugins { runtime: None, codes: &[] };
        let acme = Acme { store: settings.acme.clone(), ..Acme::default() };
        let plan = Plan::link(empty, &registry, &none, &acme, None).map_err(io::Error::other)?;
        let (wish, starts) = cgi::channel();
        let shared = Arc::new(Shared::new(Arc::new(plan), wish));
        let mut workers = Vec::with_capacity(settings.workers);
        for i in 0..settings.workers.max(1) {
            let (commands, receiver) = mpsc::unbounded_channel();
            let flows = settings.flows.div_ceil(settings.workers.max(1));
            let window = || Window {
                figures: Arc::new(Figures::default()),
                flows: Arc::new(Flows::new(flows, settings.flow_log.clone())),
                connections: Arc::default(),
            };
            let window = window();
            let theirs = Window {
                figures: Arc::clone(&window.figures),
                flows: Arc::clone(&window.flows),
                connections: Arc::clone(&window.connections),
            };
            let (settings, shared) = (Arc::clone(&settings), Arc::clone(&shared));
            let thread = std::thread::Builder::new()
                .name(format!("worker-{i}"))
                .spawn(move || worker::run(settings, shared, &theirs, receiver))?;
            workers.push(Handle { commands: Some(commands), thread: Some(thread), window });
        }
        let (tell, told) = mpsc::unbounded_channel();
        Ok(Self {
            settings,
            shared,
            registry,
            acme,
            starts: Mutex::new(Some(starts)),
            workers,
            retired: Mutex::default(),
            health: Health::start()?,
            listening: Mutex::new(Listening { wanted: Vec::new(), sockets: Vec::new(), listeners }),
            runtime: OnceLock::new(),
            tell,
            told: Mutex::new(Some(told)),
        })
    }

    /// The canaries that fail from now on, each once; no more comes for one than there are trials. None when it was taken
    /// before.
    pub fn take_failed(&self) -> Option<mpsc::UnboundedReceiver<CanaryFailed>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Goes over to another graph, whole or not at all: all of its addresses are bound before it holds. Requests that
    /// are open end by the graph that they began with.
    ///
    /// # Errors
    /// [`ApplyError`]; the graph from before goes on.
    pub fn apply(&self, graph: Graph) -> Result<(), ApplyError> {
        self.apply_with(graph, &[])
    }

    /// The same for rules that use plugins: `codes` holds each that they name.
    ///
    /// # Errors
    /// [`ApplyError`]; the graph from before goes on.
    pub fn apply_with(&self, graph: Graph, codes: &[PluginCode]) -> Result<(), ApplyError> {
        self.runs_programs(&graph)?;
        let before = self.shared.plan();
        let runtime = if codes.is_empty() { None } else { Some(self.runtime()?) };
        let plan = Plan::link(graph, &self.registry, &Plugins { runtime, codes }, &self.acme, Some(&before))?;
        if let Some(runtime) = self.runtime.get() {
            runtime.keep(codes);
        }
        let wanted: Vec<ListenSpec> = plan.graph.listeners.iter().map(|l| l.listen).collect();
        let mut listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner);
        let Listening { wanted: had, sockets, listeners } = &mut *listening;
        let needed = listeners.physical(&wanted);
        let mut new: Vec<(ListenSpec, Vec<Opened>)> = Vec::new();
        for spec in needed.iter().filter(|spec| !sockets.contains(spec)) {
            match listeners.open(*spec, self.workers.len()) {
                Ok(opened) => new.push((*spec, opened)),
                Err(source) => {
                    new.into_iter().for_each(|(spec, opened)| listeners.give_back(spec, opened));
                    return Err(ApplyError::Listen {
                        whose: listens(&plan.graph, spec),
                        address: spec.address,
                        source,
                    });
                }
            }
        }
        let plan = Arc::new(plan);
        self.health.watch(&plan);
        self.shared.swap(plan);
        *self.retired.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        for (spec, opened) in new {
            listeners.keep(spec, &opened);
            for Opened { worker, socket, .. } in opened {
                let command = match spec.transport {
                    Transport::Tcp => Command::Listen(spec.address, socket.into()),
                    Transport::Udp => Command::Receive(spec.address, socket.into()),
                    Transport::Quic => Command::Quic(spec.address, socket.into()),
                };
                tell(&self.workers[worker], command);
            }
        }
        for spec in sockets.iter().filter(|spec| !needed.contains(spec)) {
            self.workers.iter().for_each(|w| tell(w, Command::Unlisten(*spec)));
            listeners.close(spec);
        }
        for spec in had.iter().filter(|spec| !wanted.contains(spec)) {
            self.workers.iter().for_each(|w| tell(w, Command::EndIdle(*spec)));
        }
        listeners.settle(&needed);
        (*had, *sockets) = (wanted, needed);
        Ok(())
    }

    /// Refuses rules that run programs where nobody does so.
    fn runs_programs(&self, graph: &Graph) -> Result<(), LinkError> {
        if self.starts.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            return Ok(());
        }
        match graph.terminators.iter().find(|t| matches!(t.terminator, Terminator::Cgi(_))) {
            None => Ok(()),
            Some(entry) => Err(LinkError {
                whose: graph.whose(&entry.rule),
                reason: "cgi: nobody here runs programs; that needs the bus".to_owned(),
            }),
        }
    }

    /// The engine of plugins, made when rules first use one: without them it would only take memory.
    fn runtime(&self) -> Result<&Runtime, ApplyError> {
        if self.runtime.get().is_none() {
            let made = Runtime::new(self.tell.clone()).map_err(ApplyError::Plugins)?;
            // Two that are made at once are alike; one is kept.
            let _ = self.runtime.set(made);
        }
        self.runtime.get().ok_or_else(|| ApplyError::Plugins("no engine".to_owned()))
    }

    /// Stops accepting, lets open requests end, and returns when the last connection is gone or time is up; then how
    /// many connections were left.
    pub async fn drain(&self) -> u64 {
        self.shared.drain();
        let mut ends = Vec::new();
        for worker in &self.workers {
            let (done, ended) = oneshot::channel();
            tell(worker, Command::Drain(done));
            ends.push(ended);
        }
        let all = async {
            for end in ends {
                // A worker that is gone has nothing open.
                let _ = end.await;
            }
        };
        if tokio::time::timeout(self.settings.drain_time, all).await.is_ok() { 0 } else { self.open() }
    }

    /// Flows that are missing from the flow log.
    pub(crate) fn unlogged(&self) -> u64 {
        self.settings.flow_log.as_ref().map_or(0, crate::FlowLog::lost)
    }

    /// The graph that holds now.
    #[must_use]
    pub fn with_graph<R>(&self, f: impl FnOnce(&Graph) -> R) -> R {
        f(&self.shared.plan().graph)
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.workers.iter().map(|w| w.window.figures.open.get()).sum()
    }

    /// The open connections, oldest first.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let now = Instant::now();
        let mut all = Vec::new();
        for worker in &self.workers {
            let open = worker.window.connections.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(open.iter().map(|(id, c)| ConnectionInfo {
                id: *id,
                remote: c.remote,
                listener: c.listener,
                age_ms: u64::try_from(now.saturating_duration_since(c.since).as_millis()).unwrap_or(u64::MAX),
            }));
        }
        all.sort_by_key(|c| c.id);
        all
    }

    /// The upstreams that rules named since the start.
    #[must_use]
    pub fn upstreams(&self) -> Vec<UpstreamInfo> {
        use std::sync::atomic::Ordering::Relaxed;
        let info = |t: Arc<crate::upstream::Target>| UpstreamInfo {
            address: t.name.clone(),
            down: t.is_down(),
            open: t.open.load(Relaxed) as u64,
            total: t.total.load(Relaxed),
            failures: t.failures.load(Relaxed),
        };
        // One address may be spoken to in several ways; who looks at it sees one upstream.
        let mut all: Vec<UpstreamInfo> = Vec::new();
        for one in self.registry.all().into_iter().map(info) {
            match all.iter_mut().find(|u| u.address == one.address) {
                Some(known) => {
                    known.down |= one.down;
                    known.open += one.open;
                    known.total += one.total;
                    known.failures += one.failures;
                }
                None => all.push(one),
            }
        }
        all
    }

    /// The certificates of the listeners. Blocking: how asking for those by ACME fared is read from their folder.
    #[must_use]
    pub fn certs(&self) -> Vec<CertInfo> {
        let mut certs = self.shared.plan().certs.clone();
        let Some(store) = &self.acme.store else { return certs };
        for cert in certs.iter_mut().filter(|cert| !cert.wanted.is_empty()) {
            let status = store.status(&cert.wanted[0]);
            (cert.error, cert.next_try) = (status.error, status.next_try);
        }
        certs
    }

    /// What authorities are answered that look whether a name leads here.
    #[must_use]
    pub fn challenges(&self) -> &Challenges {
        &self.acme.challenges
    }

    /// The call sites of plugins, as the plan that holds has them.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolInfo> {
        self.shared.plan().places.iter().flatten().flat_map(Place::infos).collect()
    }

    /// What each plugin keeps and counts, by name.
    pub(crate) fn owned(&self) -> Vec<(String, Arc<Own>)> {
        self.runtime.get().map(Runtime::owned).unwrap_or_default()
    }

    /// The last flows of all workers, oldest first.
    #[must_use]
    pub fn flows(&self, count: usize) -> Vec<Flow> {
        let mut all: Vec<Flow> = self.workers.iter().flat_map(|w| w.window.flows.last(count)).collect();
        all.sort_by_key(|f| f.unix_ms);
        all.split_off(all.len().saturating_sub(count))
    }

    pub(crate) fn figures(&self) -> impl Iterator<Item = &Figures> {
        self.workers.iter().map(|w| &*w.window.figures)
    }
}

impl Drop for Engine {
    /// Ends the workers and waits for them, so that their addresses are free again.
    fn drop(&mut self) {
        self.workers.iter_mut().for_each(|w| drop(w.commands.take()));
        for thread in self.workers.iter_mut().filter_map(|w| w.thread.take()) {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

/// A worker that does not listen any more has ended on purpose.
fn tell(worker: &Handle, command: Command) {
    if let Some(commands) = &worker.commands {
        let _ = commands.send(command);
    }
}
