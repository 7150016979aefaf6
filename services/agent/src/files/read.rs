//! A file out of the guest.

use std::fs::File;
use std::io::Read as _;

use rustix::fs::{Mode, OFlags, openat2};
use shipote_agent_protocol::{AgentResponse, FILE_TOTAL_MAX};

use super::path::{BENEATH, Tree};
use super::{FileError, blocking};
use crate::outbox::{Gone, Outbox};

/// Bytes of one frame: small beside the guest's memory, large beside a frame's cost.
const PIECE: u64 = 512 * 1024;

/// Sends a file in pieces and an empty last one; an error may stand in the place of any of them.
pub(crate) async fn read(tree: &std::sync::Arc<Tree>, outbox: &Outbox, path: String) -> Result<(), Gone> {
    let tree = std::sync::Arc::clone(tree);
    let named = path.clone();
    let mut file = match blocking(&path, move || open(&tree, &named)).await {
        Ok(file) => file,
        Err(error) => return outbox.send(&error.into()).await,
    };
    let mut sent = 0;
    loop {
        let room = outbox.room().await?;
        let named = path.clone();
        let piece = blocking(&path, move || {
            let mut data = Vec::new();
            match (&mut file).take(PIECE).read_to_end(&mut data) {
                Ok(_) => Ok((file, data)),
                Err(error) => Err(FileError::from_io("read", &named, error)),
            }
        });
        let data = match piece.await {
            Ok((same, data)) => {
                file = same;
                data
            }
            Err(error) => {
                room.send(&error.into());
                return Ok(());
            }
        };
        sent += data.len() as u64;
        if sent > FILE_TOTAL_MAX {
            room.send(&too_long(&path).into());
            return Ok(());
        }
        let done = data.is_empty();
        room.send(&AgentResponse::DataChunk { data, done });
        if done {
            return Ok(());
        }
    }
}

fn too_long(path: &str) -> FileError {
    FileError::invalid(path, format!("longer than {FILE_TOTAL_MAX} bytes; read it in parts by a command"))
}

pub(super) fn open(tree: &Tree, path: &str) -> Result<File, FileError> {
    let place = tree.place(path, false)?;
    // NONBLOCK: a fifo without a writer must not hold the thread.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = openat2(&place.directory, place.name.as_str(), flags, Mode::empty(), BENEATH)
        .map_err(|error| FileError::from_io("open", path, error))?;
    let file = File::from(file);
    let metadata = file.metadata().map_err(|error| FileError::from_io("stat", path, error))?;
    if !metadata.is_file() {
        return Err(FileError::invalid(path, "not a regular file"));
    }
    if metadata.len() > FILE_TOTAL_MAX {
        return Err(too_long(path));
    }
    Ok(file)
}
