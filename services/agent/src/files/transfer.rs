//! Port 6006: one file a connection, its bytes as they are ([`shipote_agent_protocol::transfer`]).

use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::transfer::{Piece, Transfer};
use shipote_agent_protocol::{AgentResponse, FILE_TOTAL_MAX, codes, read_body, read_length, write_message};
use tokio::net::UnixStream;

use super::path::Tree;
use super::{FileError, blocking, read, write};
use crate::agent::Agent;
use crate::connection::greeted;
use crate::outbox::{Gone, WRITE_MAX};

/// How long the host may take to say what it wants, and how large that may be.
const WISH_TIME: Duration = Duration::from_secs(10);
const WISH_MAX: u32 = 16 * 1024;
/// How long a piece may take to come or to go: one that stalls holds up those that wait for its turn.
const STALL: Duration = Duration::from_secs(60);
/// How long the host may take to close once it has been answered.
const FAREWELL: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(crate) async fn serve(mut host: UnixStream, agent: Arc<Agent>) {
    if !greeted(&mut host, &agent).await {
        return;
    }
    let Ok(_turn) = agent.transfers.acquire().await else { return };
    let answer = match tokio::time::timeout(WISH_TIME, wish(&mut host)).await {
        Ok(Ok(Transfer::Write { path, mode })) => take(&mut host, &agent.tree, path, mode).await,
        Ok(Ok(Transfer::Read { path })) => give(&mut host, &agent.tree, path).await,
        Ok(Err(reason)) => Ok(AgentResponse::error(codes::INVALID_REQUEST, reason)),
        Err(_) => Ok(AgentResponse::error(codes::INVALID_REQUEST, "what is wanted was not said")),
    };
    let Ok(answer) = answer else { return };
    if let Ok(Ok(())) = tokio::time::timeout(STALL, write_message(&mut host, &answer)).await {
        // The host closes first; what it still sends after a refusal is dropped, so that it can send and then read.
        let _ = tokio::time::timeout(FAREWELL, tokio::io::copy(&mut host, &mut tokio::io::sink())).await;
    }
}

async fn wish(host: &mut UnixStream) -> Result<Transfer, String> {
    let length = read_length(host).await.map_err(|error| error.to_string())?.ok_or("the connection ended")?;
    if length > WISH_MAX {
        return Err(format!("a frame of {length} bytes; the limit is {WISH_MAX}"));
    }
    let body = read_body(host, length).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Lets the pieces come or go.
async fn go_ahead(host: &mut UnixStream) -> Result<(), Gone> {
    write_message(host, &AgentResponse::ok()).await.map_err(|_| Gone)
}

/// Sends a piece; the empty one is the end.
async fn send(host: &mut UnixStream, piece: &Piece) -> Result<(), Gone> {
    tokio::time::timeout(STALL, piece.send(host, WRITE_MAX)).await.map_err(|_| Gone)?.map_err(|_| Gone)
}

/// Counts a piece of a file, which may have no more than the limit.
fn count(sum: &mut u64, piece: &Piece, path: &str) -> Result<(), FileError> {
    *sum += piece.bytes().len() as u64;
    if *sum <= FILE_TOTAL_MAX {
        return Ok(());
    }
    Err(FileError::invalid(path, format!("longer than {FILE_TOTAL_MAX} bytes, the most that is copied; split it")))
}

/// A file from the host.
async fn take(host: &mut UnixStream, tree: &Arc<Tree>, path: String, mode: Option<u32>) -> Result<AgentResponse, Gone> {
    let mut upload = match write::begin(tree, path.clone(), mode, FILE_TOTAL_MAX).await {
        Ok(upload) => upload,
        Err(error) => return Ok(error.into()),
    };
    go_ahead(host).await?;
    let (mut piece, mut sum) = (Piece::default(), 0);
    loop {
        // Cut or stalled: the file stays as it was.
        tokio::time::timeout(STALL, piece.receive(host)).await.map_err(|_| Gone)?.map_err(|_| Gone)?;
        if piece.bytes().is_empty() {
            let placed = blocking(&path, move || upload.finish_as_is()).await;
            return Ok(placed.map_or_else(AgentResponse::from, |()| AgentResponse::ok()));
        }
        if let Err(error) = count(&mut sum, &piece, &path) {
            return Ok(error.into());
        }
        let written = blocking(&path, move || upload.append(piece.bytes()).map(|()| (upload, piece))).await;
        match written {
            Ok(left) => (upload, piece) = left,
            Err(error) => return Ok(error.into()),
        }
    }
}

/// A file to the host.
async fn give(host: &mut UnixStream, tree: &Arc<Tree>, path: String) -> Result<AgentResponse, Gone> {
    let (tree, named) = (Arc::clone(tree), path.clone());
    let mut file = match blocking(&path, move || read::open(&tree, &named)).await {
        Ok(file) => file,
        Err(error) => return Ok(error.into()),
    };
    go_ahead(host).await?;
    let (mut piece, mut sum) = (Piece::default(), 0);
    loop {
        let named = path.clone();
        let filled = blocking(&path, move || {
            piece.fill(&mut file).map_err(|error| FileError::from_io("read", &named, error))?;
            Ok((piece, file))
        });
        let read = filled.await.and_then(|(piece, file)| count(&mut sum, &piece, &path).map(|()| (piece, file)));
        match read {
            Ok(read) => (piece, file) = read,
            Err(error) => {
                send(host, &Piece::default()).await?;
                return Ok(error.into());
            }
        }
        send(host, &piece).await?;
        if piece.bytes().is_empty() {
            return Ok(AgentResponse::ok());
        }
    }
}
