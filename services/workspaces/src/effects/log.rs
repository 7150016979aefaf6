//! Output that nobody was handed: kept in one file a command, in order of arrival.
//!
//! The file begins with [`MAGIC`] and the position of its first frame (u64 big endian), then
//! come frames: stream (1 byte: 1 stdout, 2 stderr), length (u32 big endian), bytes. Past
//! [`KEEP`] bytes the oldest frames are given back to the file system by punching a hole
//! (fallocate(2)), so a position in the file stays what it is.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use ulid::Ulid;

/// Bytes kept of one command's output.
const KEEP: u64 = 16 * 1024 * 1024;
/// Largest frame's payload.
const FRAME: usize = 64 * 1024;
const HEADER: usize = 5;
/// What a log begins with; the digit is the format's version.
const MAGIC: &[u8; 8] = b"SHIPLOG1";
/// Magic and position of the first frame.
const PREAMBLE: u64 = 16;
/// Files of commands that an earlier instance of the service ran, kept at start.
const FILES_MAX: usize = 1000;

/// Which part of a log is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Selection {
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// Last bytes of it; 0: all that is kept.
    pub(crate) tail: u64,
    /// Go on until the command ends.
    pub(crate) follow: bool,
}

impl Selection {
    fn wants(&self, stream: u8) -> bool {
        match stream {
            1 => self.stdout,
            2 => self.stderr,
            _ => false,
        }
    }
}

/// Logs of all commands.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    folder: PathBuf,
    table: Arc<Mutex<Table>>,
}

/// Logs that are being written, and how large the others are: an ended one holds no descriptor.
#[derive(Debug, Default)]
struct Table {
    living: HashMap<Ulid, Arc<CommandLog>>,
    ended: HashMap<Ulid, u64>,
}

/// Where a log's frames begin and end now.
#[derive(Debug, Clone, Copy)]
struct Extent {
    start: u64,
    end: u64,
    /// Payload bytes ever written.
    bytes: u64,
    ended: bool,
}

#[derive(Debug)]
struct CommandLog {
    file: File,
    extent: watch::Sender<Extent>,
    /// File position of a frame about every 64 KiB, to find where the hole may end.
    marks: Mutex<std::collections::VecDeque<u64>>,
    /// Streams that are still open.
    open: Mutex<u32>,
}

impl LogStore {
    /// Opens the folder; of an earlier instance's logs the newest stay.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("commands");
        std::fs::create_dir_all(&folder)?;
        let mut names: Vec<_> = std::fs::read_dir(&folder)?.filter_map(Result::ok).map(|e| e.path()).collect();
        // a ULID sorts by time
        names.sort();
        let surplus = names.len().saturating_sub(FILES_MAX);
        for old in &names[..surplus] {
            std::fs::remove_file(old)?;
        }
        Ok(LogStore { folder, table: Arc::default() })
    }

    fn path(&self, id: Ulid) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// Begins a log and returns the write ends for the wanted streams.
    pub(crate) fn capture(&self, id: Ulid, streams: &[u8]) -> io::Result<Vec<OwnedFd>> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(self.path(id))?;
        write_preamble(&file, PREAMBLE)?;
        let count = u32::try_from(streams.len()).unwrap_or(u32::MAX);
        let log = Arc::new(CommandLog {
            file,
            extent: watch::Sender::new(Extent { start: PREAMBLE, end: PREAMBLE, bytes: 0, ended: false }),
            marks: Mutex::default(),
            open: Mutex::new(count),
        });
        let mut ends = Vec::with_capacity(streams.len());
        let mut sources = Vec::with_capacity(streams.len());
        for &stream in streams {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&read, true)?;
            let source = pipe::Receiver::from_owned_fd(read)?;
            sources.push((stream, source));
            ends.push(write);
        }
        self.table().living.insert(id, Arc::clone(&log));
        for (stream, source) in sources {
            tokio::spawn(collect(self.clone(), id, Arc::clone(&log), stream, source));
        }
        Ok(ends)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of output that a command has written into its log; none: it has no log.
    pub(crate) fn bytes(&self, id: Ulid) -> Option<u64> {
        let table = self.table();
        table.living.get(&id).map(|log| log.extent.borrow().bytes).or_else(|| table.ended.get(&id).copied())
    }

    /// A log's last stream has ended: its file is closed.
    fn retire(&self, id: Ulid) {
        let mut table = self.table();
        if let Some(log) = table.living.remove(&id) {
            let bytes = log.extent.borrow().bytes;
            table.ended.insert(id, bytes);
        }
    }

    /// Removes a log.
    pub(crate) fn forget(&self, id: Ulid) {
        let mut table = self.table();
        table.living.remove(&id);
        table.ended.remove(&id);
        drop(table);
        if let Err(error) = std::fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("remove the log of command {id}: {error}");
        }
    }

    /// A pipe from which the selected part can be read; end of file at its end. `None`: there
    /// is no log of this command.
    pub(crate) fn read(&self, id: Ulid, selection: Selection) -> io::Result<Option<OwnedFd>> {
        let living = self.table().living.get(&id).cloned();
        let log = match living {
            Some(log) => log,
            None => match File::open(self.path(id)) {
                Ok(file) => Arc::new(CommandLog::ended(file)?),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let sink = pipe::Sender::from_owned_fd(write)?;
        tokio::spawn(async move {
            // a reader that went away has seen what it wanted
            let _ = serve(log, selection, sink).await;
        });
        Ok(Some(read))
    }
}

impl CommandLog {
    /// The log of a command of an earlier instance: what was written whole counts.
    fn ended(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        let mut preamble = [0; PREAMBLE as usize];
        file.read_exact_at(&mut preamble, 0)?;
        let (magic, start) = preamble.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(io::Error::other("it is not a log of this version of Shipote"));
        }
        let start = start.try_into().map_or(PREAMBLE, u64::from_be_bytes);
        Ok(CommandLog {
            file,
            extent: watch::Sender::new(Extent { start, end, bytes: 0, ended: true }),
            marks: Mutex::default(),
            open: Mutex::new(0),
        })
    }

    fn append(&self, stream: u8, data: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(HEADER + data.len());
        frame.push(stream);
        frame.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        frame.extend_from_slice(data);
        // both streams write: the mark table's lock orders them
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let Extent { mut start, end, .. } = *self.extent.borrow();
        self.file.write_all_at(&frame, end)?;
        let new_end = end + frame.len() as u64;
        if marks.back().is_none_or(|last| end - last >= FRAME as u64) {
            marks.push_back(end);
        }
        while new_end - start > KEEP && marks.len() > 1 {
            marks.pop_front();
            start = marks.front().copied().unwrap_or(end);
        }
        if start > self.extent.borrow().start {
            write_preamble(&self.file, start)?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // where the file system cannot punch holes the file grows; its readers still start at `start`
            if let Err(error) = fallocate(self.file.as_fd(), flags, PREAMBLE, start - PREAMBLE) {
                tracing::debug!("give back the oldest part of a log: {error}");
            }
        }
        self.extent.send_modify(|e| {
            e.start = start;
            e.end = new_end;
            e.bytes += data.len() as u64;
        });
        Ok(())
    }

    /// One stream has ended; whether it was the last.
    fn close(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        *open = open.saturating_sub(1);
        if *open == 0 {
            self.extent.send_modify(|e| e.ended = true);
        }
        *open == 0
    }

    /// The frame at `position`: its stream, its payload and where the next one begins.
    fn frame(&self, position: u64, end: u64) -> io::Result<Option<(u8, Vec<u8>, u64)>> {
        let mut header = [0; HEADER];
        if position + HEADER as u64 > end {
            return Ok(None);
        }
        self.file.read_exact_at(&mut header, position)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let next = position + HEADER as u64 + u64::from(length);
        if length as usize > FRAME || next > end {
            // a frame torn by a crash: what stands before it is whole
            return Ok(None);
        }
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, position + HEADER as u64)?;
        Ok(Some((header[0], data, next)))
    }
}

fn write_preamble(file: &File, start: u64) -> io::Result<()> {
    let mut preamble = [0; PREAMBLE as usize];
    preamble[..MAGIC.len()].copy_from_slice(MAGIC);
    preamble[MAGIC.len()..].copy_from_slice(&start.to_be_bytes());
    file.write_all_at(&preamble, 0)
}

async fn collect(store: LogStore, id: Ulid, log: Arc<CommandLog>, stream: u8, mut source: pipe::Receiver) {
    let mut buffer = vec![0; FRAME];
    let mut dropped = 0;
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => break,
            // what cannot be kept is still taken: the command must not die of a full disk that is ours
            Ok(n) if dropped == 0 => {
                if let Err(error) = log.append(stream, &buffer[..n]) {
                    tracing::error!("write the log of command {id}: {error}; the rest of its output is not kept");
                    dropped = n as u64;
                }
            }
            Ok(n) => dropped += n as u64,
            Err(error) => {
                tracing::error!("read a command's output: {error}");
                break;
            }
        }
    }
    if dropped > 0 {
        tracing::error!("the log of command {id} lacks its last {dropped} bytes");
    }
    if log.close() {
        store.retire(id);
    }
}

async fn serve(log: Arc<CommandLog>, selection: Selection, mut sink: pipe::Sender) -> io::Result<()> {
    let mut changes = log.extent.subscribe();
    let mut extent = *changes.borrow_and_update();
    let mut position = extent.start;
    let counted = Arc::clone(&log);
    // reads all that is kept, up to 16 MiB
    let mut skip = tokio::task::spawn_blocking(move || skip_for_tail(&counted, selection, extent)).await??;
    loop {
        loop {
            // the bound may have overtaken us while the reader let us wait
            let start = log.extent.borrow().start;
            if position < start {
                tracing::warn!(
                    "a log's reader fell behind: {} bytes of the log were dropped before it",
                    start - position
                );
                position = start;
            }
            let Some((stream, data, next)) = log.frame(position, extent.end)? else { break };
            position = next;
            if !selection.wants(stream) {
                tokio::task::yield_now().await;
                continue;
            }
            let from = usize::try_from(skip.min(data.len() as u64)).unwrap_or(0);
            skip -= from as u64;
            sink.write_all(&data[from..]).await?;
        }
        if !selection.follow || extent.ended {
            return Ok(());
        }
        if changes.changed().await.is_err() {
            return Ok(());
        }
        extent = *changes.borrow_and_update();
    }
}

/// Bytes of the selected streams to leave out so that `tail` are left.
fn skip_for_tail(log: &CommandLog, selection: Selection, extent: Extent) -> io::Result<u64> {
    if selection.tail == 0 {
        return Ok(0);
    }
    let mut total = 0;
    let mut position = extent.start;
    while let Some((stream, data, next)) = log.frame(position, extent.end)? {
        if selection.wants(stream) {
            total += data.len() as u64;
        }
        position = next;
    }
    Ok(total.saturating_sub(selection.tail))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const ALL: Selection = Selection { stdout: true, stderr: true, tail: 0, follow: false };

    async fn text(store: &LogStore, id: Ulid, selection: Selection) -> String {
        let fd = store.read(id, selection).unwrap().unwrap();
        tokio::task::spawn_blocking(move || {
            let mut out = String::new();
            File::from(fd).read_to_string(&mut out).unwrap();
            out
        })
        .await
        .unwrap()
    }

    async fn ended(store: &LogStore, id: Ulid) {
        while store.table().living.contains_key(&id) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn streams_are_kept_apart_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::open(folder.path()).unwrap();
        let id = Ulid::generate();
        let mut ends = store.capture(id, &[1, 2]).unwrap().into_iter().map(File::from);
        let (out, err) = (ends.next().unwrap(), ends.next().unwrap());
        let log = store.table().living.get(&id).cloned().unwrap();
        for (mut file, words) in [(&out, "one "), (&err, "two "), (&out, "three")] {
            let before = log.extent.borrow().bytes;
            file.write_all(words.as_bytes()).unwrap();
            log.extent.subscribe().wait_for(|e| e.bytes > before).await.unwrap();
        }
        drop((out, err));
        ended(&store, id).await;
        assert_eq!(text(&store, id, ALL).await, "one two three");
        assert_eq!(text(&store, id, Selection { stdout: false, ..ALL }).await, "two ");
        assert_eq!(text(&store, id, Selection { stderr: false, tail: 7, ..ALL }).await, "e three");
        // a later instance of the service still finds it
        let later = LogStore::open(folder.path()).unwrap();
        assert_eq!(text(&later, id, ALL).await, "one two three");
        store.forget(id);
        assert!(later.read(id, ALL).unwrap().is_none());
    }

    #[tokio::test]
    async fn following_ends_with_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::open(folder.path()).unwrap();
        let id = Ulid::generate();
        let mut out = File::from(store.capture(id, &[1]).unwrap().remove(0));
        out.write_all(b"a").unwrap();
        let followed = text(&store, id, Selection { follow: true, ..ALL });
        let rest = async {
            tokio::task::yield_now().await;
            out.write_all(b"b").unwrap();
            drop(out);
        };
        assert_eq!(tokio::join!(followed, rest).0, "ab");
    }

    #[tokio::test]
    async fn the_oldest_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = LogStore::open(folder.path()).unwrap();
        let id = Ulid::generate();
        let out = File::from(store.capture(id, &[1]).unwrap().remove(0));
        let total = KEEP as usize + 4 * 1024 * 1024;
        tokio::task::spawn_blocking(move || {
            let line = [b'x'; 8192];
            let mut out = out;
            for _ in 0..total / line.len() {
                out.write_all(&line).unwrap();
            }
        })
        .await
        .unwrap();
        ended(&store, id).await;
        let kept = text(&store, id, ALL).await.len() as u64;
        assert!(kept <= KEEP && kept > KEEP - 2 * FRAME as u64 * 2, "{kept}");
        assert_eq!(store.bytes(id), Some(total as u64));
        let later = LogStore::open(folder.path()).unwrap();
        assert_eq!(text(&later, id, ALL).await.len() as u64, kept);
    }
}
