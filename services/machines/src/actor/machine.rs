//! A machine, as the actor keeps it and as it is shown.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use shipote_confinement::Mechanism;
use tokio::sync::mpsc;

use super::sleep::Sleep;
use super::{Reply, Slept};
use crate::console::Console;
use crate::groups::Group;
use crate::guest::Guest;
use crate::health::Health;
use crate::idle::How;
use crate::launch::Order;
use crate::spec::Spec;
use crate::state::State;
use crate::way::Way;

/// A machine, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Name.
    pub name: String,
    /// Spec.
    pub spec: Spec,
    /// State.
    pub state: State,
    /// Why it ended last; empty otherwise.
    pub reason: String,
    /// How it does; `None` where nobody looks.
    pub health: Option<Health>,
    /// How it sleeps, or falls asleep.
    pub asleep: Option<How>,
    /// What its sleep was like.
    pub slept: Slept,
}

impl Shown {
    /// The word for its state.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.state, self.asleep) {
            (State::Paused, Some(How::Pause)) | (State::Stopped, Some(How::Stop)) => "sleeping",
            (state, _) => state.as_str(),
        }
    }
}

/// A machine.
pub(super) struct Machine {
    pub(super) spec: Spec,
    pub(super) state: State,
    pub(super) reason: String,
    pub(super) console: Console,
    /// Counts its lives, so that what is left over of one cannot touch the next.
    pub(super) life: u64,
    /// Counts its timers and states, so that a timer that was set for one state cannot fire in another.
    pub(super) timer: u64,
    pub(super) orders: Option<mpsc::UnboundedSender<Order>>,
    pub(super) guest: Option<Guest>,
    /// Its last life ended by its powering off; what an earlier service saw is not known.
    pub(super) powered_off: bool,
    /// A snapshot of it is being taken.
    pub(super) taking: bool,
    /// Who waits for its processors to stand still.
    pub(super) holding: Option<Reply<()>>,
    pub(super) health: Option<Health>,
    pub(super) pids: Vec<i32>,
    /// Where it is to be seen how many bytes of its memory its guest has; `None` where it doesn't run.
    pub(super) memory: Option<Arc<AtomicU64>>,
    /// Its keeper is of a release that could not change that yet.
    pub(super) fixed_memory: bool,
    pub(super) group: Option<Group>,
    /// How it goes out while it runs, if it does.
    pub(super) way: Option<Arc<Way>>,
    pub(super) confinement: Vec<Mechanism>,
    /// When it was started last.
    pub(super) started: Instant,
    /// When it was ready last.
    pub(super) ready: Instant,
    /// How often in a row it ended soon after.
    pub(super) failures: u32,
    pub(super) sleep: Sleep,
    /// Its time is over: once it has ended it is removed.
    pub(super) expired: bool,
}

impl Machine {
    pub(super) fn new(spec: Spec, asleep: Option<How>) -> Self {
        let (console, reason) = (Console::default(), String::new());
        let (pids, confinement) = (vec![], vec![]);
        Self {
            spec,
            state: State::Stopped,
            reason,
            console,
            life: 0,
            timer: 0,
            orders: None,
            guest: None,
            powered_off: false,
            taking: false,
            holding: None,
            health: None,
            pids,
            memory: None,
            fixed_memory: false,
            group: None,
            way: None,
            confinement,
            started: Instant::now(),
            ready: Instant::now(),
            failures: 0,
            sleep: Sleep::new(asleep),
            expired: false,
        }
    }

    pub(super) fn show(&self, name: &str) -> Shown {
        Shown {
            name: name.to_owned(),
            spec: self.spec.clone(),
            state: self.state,
            reason: self.reason.clone(),
            health: self.health.clone(),
            asleep: self.sleep.asleep,
            slept: self.sleep.shown,
        }
    }

    pub(super) fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A machine that takes no more orders is about to tell of its end.
            let _ = orders.send(order);
        }
    }
}
