//! Connections: frames in, frames out, one after the other; each connection is a task of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shipote_framing::{FrameError, Reader, write_frame};
use shipote_workspace_protocol::{FRAME_MAX, Request, Response, decode, encode};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::Door;
use super::peers::{Peers, Seat};

/// How long a frame that has begun may take to arrive, and an answer to be taken.
const FRAME_TIME: Duration = Duration::from_secs(10);

/// Accepts until the service ends.
pub(crate) async fn serve(door: Arc<Door>, listener: UnixListener, embedded: bool) {
    let peers = Peers::new(embedded);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(connect(Arc::clone(&door), peers.clone(), stream));
            }
            Err(error) => {
                // out of descriptors: it will be so again at once
                tracing::warn!("accept on the workspace socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connect(door: Arc<Door>, peers: Peers, stream: UnixStream) {
    // once: who has connected stays who it was, whatever it becomes later
    let admitted = match stream.peer_cred() {
        Ok(peer) => peers.admit(peer.uid(), peer.gid()),
        Err(error) => Err(format!("connect: the kernel does not say who it is: {error}")),
    };
    let (read, mut write) = stream.into_split();
    match admitted {
        Ok(seat) => converse(&door, &seat, read, write).await,
        Err(message) => {
            tracing::info!("workspace socket: {message}");
            send(&mut write, &Response::Error { message }).await;
        }
    }
}

async fn converse(door: &Door, seat: &Seat, read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let mut reader = Reader::new(read, FRAME_MAX);
    loop {
        let body = match next(&mut reader).await {
            Ok(Some(body)) => body,
            Ok(None) => return,
            Err(message) => {
                // the stream is out of step: say why, if the peer still listens, and close
                send(&mut write, &Response::Error { message }).await;
                return;
            }
        };
        tokio::time::sleep(seat.wait()).await;
        let request = decode::<Request>(&body);
        drop(body);
        let response = match request {
            Ok(request) => door.answer(seat.uid, request).await,
            Err(error) => Response::Error {
                message: format!("decode request: {error}; check that both sides speak the same version"),
            },
        };
        if !send(&mut write, &response).await {
            return;
        }
    }
}

/// The next frame; an idle connection may wait for ever, a frame that has begun may not.
async fn next(reader: &mut Reader<OwnedReadHalf>) -> Result<Option<Bytes>, String> {
    loop {
        if reader.between_frames() {
            reader.get_mut().readable().await.map_err(|e| FrameError::Io(e).to_string())?;
        }
        match tokio::time::timeout(FRAME_TIME, reader.next()).await {
            Ok(result) => return result.map_err(|e| e.to_string()),
            Err(_) if reader.between_frames() => {}
            Err(_) => {
                return Err(format!(
                    "frame: it did not arrive within {} seconds; send it at once",
                    FRAME_TIME.as_secs()
                ));
            }
        }
    }
}

/// Whether the peer has taken it.
async fn send(write: &mut OwnedWriteHalf, response: &Response) -> bool {
    let body = match encode(response) {
        Ok(body) if body.len() <= FRAME_MAX => Ok(body),
        Ok(body) => encode(&Response::Error {
            message: format!("answer: it has {} bytes, a frame at most {FRAME_MAX}; ask for less", body.len()),
        }),
        Err(error) => Err(error),
    };
    match body {
        Ok(body) => {
            matches!(tokio::time::timeout(FRAME_TIME, write_frame(write, &body, FRAME_MAX)).await, Ok(Ok(())))
        }
        Err(error) => {
            tracing::error!("encode {response:?}: {error}");
            false
        }
    }
}
