//! Tapped pipelines that have ended: their flows serve the replay for a while yet. Each costs a process and a socket for
//! as long, so that there are no more than some at once, of which the oldest goes for a new one.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;
use ulid::Ulid;

/// How long the flows of an ended pipeline still serve their replay.
pub(super) const LINGER: Duration = Duration::from_secs(300);
/// How many ended pipelines do so at once.
const MOST: usize = 64;

/// Those that have ended, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Lingering(VecDeque<(Instant, Ulid)>);

impl Lingering {
    /// One more, until then; the one whose place it takes.
    pub(super) fn add(&mut self, id: Ulid, until: Instant) -> Option<Ulid> {
        let now = Instant::now();
        self.0.retain(|(end, _)| *end > now);
        self.0.push_back((until, id));
        if self.0.len() > MOST { self.0.pop_front().map(|(_, oldest)| oldest) } else { None }
    }

    /// One goes before its time; whether it was there.
    pub(super) fn remove(&mut self, id: Ulid) -> bool {
        let before = self.0.len();
        self.0.retain(|(_, other)| *other != id);
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_for_a_new_one_and_whose_time_is_over_takes_no_place() {
        let later = Instant::now() + LINGER;
        let ids: Vec<Ulid> = (0..=MOST as u128).map(Ulid).collect();
        let mut lingering = Lingering::default();
        assert!(ids[..MOST].iter().all(|id| lingering.add(*id, later).is_none()));
        assert_eq!(lingering.add(ids[MOST], later), Some(ids[0]));
        assert!(!lingering.remove(ids[0]) && lingering.remove(ids[1]) && !lingering.remove(ids[1]));
        assert_eq!(lingering.add(ids[0], later), None, "there was a place");
        let mut over = Lingering::default();
        assert!(ids.iter().all(|id| over.add(*id, Instant::now()).is_none()));
    }
}
