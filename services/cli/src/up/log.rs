//! What the services write: to our stderr with their name before each line, and to a file of each, capped.
//!
//! A thread of its own writes, so that a terminal that nobody reads from holds up no service and no supervisor. What
//! does not fit its queue is dropped, and counted.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
};

use anstyle::{AnsiColor, Style};
use shipote_bus::words::counted;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt},
    sync::oneshot,
};

/// Lines on their way to the writer.
const QUEUE: usize = 1024;
/// A longer line goes on in the next one.
const LINE_MAX: usize = 8 * 1024;
/// A file beyond this becomes `NAME.log.1`, so a service keeps at most twice as much.
const FILE_MAX: u64 = 8 * 1024 * 1024;

struct Line {
    source: &'static str,
    text: String,
}

/// Where lines go in. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log {
    lines: SyncSender<Line>,
    dropped: Arc<AtomicU64>,
}

impl Log {
    /// Starts the writer. It ends once every clone of the log is gone and all is written; then the receiver resolves.
    pub(super) fn start(folder: PathBuf) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (lines, received) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Self { lines, dropped: dropped.clone() };
        let (done, ended) = oneshot::channel();
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            write(&folder, &received, &dropped);
            let _ = done.send(());
        })?;
        Ok((log, ended))
    }

    /// The supervisor's own words.
    pub(super) fn say(&self, text: impl Into<String>) {
        self.line("up", text.into());
    }

    fn line(&self, source: &'static str, text: String) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(Line { source, text }) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes on what `reader` gives, line by line, until its end.
    pub(super) async fn pass_on(self, source: &'static str, mut reader: impl AsyncBufRead + Unpin) {
        let mut line = Vec::new();
        loop {
            let Ok(chunk) = reader.fill_buf().await else { return };
            if chunk.is_empty() {
                break;
            }
            let room = LINE_MAX - line.len();
            let end = chunk.iter().take(room).position(|b| *b == b'\n');
            let taken = end.unwrap_or(chunk.len().min(room));
            line.extend_from_slice(&chunk[..taken]);
            reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() || line.len() == LINE_MAX {
                self.line(source, clean(&line));
                line.clear();
            }
        }
        if !line.is_empty() {
            self.line(source, clean(&line));
        }
    }
}

/// A service may print what strangers gave it: no control sequence of theirs reaches the terminal.
fn clean(line: &[u8]) -> String {
    String::from_utf8_lossy(line).chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

fn write(folder: &Path, lines: &Receiver<Line>, dropped: &AtomicU64) {
    let mut files = HashMap::new();
    for line in lines {
        show(line.source, &line.text);
        let file = files.entry(line.source).or_insert_with(|| Capped::open(folder, line.source));
        file.write(&line.text);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            show("up", &format!("dropped {} of the services: stderr was not read in time", counted(lost, "line")));
        }
    }
}

fn show(source: &str, text: &str) {
    let colour = match source {
        "up" => AnsiColor::White,
        "bus" => AnsiColor::Blue,
        "workspaces" => AnsiColor::Green,
        "machines" => AnsiColor::Magenta,
        "proxy" => AnsiColor::Cyan,
        _ => AnsiColor::Yellow,
    };
    let style = Style::new().fg_color(Some(colour.into()));
    // anstream leaves the colour out where stderr is no terminal. Nobody can be told if stderr is gone.
    let _ = writeln!(anstream::stderr(), "{style}{source:>10}{style:#} | {text}");
}

struct Capped {
    path: PathBuf,
    /// `None` once it could not be written; said once.
    file: Option<(File, u64)>,
}

impl Capped {
    fn open(folder: &Path, source: &str) -> Self {
        let path = folder.join(format!("{source}.log"));
        let file = Self::append(&path);
        Self { path, file }
    }

    fn append(path: &Path) -> Option<(File, u64)> {
        let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        match opened.and_then(|f| f.metadata().map(|m| (f, m.len()))) {
            Ok(file) => Some(file),
            Err(error) => {
                show("up", &format!("open log {}: {error}; its lines go to stderr alone", path.display()));
                None
            }
        }
    }

    fn write(&mut self, text: &str) {
        if self.file.as_ref().is_some_and(|(_, length)| *length >= FILE_MAX) {
            self.file = None;
            if let Err(error) = std::fs::rename(&self.path, self.path.with_extension("log.1")) {
                show("up", &format!("rotate log {}: {error}; its lines go to stderr alone", self.path.display()));
                return;
            }
            self.file = Self::append(&self.path);
        }
        let Some((file, length)) = &mut self.file else { return };
        // One write per line: whoever follows the file sees whole lines.
        let bytes = format!("{text}\n");
        match file.write_all(bytes.as_bytes()) {
            Ok(()) => *length += bytes.len() as u64,
            Err(error) => {
                show("up", &format!("write log {}: {error}; its lines go to stderr alone", self.path.display()));
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_capped() {
        let folder = tempfile::tempdir().unwrap();
        let mut capped = Capped::open(folder.path(), "proxy");
        let line = "x".repeat(LINE_MAX);
        let lines = 3 * FILE_MAX / line.len() as u64;
        (0..lines).for_each(|_| capped.write(&line));
        let total: u64 = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 2 * (FILE_MAX + line.len() as u64 + 1), "{total}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[tokio::test]
    async fn lines_are_cut_and_cleaned() {
        let (lines, received) = sync_channel(16);
        let log = Log { lines, dropped: Arc::default() };
        let long = "y".repeat(LINE_MAX + 3);
        let text = format!("one\n\x1b[2Jtwo\n{long}\nlast");
        log.pass_on("proxy", text.as_bytes()).await;
        let texts: Vec<String> = received.iter().map(|l| l.text).collect();
        let head = "y".repeat(LINE_MAX);
        assert_eq!(texts, ["one", "\u{fffd}[2Jtwo", head.as_str(), "yyy", "last"]);
    }
}
