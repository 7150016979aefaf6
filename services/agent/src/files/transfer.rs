//! Port 6006: one file a connection, its bytes as they are ([`shipote_agent_protocol::transfer`]).

use std::io::Read as _;
use std::os::unix::net::UnixStream as Plain;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shipote_agent_protocol::transfer::{PIECE_MAX, Piece, Transfer};
use shipote_agent_protocol::{AgentResponse, FILE_TOTAL_MAX, codes, read_body, read_length, write_message};
use tokio::net::UnixStream;

use super::path::Tree;
use super::{FileError, Upload, blocking, read, write};
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
    let refused = |reason: &str| AgentResponse::error(codes::INVALID_REQUEST, reason);
    let done = match tokio::time::timeout(WISH_TIME, wish(&mut host)).await {
        Ok(Ok(Transfer::Write { path, mode })) => take(host, &agent.tree, path, mode).await,
        Ok(Ok(Transfer::Read { path })) => give(&mut host, &agent.tree, path).await.map(|answer| (host, answer)),
        Ok(Err(reason)) => Ok((host, refused(&reason))),
        Err(_) => Ok((host, refused("what is wanted was not said"))),
    };
    let Ok((mut host, answer)) = done else { return };
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
fn count(sum: &mut u64, bytes: usize, path: &str) -> Result<(), FileError> {
    *sum += bytes as u64;
    if *sum <= FILE_TOTAL_MAX {
        return Ok(());
    }
    Err(FileError::invalid(path, format!("longer than {FILE_TOTAL_MAX} bytes, the most that is copied; split it")))
}

/// A file from the host; the connection comes back with the answer to be given on it.
///
/// One thread waits for the pieces and writes them. Handing each to a thread and back cost an emulated machine a quarter more
/// (1.78 s of the host's processors for 128 MiB instead of 1.43; medians of four in turns, 29 November 2026).
async fn take(
    mut host: UnixStream,
    tree: &Arc<Tree>,
    path: String,
    mode: Option<u32>,
) -> Result<(UnixStream, AgentResponse), Gone> {
    let upload = match write::begin(tree, path.clone(), mode, FILE_TOTAL_MAX).await {
        Ok(upload) => upload,
        Err(error) => return Ok((host, error.into())),
    };
    go_ahead(&mut host).await?;
    let plain = host.into_std().map_err(|_| Gone)?;
    let receiving = tokio::task::spawn_blocking(move || {
        plain.set_nonblocking(false)?;
        plain.set_read_timeout(Some(STALL))?;
        let received = receive(&plain, upload, &path)?;
        plain.set_nonblocking(true)?;
        std::io::Result::Ok((plain, received))
    });
    // Cut or stalled: the file stays as it was.
    let (plain, received) = receiving.await.map_err(|_| Gone)?.map_err(|_| Gone)?;
    let host = UnixStream::from_std(plain).map_err(|_| Gone)?;
    Ok((host, received.map_or_else(AgentResponse::from, |()| AgentResponse::ok())))
}

/// Writes the pieces up to the empty one, and puts the file in its place. An error of the connection is one that nobody
/// can be told of.
fn receive(host: &Plain, mut upload: Upload, path: &str) -> std::io::Result<Result<(), FileError>> {
    let (mut room, mut sum) = (vec![0; PIECE_MAX], 0);
    loop {
        let begun = Instant::now();
        let mut header = [0; 4];
        fill(host, &mut header, begun)?;
        let piece = &mut room[..Piece::length(header)?];
        if piece.is_empty() {
            return Ok(upload.finish_as_is());
        }
        fill(host, piece, begun)?;
        if let Err(error) = count(&mut sum, piece.len(), path).and_then(|()| upload.append(piece)) {
            return Ok(Err(error));
        }
    }
}

/// Reads as many bytes as there is room for; one who lets them come singly may not take longer than one who stalls.
fn fill(mut host: &Plain, mut room: &mut [u8], begun: Instant) -> std::io::Result<()> {
    while !room.is_empty() {
        let n = host.read(room)?;
        if n == 0 || begun.elapsed() > STALL {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        room = &mut room[n..];
    }
    Ok(())
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
        let read =
            filled.await.and_then(|(piece, file)| count(&mut sum, piece.bytes().len(), &path).map(|()| (piece, file)));
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
