//! One structured record for each change that anybody makes, over any door.
//!
//! For: saying who asked for what, on what, and how it ended ([`Record`]), so that it can be found again. Records go to
//! the systemd journal by its native protocol, or, where there is no journal, to an append-only file with the same
//! fields; [`read`] reads either back.
//!
//! Not for: logs (that is `tracing`), reads (they change nothing), or deciding whether something is allowed.
//!
//! Invariant: [`Audit::record`] returns `Ok` only when the journal's socket or the file has taken the whole record. A
//! record in the file is one line written by one call, so writers never mix and a torn line never takes a neighbour
//! with it. What journald does with a record it has taken is its own affair: a unit that writes records should say
//! `LogRateLimitIntervalSec=0`, for journald drops, unknown to the sender, what exceeds its rate limit.
//!
//! How a service uses it: before the change [`Audit::ready`] (refuse the change if it fails: it only fails where records
//! are required), after it [`Audit::record`] with the outcome. A refused change is recorded too.
#![forbid(unsafe_code)]

mod audit;
mod entry;
mod error;
mod event;
mod file;
mod journal;
mod query;
mod read_file;
mod read_journal;
mod record;

pub use audit::{Audit, Builder, Destination, JOURNAL_SOCKET};
pub use entry::{Entry, Writer};
pub use error::AuditError;
pub use event::{Event, MessageId, action_matches};
pub use query::{Entries, Query, read};
pub use read_journal::read_journal;
pub use record::{Door, MAX_RECORD, Record};
