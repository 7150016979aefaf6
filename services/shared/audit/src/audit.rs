//! Where records go, and sending them there.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::AuditError;
use crate::file::{self, Trail};
use crate::journal::{self, Journal};
use crate::record::Record;

/// Where journald listens for native records.
pub const JOURNAL_SOCKET: &str = "/run/systemd/journal/socket";

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// The systemd journal.
    Journal,
    /// An append-only file: one JSON object a line, the fields of the journal and `__REALTIME_TIMESTAMP`.
    File(PathBuf),
}

/// The audit trail of one service. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    destination: Destination,
    journal_socket: PathBuf,
    identifier: String,
    required: bool,
    sync: bool,
    /// Not behind the lock: while one sender waits for a busy journald, others need not queue up behind it.
    journal: Option<Journal>,
    trail: Mutex<Option<Trail>>,
}

/// How an [`Audit`] is set up. The defaults: journal if there is one, records not required, no sync.
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    destination: Option<Destination>,
    fallback: PathBuf,
    journal_socket: PathBuf,
    identifier: String,
    required: bool,
    sync: bool,
}

impl Builder {
    /// Where records go, whether or not there is a journal.
    pub fn destination(mut self, destination: Destination) -> Self {
        self.destination = Some(destination);
        self
    }

    /// Where the journal listens; for tests and unusual installations.
    pub fn journal_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.journal_socket = path.into();
        self
    }

    /// The value of `SYSLOG_IDENTIFIER`; by default the program's own name.
    pub fn identifier(mut self, identifier: impl Into<String>) -> Self {
        self.identifier = identifier.into();
        self
    }

    /// Whether a change whose record cannot be taken must be refused.
    pub fn required(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    /// Whether each record in a file is forced to the disk before `record` returns. Then `record` takes milliseconds.
    pub fn sync(mut self, sync: bool) -> Self {
        self.sync = sync;
        self
    }

    /// Chooses the destination, once: the journal if something listens there now, else the fallback file.
    #[must_use]
    pub fn open(self) -> Audit {
        let destination = self.destination.unwrap_or_else(|| match Journal::probe(&self.journal_socket) {
            // A journal that is there but busy is still the journal: a trail in two places is no trail.
            Ok(()) => Destination::Journal,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Destination::Journal,
            Err(_) => Destination::File(self.fallback),
        });
        let journal = if destination == Destination::Journal { Journal::open().ok() } else { None };
        Audit(Arc::new(Inner {
            destination,
            journal_socket: self.journal_socket,
            identifier: self.identifier,
            required: self.required,
            sync: self.sync,
            journal,
            trail: Mutex::default(),
        }))
    }
}

impl Audit {
    /// The journal where there is one, else the file `fallback` (made, with its folder, at the first record).
    #[must_use]
    pub fn open(fallback: &Path) -> Self {
        Self::builder(fallback).open()
    }

    /// As [`open`](Self::open), with more to say.
    pub fn builder(fallback: &Path) -> Builder {
        let program = std::env::current_exe().ok();
        let name = program.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Builder {
            destination: None,
            fallback: fallback.to_owned(),
            journal_socket: PathBuf::from(JOURNAL_SOCKET),
            identifier: name.unwrap_or_else(|| "shipote".to_owned()),
            required: false,
            sync: false,
        }
    }

    /// Where records go.
    #[must_use]
    pub fn destination(&self) -> &Destination {
        &self.0.destination
    }

    /// Whether a change whose record cannot be taken must be refused.
    #[must_use]
    pub fn required(&self) -> bool {
        self.0.required
    }

    /// Before a change: whether it may be made. Without [`required`](Self::required) always; else only if a record
    /// could be taken now (a journal that listens and has room in its queue, a file that opens on a file system with
    /// room). Cheap (a few system calls), never waits.
    ///
    /// # Errors
    /// Why no record could be taken.
    pub fn ready(&self) -> Result<(), AuditError> {
        if self.0.required { self.probe() } else { Ok(()) }
    }

    /// Whether a record could be taken now, required or not; for health checks.
    ///
    /// # Errors
    /// Why no record could be taken.
    pub fn probe(&self) -> Result<(), AuditError> {
        match &self.0.destination {
            Destination::Journal => Journal::probe(&self.0.journal_socket).map_err(|error| self.journal_error(error)),
            Destination::File(path) => file::current(&mut self.lock(), path)?.probe(path),
        }
    }

    /// After a change: takes its record. To the journal this is one `sendmsg`, to a file three quick calls and one
    /// `write`: microseconds, fit for an async task. Only two things can make it wait: a journald that does not empty
    /// its queue (half a second, then an error) and [`Builder::sync`] (call it from where blocking is allowed then).
    ///
    /// # Errors
    /// The record was not taken, or not whole. Where records are required, the caller undoes or reports the change;
    /// elsewhere it logs the error.
    pub fn record(&self, record: &Record) -> Result<(), AuditError> {
        let fields = record.fields(&self.0.identifier)?;
        match &self.0.destination {
            Destination::Journal => {
                let encoded = journal::encode(&fields);
                let sent = match &self.0.journal {
                    Some(journal) => journal.send(&self.0.journal_socket, &encoded),
                    None => Journal::open().and_then(|journal| journal.send(&self.0.journal_socket, &encoded)),
                };
                sent.map_err(|error| self.journal_error(error))
            }
            Destination::File(path) => {
                let mut line = file::encode(&fields).map_err(|source| AuditError::File {
                    operation: "encode a record for",
                    path: path.clone(),
                    source,
                })?;
                file::append(&mut self.lock(), path, &mut line, self.0.sync)
            }
        }
    }

    fn journal_error(&self, source: std::io::Error) -> AuditError {
        AuditError::Journal { socket: self.0.journal_socket.clone(), source }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Trail>> {
        // What is open stays usable whatever a panicking holder did: every record is written whole or not at all.
        self.0.trail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
