//! Port 5001: what all commands of port 5000 say, to whoever listens.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use shipote_agent_protocol::GuestMessage;
use tokio::net::UnixStream;
use tokio::sync::broadcast::error::RecvError;

use super::admitted;
use crate::agent::Agent;
use crate::inbox::Peer;
use crate::outbox::Outbox;

/// Serves a connection to its end. What the other side sends is not read.
pub(crate) async fn serve(mut stream: UnixStream, agent: Arc<Agent>) {
    // Before the answer: whoever has it misses nothing from then on.
    let mut said = agent.workload.said.subscribe();
    if !admitted(&mut stream, &agent).await {
        return;
    }
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let peer = Arc::new(Peer::new(socket));
    let (_reader, writer) = stream.into_split();
    let (outbox, writing) = Outbox::new(writer, Arc::clone(&peer));
    let mut missed = false;
    let passing = async {
        loop {
            match said.recv().await {
                Ok(message) => {
                    let message = marked(&message, &mut missed);
                    if outbox.send_any(&message).await.is_err() {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => missed = true,
                Err(RecvError::Closed) => return,
            }
        }
    };
    tokio::select! {
        () = passing => {}
        () = peer.gone() => {}
    }
    writing.abort();
}

/// The next output after a gap says that there is one.
fn marked(message: &GuestMessage, missed: &mut bool) -> GuestMessage {
    let mut message = message.clone();
    if let GuestMessage::Stdout { truncated, .. } | GuestMessage::Stderr { truncated, .. } = &mut message
        && std::mem::take(missed)
    {
        *truncated = true;
    }
    message
}
