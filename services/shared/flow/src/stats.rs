//! An edge's counters, shared between its junction's thread and whoever asks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::Meter;

/// An edge's figures at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EdgeStats {
    /// Bytes that the consumer was given.
    pub bytes_total: u64,
    /// Bytes a second over the last full second.
    pub bytes_per_sec: u64,
    /// Subscribers being served.
    pub subscribers: u64,
    /// Subscribers cut off because they lagged.
    pub dropped_subscribers: u64,
    /// Bytes that those had not been sent when they were cut off.
    pub dropped_bytes: u64,
    /// Peers that were refused.
    pub refused_subscribers: u64,
}

/// A subscriber that was cut off because it lagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOff {
    /// The process that had connected, if the kernel told it.
    pub pid: Option<i32>,
    /// Bytes of the stream up to then that it had not been sent.
    pub lost: u64,
}

/// As many of those that were cut off last are remembered.
const CUT_OFF_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Shared {
    meter: Mutex<Meter>,
    cut_off: Mutex<VecDeque<CutOff>>,
    pub(crate) subscribers: AtomicU64,
    pub(crate) dropped_subscribers: AtomicU64,
    pub(crate) dropped_bytes: AtomicU64,
    pub(crate) refused: AtomicU64,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            meter: Mutex::new(Meter::new(Instant::now())),
            cut_off: Mutex::default(),
            subscribers: AtomicU64::new(0),
            dropped_subscribers: AtomicU64::new(0),
            dropped_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn count(&self, bytes: usize) {
        // The meter is only numbers: whoever panicked while holding it left it usable.
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).add(bytes as u64, Instant::now());
    }

    /// Remembers one, before its socket is closed: whoever sees the end and asks is told.
    pub(crate) fn cut_off(&self, subscriber: CutOff) {
        self.dropped_subscribers.fetch_add(1, Relaxed);
        self.dropped_bytes.fetch_add(subscriber.lost, Relaxed);
        let mut last = self.cut_off.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() == CUT_OFF_MAX {
            last.pop_front();
        }
        last.push_back(subscriber);
    }

    pub(crate) fn last_cut_off(&self) -> Vec<CutOff> {
        self.cut_off.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    pub(crate) fn snapshot(&self) -> EdgeStats {
        let meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner).clone();
        EdgeStats {
            bytes_total: meter.total(),
            bytes_per_sec: meter.rate(Instant::now()),
            subscribers: self.subscribers.load(Relaxed),
            dropped_subscribers: self.dropped_subscribers.load(Relaxed),
            dropped_bytes: self.dropped_bytes.load(Relaxed),
            refused_subscribers: self.refused.load(Relaxed),
        }
    }
}
