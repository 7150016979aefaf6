//! The writing half of a connection: a short queue of frames and the task that writes them.

use std::sync::Arc;

use shipote_agent_protocol::{AgentResponse, FrameError, codes, encode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

use crate::inbox::Peer;

/// Frames that may wait to be written.
const QUEUE: usize = 4;
/// Bytes of one write. Software vsock devices drop what a guest writes in larger pieces.
pub(crate) const WRITE_MAX: usize = 32 * 1024;

/// The other side has gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone;

/// Where answers go.
#[derive(Clone)]
pub(crate) struct Outbox(mpsc::Sender<Vec<u8>>);

/// Room for one frame in the queue.
pub(crate) struct Room<'a>(mpsc::Permit<'a, Vec<u8>>);

impl Outbox {
    /// The queue and the task that empties it; the task ends when all outboxes are dropped or the peer has gone.
    pub(crate) fn new(writer: OwnedWriteHalf, peer: Arc<Peer>) -> (Self, tokio::task::JoinHandle<()>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), tokio::spawn(write(writer, receiver, peer)))
    }

    /// Waits for room; what is then sent through it cannot block.
    pub(crate) async fn room(&self) -> Result<Room<'_>, Gone> {
        self.0.reserve().await.map(Room).map_err(|_| Gone)
    }

    /// Waits for room and sends.
    pub(crate) async fn send(&self, response: &AgentResponse) -> Result<(), Gone> {
        self.room().await?.send(response);
        Ok(())
    }

    /// The same for messages of another protocol. One that has no frame is left out: none of ours is.
    pub(crate) async fn send_any(&self, message: &impl serde::Serialize) -> Result<(), Gone> {
        let room = self.room().await?;
        if let Ok(frame) = encode(message) {
            room.0.send(frame);
        }
        Ok(())
    }
}

impl Room<'_> {
    pub(crate) fn send(self, response: &AgentResponse) {
        let frame = encode(response).or_else(|error| {
            let code = match error {
                FrameError::TooLarge { .. } => codes::MESSAGE_TOO_LARGE,
                _ => codes::SERIALIZATION_ERROR,
            };
            encode(&AgentResponse::error(code, error))
        });
        if let Ok(frame) = frame {
            self.0.send(frame);
        }
    }
}

async fn write(mut writer: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>, peer: Arc<Peer>) {
    while let Some(frame) = frames.recv().await {
        for piece in frame.chunks(WRITE_MAX) {
            if writer.write_all(piece).await.is_err() {
                return peer.is_gone();
            }
        }
    }
}
