//! Reading records back from a file, and waiting for more.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::entry::Entry;
use crate::error::AuditError;
use crate::query::Query;
use crate::record::MAX_RECORD;

/// The longest line that can be a record: every byte of it may take four characters (`255,`), or six (`\u0000`).
const MAX_LINE: u64 = 6 * MAX_RECORD as u64 + 4096;

/// Entries of a file.
#[derive(Debug)]
pub(crate) struct FileEntries {
    path: PathBuf,
    query: Query,
    lines: Lines,
    /// The newest entries, where only so many are wanted: filled at the first call.
    kept: Option<VecDeque<Entry>>,
    watch: Option<OwnedFd>,
    damaged: u64,
    failed: bool,
}

impl FileEntries {
    pub(crate) fn open(path: &Path, query: Query) -> Result<Self, AuditError> {
        let failed = |operation, source| AuditError::File { operation, path: path.to_owned(), source };
        // Watch first, then read: what is written in between wakes the reader up.
        let watch = if query.follow {
            let watch = watch_folder(path).map_err(|source| failed("watch the folder of", source))?;
            Some(watch)
        } else {
            None
        };
        let lines = Lines::open(path).map_err(|source| failed("open", source))?;
        Ok(Self { path: path.to_owned(), query, lines, kept: None, watch, damaged: 0, failed: false })
    }

    pub(crate) fn damaged(&self) -> u64 {
        self.damaged
    }

    /// The next entry that is in the file now.
    fn present(&mut self) -> io::Result<Option<Entry>> {
        loop {
            match self.lines.next()? {
                None => return Ok(None),
                Some(Line::TooLong) => self.damaged += 1,
                Some(Line::Whole(line)) if line.is_empty() => {}
                Some(Line::Whole(line)) => match Entry::from_json(&line) {
                    None => self.damaged += 1,
                    Some(entry) if self.query.takes(&entry) => return Ok(Some(entry)),
                    Some(_) => {}
                },
            }
        }
    }

    fn advance(&mut self) -> io::Result<Option<Entry>> {
        if let (Some(limit), None) = (self.query.limit, &self.kept) {
            let mut newest = VecDeque::new();
            while let Some(entry) = self.present()? {
                newest.push_back(entry);
                if newest.len() > limit {
                    newest.pop_front();
                }
            }
            self.kept = Some(newest);
        }
        if let Some(entry) = self.kept.as_mut().and_then(VecDeque::pop_front) {
            return Ok(Some(entry));
        }
        loop {
            if (self.query.limit.is_none() || self.watch.is_some())
                && let Some(entry) = self.present()?
            {
                return Ok(Some(entry));
            }
            if self.watch.is_none() {
                self.damaged += u64::from(self.lines.torn());
                return Ok(None);
            }
            if self.lines.replaced(&self.path) {
                // What came between the last look and the change of files.
                if let Some(entry) = self.present()? {
                    return Ok(Some(entry));
                }
                self.damaged += u64::from(self.lines.torn());
                self.lines = Lines::open(&self.path)?;
                continue;
            }
            if let Some(watch) = &self.watch {
                // Which event it was does not matter: the file is looked at again.
                rustix::io::retry_on_intr(|| rustix::io::read(watch, &mut [0; 4096]))?;
            }
        }
    }
}

impl Iterator for FileEntries {
    type Item = Result<Entry, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.advance()
            .map_err(|source| {
                self.failed = true;
                AuditError::File { operation: "read", path: self.path.clone(), source }
            })
            .transpose()
    }
}

fn watch_folder(path: &Path) -> io::Result<OwnedFd> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, folder, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    Ok(watch)
}

/// A line that has its line feed.
enum Line {
    Whole(Vec<u8>),
    /// Longer than any record; passed over.
    TooLong,
}

/// The whole lines of a file that others append to. A last line without its line feed waits for the rest.
#[derive(Debug)]
struct Lines {
    file: Option<BufReader<File>>,
    partial: Vec<u8>,
    skipping: bool,
}

impl Lines {
    fn open(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { file, partial: Vec::new(), skipping: false })
    }

    fn next(&mut self) -> io::Result<Option<Line>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        loop {
            let room = MAX_LINE.saturating_sub(self.partial.len() as u64);
            if file.by_ref().take(room).read_until(b'\n', &mut self.partial)? == 0 && room > 0 {
                return Ok(None);
            }
            if self.partial.last() == Some(&b'\n') {
                let mut line = std::mem::take(&mut self.partial);
                line.pop();
                let whole = !std::mem::take(&mut self.skipping);
                return Ok(Some(if whole { Line::Whole(line) } else { Line::TooLong }));
            }
            if self.partial.len() as u64 >= MAX_LINE {
                self.skipping = true;
                self.partial.clear();
            }
        }
    }

    /// Whether a line without end is what the file ends in.
    fn torn(&self) -> bool {
        self.skipping || !self.partial.is_empty()
    }

    /// Whether the path now names another file (the old one was rotated away), or the first one.
    fn replaced(&self, path: &Path) -> bool {
        let Ok(now) = std::fs::metadata(path) else { return false };
        let open = self.file.as_ref().and_then(|file| file.get_ref().metadata().ok());
        open.is_none_or(|open| (open.dev(), open.ino()) != (now.dev(), now.ino()))
    }
}
