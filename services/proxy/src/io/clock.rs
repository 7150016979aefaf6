//! Time limits at the price of a store.
//!
//! Setting a timer for every step of every request would cost more than the step. So each connection has a [`Slot`]
//! with one deadline, and a worker's [`Clock`] looks at all slots a few times a second while there are any. A limit
//! is therefore kept to within a tick.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// No deadline.
const NEVER: u64 = u64::MAX;

/// The deadline of one connection.
#[derive(Debug)]
pub(crate) struct Slot {
    now: Rc<Cell<u64>>,
    deadline: Cell<u64>,
    limit: Cell<u64>,
    expired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Slot {
    /// From now on, `limit` until the deadline.
    pub(crate) fn set(&self, limit: Duration) {
        self.expired.set(false);
        let limit = u64::try_from(limit.as_millis()).unwrap_or(NEVER / 2);
        self.limit.set(limit);
        self.deadline.set(self.now.get().saturating_add(limit).saturating_add(TICK.as_millis() as u64));
    }

    /// Something moved: the limit counts from now again.
    pub(crate) fn touch(&self) {
        self.deadline.set(self.now.get().saturating_add(self.limit.get()));
    }

    /// Whether the deadline passed; if not, the task is woken when it does.
    pub(crate) fn poll_expired(&self, cx: &mut Context<'_>) -> bool {
        if self.expired.get() {
            return true;
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        false
    }

    /// Makes the deadline now. The next [`Slot::set`] begins anew: an answer about a time limit can still be written.
    pub(crate) fn expire(&self) {
        self.expired.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A worker's clock and its connections' deadlines.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    now: Rc<Cell<u64>>,
    slots: RefCell<Vec<Weak<Slot>>>,
    wake: tokio::sync::Notify,
    /// As `wake`, for who sweeps.
    visit: tokio::sync::Notify,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            now: Rc::new(Cell::new(0)),
            slots: RefCell::new(Vec::new()),
            wake: tokio::sync::Notify::new(),
            visit: tokio::sync::Notify::new(),
        }
    }

    pub(crate) fn slot(&self) -> Rc<Slot> {
        let slot = Rc::new(Slot {
            now: Rc::clone(&self.now),
            deadline: Cell::new(NEVER),
            limit: Cell::new(0),
            expired: Cell::new(false),
            waker: RefCell::new(None),
        });
        let mut slots = self.slots.borrow_mut();
        if slots.is_empty() {
            self.update();
            self.wake.notify_one();
            self.visit.notify_one();
        }
        slots.push(Rc::downgrade(&slot));
        slot
    }

    /// Milliseconds since the worker started, exact.
    pub(crate) fn update(&self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(NEVER);
        self.now.set(now);
        now
    }

    /// Milliseconds since the worker started, as of the last tick.
    pub(crate) fn coarse(&self) -> u64 {
        self.now.get()
    }

    /// Waits until somebody comes, or came since the last time.
    pub(crate) async fn visited(&self) {
        self.visit.notified().await;
    }

    /// Whether nobody is here.
    pub(crate) fn is_quiet(&self) -> bool {
        self.slots.borrow().is_empty()
    }

    /// Looks at the deadlines for as long as there are connections, and sleeps while there are none.
    pub(crate) async fn run(&self) {
        loop {
            if self.slots.borrow().is_empty() {
                self.wake.notified().await;
            }
            tokio::time::sleep(TICK).await;
            let now = self.update();
            self.slots.borrow_mut().retain(|slot| {
                let Some(slot) = slot.upgrade() else { return false };
                if slot.deadline.get() <= now && !slot.expired.get() {
                    slot.expire();
                }
                true
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    #[tokio::test]
    async fn a_deadline_wakes_who_waits() {
        let clock = Rc::new(Clock::new());
        let slot = clock.slot();
        slot.set(Duration::from_millis(1));
        let waits = poll_fn(|cx| if slot.poll_expired(cx) { Poll::Ready(()) } else { Poll::Pending });
        tokio::select! {
            () = waits => {}
            () = clock.run() => unreachable!("the clock never ends"),
        }
        assert!(slot.expired.get());
    }
}
