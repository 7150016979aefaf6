//! Connections of HTTP/2 and HTTP/3 to upstreams, each shared by many requests of one worker.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use h2::client::SendRequest;

use crate::io::Stream;

/// Most requests at once on one connection, if the upstream allows as many.
const PLACES: usize = 100;
/// Bytes that an upstream may send ahead, of one answer and in all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of the head of an answer.
const HEAD_BYTES: u32 = 64 << 10;

/// What requests are sent by.
pub(crate) trait Carrier: Clone {
    /// Requests at once that the upstream allows.
    fn most(&self) -> usize;
}

impl Carrier for SendRequest<Bytes> {
    fn most(&self) -> usize {
        self.current_max_send_streams()
    }
}

/// What the pool keeps of a connection.
pub(crate) struct Shared<S> {
    send: S,
    open: Rc<Cell<usize>>,
    gone: Rc<Cell<bool>>,
    used: Cell<u64>,
    served: Rc<Cell<u32>>,
}

/// A place on a connection, for one request.
pub(crate) struct Multiplexed<S> {
    pub(crate) send: S,
    open: Rc<Cell<usize>>,
    gone: Rc<Cell<bool>>,
    /// Requests that the connection took before this one.
    pub(crate) served: u32,
}

impl Shared<SendRequest<Bytes>> {
    /// Makes a connection of HTTP/2 of a stream; a task of its own drives it until it ends.
    pub(crate) async fn start(stream: Stream) -> Result<Self, h2::Error> {
        let (send, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEAD_BYTES)
            .handshake::<_, Bytes>(stream)
            .await?;
        Ok(Self::new(send, async move {
            if let Err(e) = connection.await {
                tracing::debug!("a connection to an upstream ended: {e}");
            }
        }))
    }
}

impl<S: Carrier> Shared<S> {
    /// A connection that lasts as long as what drives it.
    pub(super) fn new(send: S, driver: impl Future<Output = ()> + 'static) -> Self {
        let gone = Rc::new(Cell::new(false));
        let theirs = Rc::clone(&gone);
        tokio::task::spawn_local(async move {
            driver.await;
            theirs.set(true);
        });
        let (open, served) = (Rc::default(), Rc::default());
        Self { send, open, gone, used: Cell::new(0), served }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Whether nobody has used it since then.
    pub(super) fn idle_since(&self, then: u64) -> bool {
        self.open.get() == 0 && self.used.get() < then
    }

    /// A place on it, if there is one.
    pub(crate) fn join(&self, now: u64) -> Option<Multiplexed<S>> {
        if self.gone.get() || self.open.get() >= PLACES.min(self.send.most()) {
            return None;
        }
        self.open.set(self.open.get() + 1);
        self.used.set(now);
        let served = self.served.replace(self.served.get().saturating_add(1));
        Some(Multiplexed { send: self.send.clone(), open: Rc::clone(&self.open), gone: Rc::clone(&self.gone), served })
    }
}

impl<S> Multiplexed<S> {
    /// Whether the connection still lives, once its task has seen what came in.
    pub(crate) async fn is_good(&self) -> bool {
        // The first turn lets the runtime look at the sockets, the second lets the connection's task run.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        !self.gone.get()
    }

    /// Says that the connection is no good: later requests take another one.
    pub(crate) fn give_up(&self) {
        self.gone.set(true);
    }
}

impl<S> Drop for Multiplexed<S> {
    fn drop(&mut self) {
        self.open.set(self.open.get().saturating_sub(1));
    }
}
