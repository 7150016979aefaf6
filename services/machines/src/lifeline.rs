//! How keepers learn that the service was stopped for good, and not merely restarted.
//!
//! A pipe whose two ends the service manager keeps (`FDSTORE=1`, sd_notify(3)): systemd and `shipote up` hold on to it
//! while the unit is restarted, however its process ended, and close it once the unit is stopped or has failed for good.
//! Each keeper has the reading end, and ends its machine when the last writing end is gone. So a service that is told to
//! end need not know why: it leaves its machines to the next instance or to the manager.
//!
//! Without such a manager there is no lifeline of ours, and the service ends its machines itself.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use shipote_service::FdStore;

/// Names of the two ends in the store.
const READING: &str = "machines-lifeline";
const WRITING: &str = "machines-lifeline-held";

/// The reading end, and this instance's own copy of the other.
#[derive(Debug)]
pub struct Lifeline {
    reading: OwnedFd,
    writing: OwnedFd,
}

impl Lifeline {
    /// The one that an earlier instance had kept, or a new one; `None` where nobody keeps it.
    #[must_use]
    pub fn hold(store: &FdStore, inherited: &mut BTreeMap<String, OwnedFd>) -> Option<Self> {
        if !store.is_available() {
            return None;
        }
        if let (Some(reading), Some(writing)) = (inherited.remove(READING), inherited.remove(WRITING)) {
            return Some(Self { reading, writing });
        }
        let lifeline = Self::new().inspect_err(|error| tracing::error!("make a lifeline: {error}")).ok()?;
        let kept = store.keep(WRITING, lifeline.writing.as_fd()) && store.keep(READING, lifeline.reading.as_fd());
        if !kept {
            tracing::warn!("the service manager keeps no lifeline: machines end with this service");
        }
        kept.then_some(lifeline)
    }

    /// One that lasts as long as this value, for tests and other embedders.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn new() -> std::io::Result<Self> {
        let (reading, writing) = std::io::pipe()?;
        Ok(Self { reading: reading.into(), writing: writing.into() })
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reading.as_fd()
    }
}
