//! Mutations and their records.

use std::future::Future;

use shipote_audit::{Audit, Door, Event, Record};

use crate::error::Error;

/// Who asks, and by which way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct By {
    pub(crate) uid: u32,
    pub(crate) door: Door,
}

/// Does a mutation with its audit record: refused before it starts where records are
/// required and cannot be taken, recorded with its outcome.
pub(crate) async fn audited<T>(
    audit: &Audit,
    event: Event,
    object: &str,
    by: By,
    change: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    audit.ready().map_err(|e| Error::Audit(e.to_string()))?;
    let result = change.await;
    let record = Record::new(event, object, by.uid, by.door).outcome(&result);
    if let Err(error) = audit.record(&record) {
        tracing::error!("record {event:?} of {object}: {error}");
    }
    result
}
