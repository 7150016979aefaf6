//! The reading half of a connection: frames in, events out, and whether the other side is still there.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use shipote_agent_protocol::{AgentRequest, MAX_DRAIN, MAX_FRAME, read_body, read_length, skip_body};
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

/// How long a body may take to arrive once its memory is set aside, so that one stalled sender holds up no other.
const BODY_TIME: Duration = Duration::from_secs(60);
/// How often a connection that cannot be read from just now is asked whether it still stands.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Bodies up to this size need no share of the common budget.
const SMALL: u32 = 64 * 1024;

/// What came in.
pub(crate) enum Event {
    /// A request, and the memory that it was given.
    Request(Box<AgentRequest>, Option<OwnedSemaphorePermit>),
    /// A frame that is no request; the reason.
    Invalid(String),
    /// A frame over the limit, skipped.
    TooLarge(u32),
    /// A frame so far over the limit that it was not read; nothing follows.
    FarTooLarge(u32),
    /// The other side sends no more, but still reads.
    EndOfInput,
}

/// Reads until the stream ends and passes on what came, one event at a time.
pub(crate) async fn run(
    mut reader: OwnedReadHalf,
    bodies: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    peer: Arc<Peer>,
) {
    loop {
        let event = match next(&mut reader, &bodies).await {
            Ok(Some(event)) => event,
            Ok(None) if peer.still_reads() => Event::EndOfInput,
            Ok(None) | Err(_) => return peer.is_gone(),
        };
        let last = matches!(event, Event::EndOfInput | Event::FarTooLarge(_));
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

async fn next(reader: &mut OwnedReadHalf, bodies: &Arc<Semaphore>) -> std::io::Result<Option<Event>> {
    let Some(length) = read_length(reader).await? else { return Ok(None) };
    if length > MAX_DRAIN {
        return Ok(Some(Event::FarTooLarge(length)));
    }
    if length > MAX_FRAME {
        skip_body(reader, length).await?;
        return Ok(Some(Event::TooLarge(length)));
    }
    let permit = if length > SMALL {
        let share = Arc::clone(bodies).acquire_many_owned(length.div_ceil(1024)).await;
        Some(share.map_err(std::io::Error::other)?)
    } else {
        None
    };
    let body = tokio::time::timeout(BODY_TIME, read_body(reader, length)).await??;
    Ok(Some(match serde_json::from_slice(&body) {
        Ok(request) => Event::Request(Box::new(request), permit),
        Err(error) => Event::Invalid(error.to_string()),
    }))
}

/// Whether the other side of a connection is there. It has gone when it no longer reads: a side that merely stopped
/// sending (half-close) still waits for answers.
pub(crate) struct Peer {
    socket: OwnedFd,
    gone: watch::Sender<bool>,
}

impl Peer {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, gone: watch::Sender::new(false) }
    }

    /// An empty send fails exactly where the other side has closed for reading, on Unix sockets and on vsock alike.
    /// (Poll would tell for Unix sockets only: vsock reports no hang-up for a connection closed by its peer.)
    fn still_reads(&self) -> bool {
        !matches!(
            send(self.socket.as_raw_fd(), &[], MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT),
            Err(Errno::EPIPE | Errno::ENOTCONN | Errno::ECONNRESET)
        )
    }

    /// Says that it has gone.
    pub(crate) fn is_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Returns when the other side has gone. To be awaited only while something runs on its behalf.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.subscribe();
        loop {
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => return,
                () = tokio::time::sleep(PROBE_EVERY) => if !self.still_reads() { self.is_gone() },
            }
        }
    }
}
