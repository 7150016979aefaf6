//! The first bytes of a flow, copied once, and what they say it is.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use shipote_discern::{Discernment, discern};

use crate::CHUNK_BYTES;
use crate::pipe::{Moved, Pipe, tee};

/// How long an incomplete sample is waited for before it is judged as it is.
const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Sampler {
    wanted: usize,
    bytes: Vec<u8>,
    /// Where references to the sample go to be read; none once the sample is complete.
    scratch: Option<Pipe>,
    /// When to judge the sample though it is incomplete.
    due: Option<Instant>,
    told: Option<Discernment>,
    finished: bool,
}

impl Sampler {
    pub(crate) fn new(wanted: usize) -> io::Result<Self> {
        let scratch = if wanted > 0 { Some(Pipe::new()?) } else { None };
        let wanted = wanted.min(shipote_discern::MAX_SAMPLE);
        Ok(Self { wanted, bytes: Vec::new(), scratch, due: None, told: None, finished: wanted == 0 })
    }

    /// Looks at the first `len` bytes of what is about to leave `source`.
    pub(crate) fn look(&mut self, source: BorrowedFd<'_>, len: usize, now: Instant) -> Option<Discernment> {
        let scratch = self.scratch.as_ref()?;
        let want = len.min(self.wanted - self.bytes.len()).min(CHUNK_BYTES);
        let Moved::Bytes(copied) = tee(source, &scratch.writer, want) else {
            return None;
        };
        let held = self.bytes.len();
        self.bytes.resize(held + copied, 0);
        let read = rustix::io::read(&scratch.reader, &mut self.bytes[held..]).unwrap_or(0);
        self.bytes.truncate(held + read);
        if self.bytes.len() < self.wanted {
            // What the sample lacks here would have to be looked for in the middle of a chunk.
            if copied < want || read < copied {
                self.wanted = self.bytes.len();
            } else {
                self.due.get_or_insert(now + PATIENCE);
                return None;
            }
        }
        self.finish(false)
    }

    /// When [`Sampler::tick`] will have something to say.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Judges an incomplete sample whose time has come.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Discernment> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        // Once: what comes later is judged when the sample is complete.
        self.due = None;
        if self.told.is_some() {
            return None;
        }
        self.tell(false)
    }

    /// The flow has ended: the sample is all there is of it.
    pub(crate) fn end(&mut self) -> Option<Discernment> {
        self.finish(true)
    }

    fn finish(&mut self, complete: bool) -> Option<Discernment> {
        if std::mem::replace(&mut self.finished, true) {
            return None;
        }
        let told = self.tell(complete);
        self.scratch = None;
        self.due = None;
        self.bytes = Vec::new();
        told
    }

    fn tell(&mut self, complete: bool) -> Option<Discernment> {
        let found = discern(&self.bytes, None, complete);
        (self.told.replace(found) != Some(found)).then_some(found)
    }
}
