//! What the next instance must know, on disk: one line of JSON a record, each appended before anything comes of it.
//!
//! A service that is killed loses nothing that was written, so a record is not forced to the disk at once: what dies
//! with the machine has no use for it, and the history that has is forced within [`SYNC`]. Once there are many
//! records they are written anew: into `journal.next`, which takes the appends from then on, is forced to the disk
//! and then takes the journal's name, while the old one stays as `journal.previous`. Whatever cuts that short, one of
//! them is whole; a torn one is recovered from the previous, with a warning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shipote_state::{Format, Refused};

use crate::state::{Key, Record};

/// Versions of the file, as its first line has them. The records themselves are brought forward where they are read:
/// a field that came later has a default.
const FORMAT: Format = Format { key: "version", first: 1, steps: &[] };
const NAME: &str = "journal";
/// Bytes that are appended before everything is written anew.
const ANEW: u64 = 4 * 1024 * 1024;
/// A record reaches the disk after so long at the latest.
const SYNC: Duration = Duration::from_secs(1);

/// The first line, beside its version: how many records follow that were written with it.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    records: usize,
}

/// The journal, open to be appended to.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    file: Arc<File>,
    /// Bytes appended since everything was written anew.
    appended: u64,
    /// Why nothing is appended any more.
    broken: bool,
    syncing: Arc<AtomicBool>,
}

impl Journal {
    /// Reads what an earlier instance wrote in the folder `state`, and goes on with it.
    pub(crate) fn open(state: &Path) -> io::Result<(Self, Vec<Record>)> {
        let [journal, next, previous] = names(state);
        let records = match (read(&next), read(&journal)) {
            (Ok(Some(records)), _) | (_, Ok(Some(records))) => records,
            (_, Ok(None)) => Vec::new(),
            (_, Err(error)) if !error.is_damage() => {
                return Err(io::Error::other(format!("read {}: {error}", journal.display())));
            }
            (_, Err(error)) => {
                let records = read(&previous).ok().flatten().ok_or_else(|| {
                    io::Error::other(format!("read {}: {error}; move it away to begin anew", journal.display()))
                })?;
                tracing::warn!("{}: {error}; recovered from {}", journal.display(), previous.display());
                records
            }
        };
        let file = Arc::new(write_next(&next, &records)?);
        let syncing = Arc::default();
        let journal = Journal { folder: state.to_owned(), file, appended: 0, broken: false, syncing };
        settle(&journal.folder, &journal.file)?;
        Ok((journal, records))
    }

    /// Appends records with one call. True: it is time to write everything anew.
    pub(super) fn append(&mut self, records: &[Record]) -> bool {
        if records.is_empty() || self.broken {
            return false;
        }
        let bytes = lines(records);
        // a killed service leaves a torn last line, which is none; its successor begins a new file
        if let Err(error) = (&*self.file).write_all(&bytes) {
            self.broken = true;
            tracing::error!(
                "write {}: {error}; what begins from now on ends with this service",
                self.folder.join(NAME).display()
            );
            return false;
        }
        self.appended += bytes.len() as u64;
        self.sync_soon();
        self.appended >= ANEW
    }

    fn sync_soon(&self) {
        if self.syncing.swap(true, Ordering::Relaxed) {
            return;
        }
        let (file, syncing) = (Arc::clone(&self.file), Arc::clone(&self.syncing));
        tokio::spawn(async move {
            tokio::time::sleep(SYNC).await;
            syncing.store(false, Ordering::Relaxed);
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || file.sync_data()).await {
                tracing::warn!("force the journal to the disk: {error}");
            }
        });
    }

    /// Writes everything anew; appends go there from now on.
    pub(super) fn rewrite(&mut self, records: &[Record]) {
        let [_, next, _] = names(&self.folder);
        match write_next(&next, records) {
            Ok(file) => {
                self.file = Arc::new(file);
                self.broken = false;
                let (folder, file) = (self.folder.clone(), Arc::clone(&self.file));
                tokio::task::spawn_blocking(move || {
                    if let Err(error) = settle(&folder, &file) {
                        tracing::error!("replace {}: {error}", folder.join(NAME).display());
                    }
                });
            }
            Err(error) => tracing::error!("write {}: {error}; the old one grows on", next.display()),
        }
        self.appended = 0;
    }
}

fn names(state: &Path) -> [PathBuf; 3] {
    [NAME, "journal.next", "journal.previous"].map(|name| state.join(name))
}

fn lines(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        // a map with keys that are no text is the only thing that cannot be written, and there is none
        if serde_json::to_writer(&mut bytes, record).is_ok() {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn write_next(next: &Path, records: &[Record]) -> io::Result<File> {
    let mut bytes = FORMAT.write(&Head { records: records.len() })?.to_string().into_bytes();
    bytes.push(b'\n');
    bytes.extend(lines(records));
    match std::fs::remove_file(next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().create_new(true).append(true).open(next)?;
    file.write_all(&bytes)?;
    Ok(file)
}

/// Gives the new file the journal's name.
fn settle(folder: &Path, file: &File) -> io::Result<()> {
    file.sync_all()?;
    let [journal, next, previous] = names(folder);
    for result in [std::fs::remove_file(&previous), std::fs::hard_link(&journal, &previous)] {
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(next, journal)?;
    File::open(folder)?.sync_all()
}

/// The last record of each object; none where there is no file, or (of `next`) where its first part is not whole.
fn read(path: &Path) -> Result<Option<Vec<Record>>, Refused> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut whole = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let head: Head = match whole.next() {
        Some(line) => FORMAT.parse(line)?,
        None => return Err(Refused::Damaged("its first line is torn".to_owned())),
    };
    let mut last: BTreeMap<Key, Record> = BTreeMap::new();
    let mut count = 0;
    for (number, line) in whole.enumerate() {
        match serde_json::from_slice::<Record>(line) {
            Ok(Record::Gone(key)) => drop(last.remove(&key)),
            Ok(record) => drop(last.insert(record.key(), record)),
            Err(error) if number < head.records => {
                return Err(Refused::Damaged(format!("line {}: {error}", number + 2)));
            }
            // one line that a disk spoilt is not worth all the others
            Err(error) => tracing::warn!("{}, line {}: {error}; it is left out", path.display(), number + 2),
        }
        count = number + 1;
    }
    if count < head.records {
        return Err(Refused::Damaged(format!("it has {count} of {} records", head.records)));
    }
    Ok(Some(last.into_values().collect()))
}

#[cfg(test)]
mod tests {
    use shipote_bus::spec::WorkspaceSpec;
    use ulid::Ulid;

    use super::*;
    use crate::state::{Input, RequestId, State};

    fn create(state: &mut State, name: &str) -> Vec<Record> {
        let spec = Box::new(WorkspaceSpec { label: name.to_owned(), ..Default::default() });
        let request = RequestId(1);
        state.handle(Input::Create { request, id: Ulid::generate(), spec, strict: false, uid: 0, numbered: false }, 1);
        state.take_records()
    }

    fn known(records: Vec<Record>) -> Vec<String> {
        let mut names: Vec<_> = State::restore(records).workspaces.into_values().map(|w| w.name).collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_whatever_the_moment() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let (mut journal, nothing) = Journal::open(folder.path()).unwrap();
        assert!(nothing.is_empty());
        journal.append(&create(&mut state, "a"));
        journal.append(&create(&mut state, "b"));
        let (mut journal, records) = Journal::open(folder.path()).unwrap();
        assert_eq!(known(records), ["a", "b"]);
        journal.append(&create(&mut state, "c"));
        // killed in the middle of a line
        let path = folder.path().join(NAME);
        let bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - bytes.split_inclusive(|b| *b == b'\n').next_back().unwrap().len();
        for length in last..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(known(read(&path).unwrap().unwrap()), ["a", "b"], "{length}");
        }
    }

    #[tokio::test]
    async fn killed_while_it_is_written_anew_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.append(&create(&mut state, "a"));
        let [_, next, _] = names(folder.path());
        let file = write_next(&next, &state.all_records()).unwrap();
        (&file).write_all(&lines(&create(&mut state, "b"))).unwrap();
        let bytes = std::fs::read(&next).unwrap();
        let head = bytes.iter().position(|b| *b == b'\n').unwrap() + 1;
        let first = head + bytes[head..].iter().position(|b| *b == b'\n').unwrap() + 1;
        for length in 0..=bytes.len() {
            std::fs::write(&next, &bytes[..length]).unwrap();
            std::fs::remove_file(folder.path().join(NAME)).unwrap();
            std::fs::write(folder.path().join(NAME), {
                let head = FORMAT.write(&Head { records: 0 }).unwrap().to_string();
                [head.as_bytes(), b"\n", &lines(&state.all_records()[..1])].concat()
            })
            .unwrap();
            let (_, records) = Journal::open(folder.path()).unwrap();
            let want = if length == bytes.len() { 2 } else { 1 };
            assert_eq!(known(records).len(), want, "{length}, {first}");
        }
    }

    #[tokio::test]
    async fn a_torn_journal_is_recovered_from_the_previous_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.append(&create(&mut state, "a"));
        drop(Journal::open(folder.path()).unwrap());
        let [path, _, previous] = names(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(known(Journal::open(folder.path()).unwrap().1), ["a"]);
        // and with nothing to recover from it is said, not hidden
        std::fs::write(&path, b"{").unwrap();
        std::fs::write(&previous, b"{").unwrap();
        assert!(Journal::open(folder.path()).is_err());
    }
    #[tokio::test]
    async fn a_later_releases_journal_is_refused_and_left_as_it_is_whatever_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut state = State::default();
        let (mut journal, _) = Journal::open(folder.path()).unwrap();
        journal.append(&create(&mut state, "a"));
        // the start after an update leaves the older release's file as the previous one
        drop(Journal::open(folder.path()).unwrap());
        let [path, _, previous] = names(folder.path());
        assert!(previous.exists());
        let later = "{\"version\":99,\"records\":0}\n";
        std::fs::write(&path, later).unwrap();
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("version 99") && error.contains("install the release that wrote it"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), later);
    }
}
