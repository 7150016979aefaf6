//! The flow log: the last requests and connections of a worker, in a ring whose places are used again.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::flow_log::FlowLog;

/// What became of one request or one forwarded connection: the record that the bus shows.
pub use shipote_bus::proxy::FlowInfo as Flow;

/// Longest text kept of host and path, bytes.
const TEXT: usize = 256;

/// What a request says about itself, borrowed.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) connection: u64,
    pub(crate) client: &'a str,
    pub(crate) rule: &'a str,
    pub(crate) method: &'a [u8],
    pub(crate) host: &'a [u8],
    pub(crate) path: &'a [u8],
    pub(crate) status: u16,
    pub(crate) upstream: &'a str,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) duration: Duration,
    pub(crate) error: &'a str,
}

#[derive(Debug)]
struct Ring {
    places: Vec<Flow>,
    next: usize,
}

/// The ring of one worker.
#[derive(Debug)]
pub(crate) struct Flows {
    ring: Mutex<Ring>,
    size: usize,
    started: (Instant, u64),
    log: Option<FlowLog>,
}

impl Flows {
    pub(crate) fn new(size: usize, log: Option<FlowLog>) -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis);
        Self {
            ring: Mutex::new(Ring { places: Vec::new(), next: 0 }),
            size: size.max(1),
            started: (Instant::now(), unix),
            log,
        }
    }

    pub(crate) fn push(&self, entry: &Entry<'_>, ended: Instant) {
        let mut ring = self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = ring.next;
        ring.next = (at + 1) % self.size;
        if ring.places.len() <= at {
            ring.places.push(Flow::default());
        }
        let flow = &mut ring.places[at];
        let began = ended.saturating_duration_since(self.started.0).saturating_sub(entry.duration);
        flow.unix_ms = self.started.1 + millis(began);
        flow.connection = entry.connection;
        flow.status = entry.status;
        (flow.bytes_in, flow.bytes_out) = (entry.bytes_in, entry.bytes_out);
        flow.duration_us = u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX);
        for (text, new) in [
            (&mut flow.client, entry.client.as_bytes()),
            (&mut flow.rule, entry.rule.as_bytes()),
            (&mut flow.method, entry.method),
            (&mut flow.host, entry.host),
            (&mut flow.path, entry.path),
            (&mut flow.upstream, entry.upstream.as_bytes()),
            (&mut flow.error, entry.error.as_bytes()),
        ] {
            text.clear();
            let new = &new[..new.len().min(TEXT)];
            match std::str::from_utf8(new) {
                Ok(new) => text.push_str(new),
                Err(_) => text.push_str(&String::from_utf8_lossy(new)),
            }
        }
        if let Some(log) = &self.log {
            log.tell(flow);
        }
    }

    /// The newest `count`, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<Flow> {
        let ring = self.ring.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (newer, older) = ring.places.split_at(ring.next.min(ring.places.len()));
        let all = older.len() + newer.len();
        older.iter().chain(newer).skip(all.saturating_sub(count)).cloned().collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let flows = Flows::new(3, None);
        for i in 0..5u16 {
            flows.push(&Entry { status: 200 + i, path: b"/x", ..Entry::default() }, Instant::now());
        }
        let statuses: Vec<u16> = flows.last(10).iter().map(|f| f.status).collect();
        assert_eq!(statuses, [202, 203, 204]);
        assert_eq!(flows.last(1)[0].status, 204);
    }
}
