//! The little that workers share: the plan, who is connected, and whether the proxy stops.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::cgi::Starts;
use crate::plan::Plan;
use crate::settings::Settings;

#[derive(Debug)]
pub(crate) struct Shared {
    plan: Mutex<Arc<Plan>>,
    /// Grows with every plan, so that a worker sees a change without taking the lock.
    generation: AtomicU64,
    /// For who sleeps until there is another plan.
    swaps: watch::Sender<()>,
    draining: AtomicBool,
    next_connection: AtomicU64,
    open: AtomicU32,
    by_address: Mutex<HashMap<IpAddr, u32>>,
    /// How QUIC is spoken. All workers tell clients of connections that are no more in the same way, since those may
    /// come to another worker when their address changes.
    pub(crate) quic: quinn::EndpointConfig,
    /// Where programs are asked for.
    pub(crate) starts: Starts,
}

impl Shared {
    pub(crate) fn new(plan: Arc<Plan>, starts: Starts) -> Self {
        Self {
            plan: Mutex::new(plan),
            generation: AtomicU64::new(1),
            swaps: watch::Sender::default(),
            draining: AtomicBool::new(false),
            next_connection: AtomicU64::new(1),
            open: AtomicU32::new(0),
            by_address: Mutex::default(),
            quic: quinn::EndpointConfig::default(),
            starts,
        }
    }

    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn swap(&self, plan: Arc<Plan>) {
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
        self.generation.fetch_add(1, Ordering::Release);
        self.swaps.send_replace(());
    }

    pub(crate) fn swaps(&self) -> watch::Receiver<()> {
        self.swaps.subscribe()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Counts a connection in and numbers it; `None` if there are too many, in all or from this address.
    pub(crate) fn enter(&self, ip: IpAddr, settings: &Settings) -> Option<u64> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= settings.connections {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(ip).or_insert(0);
        if *count >= settings.connections_per_address {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        *count += 1;
        Some(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn leave(&self, ip: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&ip) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&ip);
            }
        }
    }
}
