//! When which process is started, signalled and given up: the state machine of the supervisor, without any I/O.
//!
//! ```text
//!            bus ready                 READY=1
//!  Waiting ------------> Starting --------------> Running
//!     ^                   |    ^                     |
//!     |            exit,  |    | back-off over       | exit
//!     |          too slow v    |                     v
//!     +---- no bus ----- Pausing <-------------------+
//!                          ^
//!          exit of a failed one                exit, next = Again: start at once (or Waiting)
//!                          |                              ^
//!      Running/Starting -- TERM or KILL --> Stopping -----+
//!                                              |
//!                                              +--- exit, next = End --> Ended
//! ```
//!
//! Invariants (the property tests in `tests.rs` hold them): a unit has at most one process; services start only while
//! the bus runs; once a stop has begun nothing is started, and a unit is told to stop only after all that stop before
//! it are gone, the bus last; every state that waits for something has a deadline.

#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use shipote_bus::Service;

/// Time since the supervisor began.
pub(super) type Moment = Duration;

/// A process must say that it is ready within this time.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The first pause before a restart; each failure in a row doubles it.
pub(super) const BACK_OFF_MIN: Duration = Duration::from_millis(200);
/// The longest pause before a restart.
pub(super) const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// After running for so long a failure counts as the first one again.
pub(super) const HEALTHY: Duration = Duration::from_secs(60);
/// So many failures in a row before the appliance was ever ready, and it gives up.
pub(super) const GIVE_UP: u32 = 5;

/// What the caller may choose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// A service pings within this time.
    pub(super) watchdog: Duration,
    /// From SIGTERM to SIGKILL.
    pub(super) grace: Duration,
}

/// What the supervisor runs: the bus, and services on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Unit {
    Bus,
    Service(Service),
}

impl Unit {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Service(service) => service.name(),
        }
    }

    /// The order of stopping: whoever sends work to others goes first, the bus last.
    const fn stop_rank(self) -> u8 {
        match self {
            Self::Service(Service::Proxy) => 0,
            Self::Service(Service::Machines) => 1,
            Self::Service(Service::Workspaces) => 2,
            Self::Service(Service::Plugins) => 3,
            Self::Bus => 4,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Begin.
    Start,
    /// `READY=1`, or the bus listens.
    Ready(Unit),
    /// `WATCHDOG=1`.
    Ping(Unit),
    /// Its process is gone, or could not be started.
    Exited(Unit),
    /// A deadline has passed.
    Tick,
    /// Somebody wants this service restarted.
    Restart(Service),
    /// Somebody wants the services to read their configuration anew.
    Reload,
    /// Stop everything.
    Stop,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Spawn(Unit),
    Terminate(Unit),
    Kill(Unit, Cause),
    HangUp(Unit),
    /// All units are ready for the first time.
    AnnounceReady,
    /// This unit keeps failing before the appliance was ever ready: it stops, and has failed.
    GiveUp(Unit),
    /// Everything has ended.
    Finish,
}

/// Why a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// It did not become ready in time.
    SlowStart,
    /// It did not answer the watchdog in time.
    Watchdog,
    /// It did not end in time after SIGTERM.
    Grace,
}

/// What follows the exit of a process that was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Again,
    Failed,
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// For the bus.
    Waiting,
    Starting {
        since: Moment,
    },
    Running {
        since: Moment,
    },
    Stopping {
        /// `None` once it was killed.
        kill_at: Option<Moment>,
        next: Next,
    },
    Pausing {
        until: Moment,
    },
    Ended,
}

#[derive(Clone, Debug)]
struct Record {
    unit: Unit,
    state: State,
    /// Failures in a row.
    failures: u32,
    restarts: u32,
    /// When the watchdog expires.
    watchdog: Option<Moment>,
}

/// The state machine.
#[derive(Clone, Debug)]
pub(super) struct Supervisor {
    /// In the order of stopping, so that the bus is the last one.
    records: Vec<Record>,
    limits: Limits,
    announced: bool,
    stopping: bool,
}

impl Supervisor {
    /// For the bus and these services.
    pub(super) fn new(services: &[Service], limits: Limits) -> Self {
        let mut units: Vec<Unit> = services.iter().map(|s| Unit::Service(*s)).collect();
        units.push(Unit::Bus);
        units.sort_by_key(|u| u.stop_rank());
        units.dedup();
        let record = |unit| Record { unit, state: State::Waiting, failures: 0, restarts: 0, watchdog: None };
        Self { records: units.into_iter().map(record).collect(), limits, announced: false, stopping: false }
    }

    pub(super) fn units(&self) -> impl Iterator<Item = Unit> {
        self.records.iter().map(|r| r.unit)
    }

    /// For people and for `shipote status`.
    pub(super) fn state(&self, unit: Unit) -> &'static str {
        match self.records.iter().find(|r| r.unit == unit).map(|r| r.state) {
            Some(State::Waiting | State::Starting { .. }) => "starting",
            Some(State::Running { .. }) => "running",
            Some(State::Stopping { next: Next::Failed, .. } | State::Pausing { .. }) => "failed",
            Some(State::Stopping { .. }) => "stopping",
            Some(State::Ended) | None => "stopped",
        }
    }

    pub(super) fn restarts(&self, unit: Unit) -> u32 {
        self.records.iter().find(|r| r.unit == unit).map_or(0, |r| r.restarts)
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.records
            .iter()
            .filter_map(|r| match r.state {
                State::Starting { since } => Some(since + START_TIMEOUT),
                State::Running { .. } => r.watchdog,
                State::Stopping { kill_at, .. } => kill_at,
                State::Pausing { until } => Some(until),
                State::Waiting | State::Ended => None,
            })
            .min()
    }

    pub(super) fn handle(&mut self, now: Moment, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Start => self.spawn(now, Unit::Bus, &mut actions),
            Event::Ready(unit) => self.ready(now, unit, &mut actions),
            Event::Ping(unit) => {
                let due = now + self.limits.watchdog;
                if let Some(r) = self.record(unit)
                    && matches!(r.state, State::Running { .. })
                    && r.watchdog.is_some()
                {
                    r.watchdog = Some(due);
                }
            }
            Event::Exited(unit) => self.exited(now, unit, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
            Event::Restart(service) => self.restart(now, Unit::Service(service), &mut actions),
            Event::Reload => {
                let running = |r: &&Record| r.unit != Unit::Bus && matches!(r.state, State::Running { .. });
                actions.extend(self.records.iter().filter(running).map(|r| Action::HangUp(r.unit)));
            }
            Event::Stop => self.stop(now, &mut actions),
        }
        actions
    }

    fn record(&mut self, unit: Unit) -> Option<&mut Record> {
        self.records.iter_mut().find(|r| r.unit == unit)
    }

    fn bus_runs(&self) -> bool {
        self.records.iter().any(|r| r.unit == Unit::Bus && matches!(r.state, State::Running { .. }))
    }

    /// Starts a unit, or has it wait for the bus.
    fn spawn(&mut self, now: Moment, unit: Unit, actions: &mut Vec<Action>) {
        let may = unit == Unit::Bus || self.bus_runs();
        if let Some(r) = self.record(unit) {
            r.watchdog = None;
            if may {
                r.state = State::Starting { since: now };
                actions.push(Action::Spawn(unit));
            } else {
                r.state = State::Waiting;
            }
        }
    }

    fn ready(&mut self, now: Moment, unit: Unit, actions: &mut Vec<Action>) {
        let due = now + self.limits.watchdog;
        match self.record(unit) {
            Some(r) if matches!(r.state, State::Starting { .. }) => {
                r.state = State::Running { since: now };
                r.watchdog = (unit != Unit::Bus).then_some(due);
            }
            _ => return,
        }
        if unit == Unit::Bus {
            let waiting: Vec<Unit> =
                self.records.iter().filter(|r| r.state == State::Waiting).map(|r| r.unit).collect();
            for unit in waiting {
                self.spawn(now, unit, actions);
            }
        }
        if !self.announced && self.records.iter().all(|r| matches!(r.state, State::Running { .. })) {
            self.announced = true;
            actions.push(Action::AnnounceReady);
        }
    }

    fn exited(&mut self, now: Moment, unit: Unit, actions: &mut Vec<Action>) {
        let stopping = self.stopping;
        let Some(r) = self.record(unit) else { return };
        r.watchdog = None;
        let next = match r.state {
            State::Waiting | State::Pausing { .. } | State::Ended => return,
            _ if stopping => Next::End,
            State::Stopping { next, .. } => next,
            State::Starting { .. } => Next::Failed,
            State::Running { since } => {
                if now.saturating_sub(since) >= HEALTHY {
                    r.failures = 0;
                }
                Next::Failed
            }
        };
        match next {
            Next::End => {
                r.state = State::Ended;
                self.advance(now, actions);
                return;
            }
            Next::Again => self.spawn(now, unit, actions),
            Next::Failed => {
                r.failures += 1;
                r.restarts += 1;
                let failures = r.failures;
                r.state = State::Pausing { until: now + back_off(failures) };
                if !self.announced && failures >= GIVE_UP {
                    actions.push(Action::GiveUp(unit));
                    self.stop(now, actions);
                    return;
                }
            }
        }
        if unit == Unit::Bus {
            // Nobody can work without it: they start again once it is back.
            let alive = |r: &&Record| matches!(r.state, State::Starting { .. } | State::Running { .. });
            let alive: Vec<Unit> =
                self.records.iter().filter(|r| r.unit != Unit::Bus).filter(alive).map(|r| r.unit).collect();
            for unit in alive {
                self.terminate(now, unit, Next::Again, actions);
            }
        }
    }

    fn tick(&mut self, now: Moment, actions: &mut Vec<Action>) {
        for unit in self.units().collect::<Vec<_>>() {
            let Some(r) = self.record(unit) else { continue };
            let watchdog_expired = r.watchdog.is_some_and(|due| due <= now);
            match r.state {
                State::Pausing { until } if until <= now => self.spawn(now, unit, actions),
                State::Starting { since } if since + START_TIMEOUT <= now => {
                    r.state = State::Stopping { kill_at: None, next: Next::Failed };
                    actions.push(Action::Kill(unit, Cause::SlowStart));
                }
                State::Running { since } if watchdog_expired => {
                    if now.saturating_sub(since) >= HEALTHY {
                        r.failures = 0;
                    }
                    r.watchdog = None;
                    r.state = State::Stopping { kill_at: None, next: Next::Failed };
                    actions.push(Action::Kill(unit, Cause::Watchdog));
                }
                State::Stopping { kill_at: Some(at), next } if at <= now => {
                    r.state = State::Stopping { kill_at: None, next };
                    actions.push(Action::Kill(unit, Cause::Grace));
                }
                _ => {}
            }
        }
    }

    fn restart(&mut self, now: Moment, unit: Unit, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        match self.record(unit).map(|r| (r.state, &mut r.restarts)) {
            Some((State::Starting { .. } | State::Running { .. }, restarts)) => {
                *restarts += 1;
                self.terminate(now, unit, Next::Again, actions);
            }
            Some((State::Pausing { .. }, _)) => self.spawn(now, unit, actions),
            _ => {}
        }
    }

    fn terminate(&mut self, now: Moment, unit: Unit, next: Next, actions: &mut Vec<Action>) {
        let kill_at = Some(now + self.limits.grace);
        if let Some(r) = self.record(unit) {
            r.watchdog = None;
            r.state = State::Stopping { kill_at, next };
            actions.push(Action::Terminate(unit));
        }
    }

    fn stop(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        for r in &mut self.records {
            match &mut r.state {
                State::Waiting | State::Pausing { .. } => r.state = State::Ended,
                State::Stopping { next, .. } => *next = Next::End,
                _ => {}
            }
        }
        self.advance(now, actions);
    }

    /// Tells the next one to end.
    fn advance(&mut self, now: Moment, actions: &mut Vec<Action>) {
        match self.records.iter().find(|r| r.state != State::Ended).map(|r| (r.unit, r.state)) {
            None => actions.push(Action::Finish),
            Some((unit, State::Starting { .. } | State::Running { .. })) => {
                self.terminate(now, unit, Next::End, actions);
            }
            Some(_) => {}
        }
    }
}

/// The pause after so many failures in a row.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACK_OFF_MIN * 2_u32.pow(doublings)).min(BACK_OFF_MAX)
}
