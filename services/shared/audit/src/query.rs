//! What to read back, and the iterator over it.

use std::path::Path;
use std::time::SystemTime;

use crate::audit::Destination;
use crate::entry::Entry;
use crate::error::AuditError;
use crate::event::action_matches;
use crate::read_file::FileEntries;
use crate::read_journal::{JournalEntries, read_journal};

/// Which records. The default is all of them.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only those asked for by this user.
    pub user: Option<u32>,
    /// Only these actions: `workspace.create`, `workspace` (all of its), or a glob (`*.stop`).
    pub action: Option<String>,
    /// Only those about this object.
    pub object: Option<String>,
    /// Only those from this time on.
    pub since: Option<SystemTime>,
    /// Only those up to this time.
    pub until: Option<SystemTime>,
    /// Only the newest so many; they still come oldest first.
    pub limit: Option<usize>,
    /// Then wait for further ones, without end.
    pub follow: bool,
    /// Of the journal, only what these units wrote. Any user may send records to the journal, also ones that look
    /// like ours; which unit one came from the journal knows itself. Empty: from anyone.
    pub units: Vec<String>,
}

impl Query {
    /// Whether this entry is asked for (the units aside, which only the journal knows).
    #[must_use]
    pub fn takes(&self, entry: &Entry) -> bool {
        self.user.is_none_or(|user| entry.uid == Some(user))
            && self.action.as_deref().is_none_or(|pattern| action_matches(pattern, &entry.action))
            && self.object.as_deref().is_none_or(|object| entry.object == object)
            && self.since.is_none_or(|since| entry.time() >= since)
            && self.until.is_none_or(|until| entry.time() <= until)
    }
}

/// Entries, oldest first. With [`Query::follow`] it blocks for the next and never ends.
#[derive(Debug)]
pub struct Entries(pub(crate) Source);

#[derive(Debug)]
pub(crate) enum Source {
    File(FileEntries),
    Journal(JournalEntries),
}

impl Entries {
    /// How many lines were passed over so far because they are no records: torn by a crash, or damaged.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        match &self.0 {
            Source::File(file) => file.damaged(),
            Source::Journal(journal) => journal.damaged(),
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Source::File(file) => file.next(),
            Source::Journal(journal) => journal.next(),
        }
    }
}

/// Reads records back from where an [`Audit`](crate::Audit) wrote them. A file that does not exist holds none.
///
/// Blocking: reads a file or runs `journalctl`.
///
/// # Errors
/// The file or `journalctl` cannot be opened or run.
pub fn read(from: &Destination, query: &Query) -> Result<Entries, AuditError> {
    match from {
        Destination::File(path) => Ok(Entries(Source::File(FileEntries::open(path, query.clone())?))),
        Destination::Journal => read_journal(Path::new("journalctl"), query),
    }
}
