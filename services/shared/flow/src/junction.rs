//! The handle on a running junction.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::event::EventfdFlags;
use tokio::sync::{mpsc, oneshot};

use crate::bucket::TokenBucket;
use crate::edge::Edge;
use crate::event::Events;
use crate::inlet::Inlet;
use crate::outlet::Outlet;
use crate::pipe::Trash;
use crate::run::Run;
use crate::stats::Shared;
use crate::tap::TapState;
use crate::{BATCH_BYTES, CutOff, EdgeId, EdgeSink, EdgeStats, FlowError, FlowEvent};

/// Discerning a type parses the sample, some eighty levels deep at most; the rest needs little.
const STACK_BYTES: usize = 512 * 1024;

/// What the producer's and the consumers' pipes are enlarged to, where the kernel allows it.
const PIPE_BYTES: usize = BATCH_BYTES;

/// What the handle tells the thread.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) wake: OwnedFd,
    close_taps: AtomicBool,
    finish: AtomicBool,
}

impl Control {
    pub(crate) fn taps_are_to_close(&self) -> bool {
        self.close_taps.load(Ordering::Acquire)
    }

    pub(crate) fn is_to_finish(&self) -> bool {
        self.finish.load(Ordering::Acquire)
    }

    fn tell(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        // Fails only if 2⁶⁴ wake-ups are pending.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// One producer's output on its way to its consumers.
///
/// Dropping it closes the taps; the bytes go on to the consumers until the producer or the
/// consumers end.
#[derive(Debug)]
pub struct Junction {
    control: Arc<Control>,
    edges: BTreeMap<EdgeId, Arc<Shared>>,
    done: Option<oneshot::Receiver<()>>,
}

impl Junction {
    /// Starts moving bytes from `source`, the read end of the producer's pipe (or anything else
    /// that can be read; a socket is made non-blocking), to all of `edges`, on a thread of its own.
    /// What happens is sent to `events`.
    ///
    /// # Errors
    /// No edge or two of the same id; a descriptor that isn't open for what it is to do; no thread.
    pub fn start(
        source: OwnedFd,
        edges: Vec<EdgeSink>,
        events: mpsc::UnboundedSender<FlowEvent>,
    ) -> Result<Self, FlowError> {
        if edges.is_empty() {
            return Err(FlowError::NoEdge);
        }
        let mut shared = BTreeMap::new();
        for edge in &edges {
            if shared.insert(edge.id, Arc::new(Shared::new())).is_some() {
                return Err(FlowError::SameEdge(edge.id));
            }
        }
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|errno| descriptor("create an eventfd")(errno.into()))?;
        let control = Arc::new(Control { wake, close_taps: AtomicBool::new(false), finish: AtomicBool::new(false) });
        let (tell_done, done) = oneshot::channel();
        let (tell_ready, ready) = std::sync::mpsc::sync_channel(1);
        let parts = Parts { source, edges, shared: shared.clone(), control: Arc::clone(&control), events };
        // What the thread works with is built on the thread, where it can be shared without locks.
        let work = move || {
            match parts.assemble() {
                Ok(run) => {
                    let _ = tell_ready.send(Ok(()));
                    run.run();
                }
                Err(error) => {
                    let _ = tell_ready.send(Err(error));
                }
            }
            let _ = tell_done.send(());
        };
        let thread = std::thread::Builder::new().name("flow".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(work).map_err(FlowError::Thread)?;
        match ready.recv() {
            Ok(Ok(())) => Ok(Self { control, edges: shared, done: Some(done) }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(FlowError::Thread(io::Error::other("it ended at once"))),
        }
    }

    /// An edge's figures now; `None` for an edge that isn't the junction's.
    #[must_use]
    pub fn stats(&self, id: EdgeId) -> Option<EdgeStats> {
        self.edges.get(&id).map(|shared| shared.snapshot())
    }

    /// The subscribers of an edge that were cut off last, 16 at most, the oldest first.
    #[must_use]
    pub fn cut_off(&self, id: EdgeId) -> Vec<CutOff> {
        self.edges.get(&id).map(|shared| shared.last_cut_off()).unwrap_or_default()
    }

    /// Closes all taps with their sockets, subscribers and replays. The pipeline goes on.
    pub fn close_taps(&self) {
        self.control.tell(&self.control.close_taps);
    }

    /// Waits until every edge has ended and every subscriber there is by then has been sent the
    /// rest of its stream; later ones are not let in. A subscriber that doesn't read holds this
    /// up: dropping the future closes the taps.
    pub async fn join(mut self) {
        self.control.tell(&self.control.finish);
        if let Some(done) = self.done.take() {
            // An error is a thread that panicked, which has ended as well.
            let _ = done.await;
        }
    }
}

impl Drop for Junction {
    fn drop(&mut self) {
        self.close_taps();
    }
}

/// What a junction is made of, on its way to its thread.
struct Parts {
    source: OwnedFd,
    edges: Vec<EdgeSink>,
    shared: BTreeMap<EdgeId, Arc<Shared>>,
    control: Arc<Control>,
    events: mpsc::UnboundedSender<FlowEvent>,
}

impl Parts {
    fn assemble(self) -> Result<Run, FlowError> {
        let trash = Rc::new(Trash::open());
        let inlet = Inlet::new(self.source, PIPE_BYTES).map_err(descriptor("prepare the source"))?;
        let events = Events(self.events);
        let mut edges = Vec::new();
        let mut rate = 0;
        for EdgeSink { id, sink, tap } in self.edges {
            let shared = &self.shared[&id];
            let outlet = Outlet::new(id, sink, PIPE_BYTES, Arc::clone(shared));
            let outlet = outlet.map_err(descriptor(&format!("prepare the sink of edge {id}")))?;
            let limit = tap.as_ref().map_or(0, |tap| tap.spec.max_bytes_per_sec);
            rate = if rate == 0 || (limit > 0 && limit < rate) { limit } else { rate };
            let tap = tap.map(|tap| TapState::new(id, tap, Rc::clone(&trash), Arc::clone(shared), events.clone()));
            let tap = tap.transpose().map_err(descriptor(&format!("prepare the tap of edge {id}")))?;
            edges.push(Edge { outlet, tap, events: events.clone() });
        }
        let bucket = (rate > 0).then(|| TokenBucket::new(rate, Instant::now()));
        Ok(Run { inlet: Some(inlet), edges, owed: 0, busy: false, bucket, trash, control: self.control })
    }
}

fn descriptor(what: &str) -> impl FnOnce(io::Error) -> FlowError {
    let what = what.to_owned();
    move |source| FlowError::Descriptor { what, source }
}
