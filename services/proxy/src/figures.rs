//! Counters of one worker. Written by that worker alone, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A counter or a gauge.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, n: u64) {
        // One writer, so a load and a store are enough; they cost a tenth of a locked addition.
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).saturating_sub(n), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the latency buckets, in microseconds.
pub(crate) const BUCKETS: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_000_000, 10_000_000];

/// What a worker counts.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Connections accepted.
    pub(crate) accepted: Count,
    /// Connections refused by a limit.
    pub(crate) refused: Count,
    /// Clients that had to prove their address before a handshake.
    pub(crate) proofs: Count,
    /// Datagrams that no queue had room for.
    pub(crate) dropped: Count,
    /// Connections open now.
    pub(crate) open: Count,
    /// Requests answered, by the first digit of the status; `[0]`: closed without an answer.
    pub(crate) answers: [Count; 6],
    /// Bytes of bodies and tunnels from clients.
    pub(crate) bytes_in: Count,
    /// Bytes of bodies and tunnels to clients.
    pub(crate) bytes_out: Count,
    /// Connections made to upstreams.
    pub(crate) connects: Count,
    /// Connections to upstreams that could not be made.
    pub(crate) connect_failures: Count,
    /// Requests sent on a connection that was used before.
    pub(crate) reused: Count,
    /// Requests sent again because a used connection turned out to be closed.
    pub(crate) retries: Count,
    /// Requests over a rate limit.
    pub(crate) limited: Count,
    /// Time limits that passed.
    pub(crate) timeouts: Count,
    /// Requests by duration; the last for those over every bound.
    pub(crate) latency: [Count; BUCKETS.len() + 1],
    /// The sum of all durations, in microseconds.
    pub(crate) latency_sum: Count,
}

impl Figures {
    pub(crate) fn answered(&self, status: u16, micros: u64) {
        self.answers[usize::from(status / 100).min(5)].add(1);
        let bucket = BUCKETS.iter().position(|b| micros <= *b).unwrap_or(BUCKETS.len());
        self.latency[bucket].add(1);
        self.latency_sum.add(micros);
    }
}
