//! Reading a log: all of it, its end, from an offset on, and what comes as it comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use super::file::{Extent, LogFile, Stream};

/// How long what is still in a pipe is waited for.
const PENDING_TIME: Duration = Duration::from_secs(2);
/// Bytes read at once.
const PIECE: u64 = 64 * 1024;

/// Which part of a log is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Selection {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// Last bytes of it; 0: all that is kept.
    pub(crate) tail: u64,
    /// Go on until the command ends.
    pub(crate) follow: bool,
    /// Begin at these offsets of the two streams; what is no longer kept is left out.
    pub(crate) since: [u64; 2],
    /// Each piece comes with its stream (1 byte: 1 stdout, 2 stderr), its offset in the stream (u64, big endian) and
    /// its length (u32, big endian); a frame of stream 0 is the end.
    pub(crate) framed: bool,
}

impl Selection {
    fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// Where a reader is.
struct Position {
    /// Number of the record it is in.
    record: u64,
    /// Bytes of each stream that it has seen.
    seen: [u64; 2],
}

/// Serves a log, once it is known up to `pending`: whoever has seen a command write, or end, is shown what it wrote.
pub(super) async fn serve(
    log: Arc<LogFile>,
    selection: Selection,
    pending: [u64; 2],
    mut sink: pipe::Sender,
) -> io::Result<()> {
    let mut changes = log.changes();
    let known = changes.wait_for(|extent| extent.ended || (0..2).all(|at| extent.end[at] >= pending[at]));
    // what cannot be kept never becomes known
    let _ = tokio::time::timeout(PENDING_TIME, known).await;
    let mut extent = *changes.borrow_and_update();
    let mut position = Position { record: extent.records[0], seen: selection.since };
    if selection.tail > 0 {
        let begin = before_tail(&log, selection, extent)?;
        for (seen, begin) in position.seen.iter_mut().zip(begin) {
            *seen = (*seen).max(begin);
        }
    }
    loop {
        forward(&log, selection, &mut position, extent, &mut sink).await?;
        if !selection.follow || extent.ended {
            // so that the end can be told from a service that went away
            return if selection.framed { sink.write_all(&[0; 13]).await } else { Ok(()) };
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            // nobody reads any more: a command that says nothing would keep us for as long as it lives
            () = closed(&sink) => return Ok(()),
        }
        extent = *changes.borrow_and_update();
    }
}

/// Ends when the reader of a pipe has gone.
async fn closed(sink: &pipe::Sender) {
    let error = tokio::io::Interest::ERROR;
    if sink.ready(error).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Sends what there is.
async fn forward(
    log: &LogFile,
    selection: Selection,
    position: &mut Position,
    extent: Extent,
    sink: &mut pipe::Sender,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    while position.record < extent.records[1] {
        // the bound may have overtaken us while the reader let us wait
        position.record = position.record.max(log.extent().records[0]);
        let Some(record) = log.record(position.record)? else { return Ok(()) };
        let at = record.stream.at();
        let mut from = record.from.max(position.seen[at]);
        while selection.wants(record.stream) && from < record.to {
            from = from.max(log.extent().start[at]).min(record.to);
            let length = (record.to - from).min(PIECE);
            buffer.resize(usize::try_from(length).unwrap_or(0), 0);
            let read = log.read(record.stream, from, &mut buffer)?;
            if read == 0 {
                break;
            }
            // overtaken while it was read: it may be a hole
            if log.extent().start[at] > from {
                continue;
            }
            if selection.framed {
                sink.write_all(&header(record.stream, from, read)).await?;
            }
            sink.write_all(&buffer[..read]).await?;
            from += read as u64;
        }
        position.seen[at] = position.seen[at].max(record.to);
        if position.record + 1 >= extent.records[1] {
            // the last one may grow
            return Ok(());
        }
        position.record += 1;
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn header(stream: Stream, offset: u64, length: usize) -> [u8; 13] {
    let mut header = [0; 13];
    header[0] = stream.number();
    header[1..9].copy_from_slice(&offset.to_be_bytes());
    header[9..].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    header
}

/// Where each stream begins so that `tail` bytes of the selected ones are left.
fn before_tail(log: &LogFile, selection: Selection, extent: Extent) -> io::Result<[u64; 2]> {
    let mut begin = extent.end;
    let mut left = selection.tail;
    for number in (extent.records[0]..extent.records[1]).rev() {
        if left == 0 {
            break;
        }
        let Some(record) = log.record(number)? else { continue };
        let at = record.stream.at();
        let from = record.from.max(extent.start[at]);
        if selection.wants(record.stream) && from < record.to {
            let taken = (record.to - from).min(left);
            left -= taken;
            begin[at] = record.to - taken;
        }
    }
    Ok(begin)
}
