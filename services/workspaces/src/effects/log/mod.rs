//! Output that nobody was handed: kept in files, a stream each, in order of arrival.
//!
//! `file` holds one log, `collector` fills them, `reader` serves them. What is kept is bounded twice: by stream
//! ([`file::KEEP`]), and all together ([`TOTAL`]): past that the oldest logs of ended commands go.
//!
//! Invariant: what a command has written is in its pipe or in its log, never in a service that may die; see
//! [`mod@file`].

mod collector;
mod file;
mod reader;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::net::unix::pipe;
use tokio::sync::watch;
use ulid::Ulid;

use collector::{Collector, News, Source};
use file::LogFile;
pub(crate) use file::Stream;
pub(crate) use reader::Selection;

/// Bytes that all logs of ended commands may take together with those of living ones; the latter are never cut for it.
const TOTAL: u64 = 1024 * 1024 * 1024;
/// Logs kept of commands that nobody remembers any more.
const LOGS_MAX: usize = 2000;

/// Logs of all commands. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    folder: PathBuf,
    table: Arc<Mutex<Table>>,
    collector: Arc<Collector>,
}

/// Logs that are being written, and how large the others are: an ended one holds no descriptor.
#[derive(Debug, Default)]
struct Table {
    living: HashMap<Ulid, Living>,
    ended: BTreeMap<Ulid, Size>,
    /// Bytes on disk, about.
    kept: u64,
}

#[derive(Debug)]
struct Living {
    log: Arc<LogFile>,
    /// Pipes that are open.
    open: watch::Sender<usize>,
    /// Those pipes, as long as they are read.
    pipes: Vec<(Stream, Weak<OwnedFd>)>,
    /// The command may be started again.
    more: bool,
}

#[derive(Debug, Clone, Copy)]
struct Size {
    kept: u64,
    ever: u64,
}

impl Size {
    fn of(log: &LogFile) -> Self {
        Size { kept: log.kept(), ever: log.extent().end.iter().sum() }
    }
}

/// A stream of a command that is captured.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) stream: Stream,
    /// For the command.
    pub(crate) write: OwnedFd,
    /// To be held by whoever outlives the service: what is not yet in the log is in there.
    pub(crate) read: Arc<OwnedFd>,
}

fn lock(table: &Mutex<Table>) -> std::sync::MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogStore {
    /// Opens the folder; of an earlier instance's logs the newest stay.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let folder = state.join("commands");
        std::fs::create_dir_all(&folder)?;
        let mut table = Table::default();
        for path in std::fs::read_dir(&folder)?.filter_map(Result::ok).map(|entry| entry.path()) {
            let kind = path.extension().and_then(|kind| kind.to_str());
            match path.file_stem().and_then(|stem| Ulid::from_string(stem.to_str()?).ok()) {
                Some(id) if kind == Some("idx") => match LogFile::ended(&folder, id) {
                    Ok(log) => {
                        table.kept += log.kept();
                        table.ended.insert(id, Size::of(&log));
                    }
                    Err(error) => tracing::warn!("open the log of command {id}: {error}"),
                },
                Some(_) if matches!(kind, Some("out" | "err")) => {}
                // of no version that we know
                _ => std::fs::remove_file(&path)?,
            }
        }
        let table = Arc::new(Mutex::new(table));
        let (for_news, of_folder) = (Arc::downgrade(&table), folder.clone());
        let collector = Collector::start(move |news| {
            if let Some(table) = for_news.upgrade() {
                take_news(&table, &of_folder, news);
            }
        })?;
        let store = LogStore { folder, table, collector: Arc::new(collector) };
        let surplus = lock(&store.table).ended.len().saturating_sub(LOGS_MAX);
        // a ULID sorts by time
        let old: Vec<Ulid> = lock(&store.table).ended.keys().take(surplus).copied().collect();
        old.into_iter().for_each(|id| store.forget(id));
        Ok(store)
    }

    /// Begins or continues a log with new pipes for the wanted streams. `more`: the command may be started again, so
    /// that the log ends only when [`LogStore::finish`] says so.
    pub(crate) fn capture(&self, id: Ulid, streams: &[Stream], more: bool) -> io::Result<Vec<Captured>> {
        let mut captured = Vec::with_capacity(streams.len());
        for &stream in streams {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            captured.push(Captured { stream, write, read: Arc::new(read) });
        }
        self.resume(id, captured.iter().map(|c| (c.stream, Arc::clone(&c.read))).collect(), more)?;
        Ok(captured)
    }

    /// Goes on with pipes that an earlier instance made.
    pub(crate) fn resume(&self, id: Ulid, pipes: Vec<(Stream, Arc<OwnedFd>)>, more: bool) -> io::Result<()> {
        let (log, open) = {
            let mut table = lock(&self.table);
            if !table.living.contains_key(&id) {
                let log = Arc::new(LogFile::open(&self.folder, id)?);
                if table.ended.remove(&id).is_none() {
                    table.kept += log.kept();
                }
                table.living.insert(id, Living { log, open: watch::Sender::new(0), pipes: Vec::new(), more });
            }
            let Some(living) = table.living.get_mut(&id) else { return Ok(()) };
            living.more = more;
            living.log.resume();
            living.open.send_modify(|open| *open += pipes.len());
            living.pipes.retain(|(_, pipe)| pipe.strong_count() > 0);
            living.pipes.extend(pipes.iter().map(|(stream, pipe)| (*stream, Arc::downgrade(pipe))));
            (Arc::clone(&living.log), living.open.clone())
        };
        for (stream, pipe) in pipes {
            let source = Source { id, log: Arc::clone(&log), stream, pipe, open: open.clone() };
            if let Err(error) = self.collector.add(source) {
                open.send_modify(|open| *open -= 1);
                return Err(error);
            }
        }
        Ok(())
    }

    /// The command is not started again: its log ends with its pipes.
    pub(crate) fn finish(&self, id: Ulid) {
        let mut table = lock(&self.table);
        if let Some(living) = table.living.get_mut(&id) {
            living.more = false;
            if *living.open.borrow() == 0 {
                table.retire(id);
            }
        }
    }

    /// Whether all that was written into a command's pipes is in its log, or the way to wait for that.
    pub(crate) fn drained(&self, id: Ulid) -> Option<watch::Receiver<usize>> {
        let table = lock(&self.table);
        table.living.get(&id).map(|living| living.open.subscribe()).filter(|open| *open.borrow() > 0)
    }

    /// Bytes of output that a command has written into its log; none: it has no log.
    pub(crate) fn bytes(&self, id: Ulid) -> Option<u64> {
        let table = lock(&self.table);
        let living = table.living.get(&id).map(|living| Size::of(&living.log).ever);
        living.or_else(|| table.ended.get(&id).map(|size| size.ever))
    }

    /// Removes a log.
    pub(crate) fn forget(&self, id: Ulid) {
        let mut table = lock(&self.table);
        if let Some(living) = table.living.remove(&id) {
            table.kept = table.kept.saturating_sub(living.log.kept());
        }
        table.remove(&self.folder, id);
    }

    /// A pipe from which the selected part can be read; end of file at its end. `None`: there
    /// is no log of this command.
    pub(crate) fn read(&self, id: Ulid, selection: Selection) -> io::Result<Option<OwnedFd>> {
        let living = lock(&self.table).living.get(&id).map(|living| (Arc::clone(&living.log), living.pending()));
        let mut pending = [0, 0];
        let log = match living {
            Some((log, in_pipes)) => {
                pending = in_pipes;
                log
            }
            None if lock(&self.table).ended.contains_key(&id) => Arc::new(LogFile::ended(&self.folder, id)?),
            None => return Ok(None),
        };
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        let sink = pipe::Sender::from_owned_fd(write)?;
        tokio::spawn(async move {
            // a reader that went away has seen what it wanted
            let _ = reader::serve(log, selection, pending, sink).await;
        });
        Ok(Some(read))
    }
}

impl Living {
    /// How far the streams will be known when all that was written so far has been taken.
    fn pending(&self) -> [u64; 2] {
        let mut all = self.log.extent().end;
        for (stream, pipe) in &self.pipes {
            if let Some(pipe) = pipe.upgrade() {
                all[stream.at()] = all[stream.at()].max(self.log.with_pending(*stream, &*pipe));
            }
        }
        all
    }
}

impl Table {
    /// A log's last pipe has ended: its files are closed.
    fn retire(&mut self, id: Ulid) {
        if let Some(living) = self.living.remove(&id) {
            living.log.end();
            self.ended.insert(id, Size::of(&living.log));
        }
    }

    fn remove(&mut self, folder: &Path, id: Ulid) {
        if let Some(size) = self.ended.remove(&id) {
            self.kept = self.kept.saturating_sub(size.kept);
        }
        for path in file::paths(folder, id) {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("remove {}: {error}", path.display());
            }
        }
    }
}

/// On the collector's thread.
fn take_news(table: &Mutex<Table>, folder: &Path, news: News) {
    let mut table = lock(table);
    match news {
        News::Drained(id) => {
            if table.living.get(&id).is_some_and(|living| !living.more && *living.open.borrow() == 0) {
                table.retire(id);
            }
        }
        News::Grown(bytes) => {
            table.kept += bytes;
            if table.kept <= TOTAL {
                return;
            }
            // it was counted without what each log has given back
            let living: u64 = table.living.values().map(|living| living.log.kept()).sum();
            table.kept = living + table.ended.values().map(|size| size.kept).sum::<u64>();
            while table.kept > TOTAL
                && let Some(oldest) = table.ended.keys().next().copied()
            {
                tracing::info!("all logs have {} bytes: that of command {oldest} goes", table.kept);
                table.remove(folder, oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
