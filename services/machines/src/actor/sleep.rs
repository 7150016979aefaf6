//! Machines that nobody needs sleep, and whoever needs one wakes it.
//!
//! ```text
//!            idle as long as its spec says                          somebody needs it
//!   Running ─────────────────▶ quiet ──▶ looked at ──nothing──▶ asleep ──────────▶ Running
//!      ▲                         │           │          (Paused or Stopped,  │
//!      └─────somebody needs it───┴─something─┘           and marked on disk) ▼ it cannot be woken: whoever waits is told
//!                                                                              why, and the next one tries again
//! ```
//!
//! What counts as activity: that somebody asks for a connection; and, looked at when the time is over, connections that
//! are open and processor time. What looking after it costs the guest must not count: so it is left in quiet for a moment
//! first, in which whoever would not wake it gets no connection, and only what it does by itself is measured. One that a
//! user paused or stopped does not sleep: nobody but a user has it go on.

use std::time::Duration;

use tokio::time::Instant;

use super::{Actor, Change, Launcher, Message, Reply};
use crate::guest::Guest;
use crate::idle::{self, How, Seen};
use crate::state::{Input, State};
use crate::{Error, stats};

/// How long a machine that falls asleep may take to power off.
const GRACE: Duration = Duration::from_secs(30);
/// How long a machine is left in quiet before it is looked at, at most; one with a shorter time to idle, for that long.
const QUIET: Duration = Duration::from_secs(2);

/// How a machine sleeps.
pub(super) struct Sleep {
    /// It sleeps so, or falls asleep.
    pub(super) asleep: Option<How>,
    pub(super) shown: Slept,
    /// It stood still when this service met it.
    pub(super) stands_still: bool,
    /// Resident bytes before it fell asleep.
    before: u64,
    /// When somebody needed it last.
    active: Instant,
    /// Its time is over: since when it is left in quiet, and its processor time then.
    quiet: Option<(Instant, u64)>,
    /// Counts its timers: only the last one counts.
    timer: u64,
    /// Since when it is being woken.
    waking: Option<Instant>,
    /// A user has it go on, which is on record already.
    pub(super) by_user: bool,
    wakers: Vec<Reply<Guest>>,
}

/// What is shown of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slept {
    /// How often it fell asleep since this service began.
    pub times: u64,
    /// What the last waking took, microseconds.
    pub wake_usec: u64,
    /// Bytes of memory that it gave back when it fell asleep last.
    pub given_back: u64,
}

impl Sleep {
    pub(super) fn new(asleep: Option<How>) -> Self {
        Self {
            asleep,
            shown: Slept::default(),
            stands_still: false,
            before: 0,
            active: Instant::now(),
            quiet: None,
            timer: 0,
            waking: None,
            by_user: false,
            wakers: Vec::new(),
        }
    }

    /// Answers everybody who waits.
    fn answer(&mut self, result: &Result<Guest, String>, name: &str) {
        for reply in self.wakers.drain(..) {
            let failed = |reason| Error::Wake { name: name.to_owned(), reason };
            // Whoever asked may have lost patience.
            let _ = reply.send(result.clone().map_err(failed));
        }
    }
}

impl<L: Launcher> Actor<L> {
    /// Somebody needs a machine: answered at once, or once it is awake.
    pub(super) fn need(&mut self, name: &str, wake: bool, reply: Option<Reply<Guest>>) {
        let outcome = self.rouse(name, wake);
        let (Some(reply), Some(machine)) = (reply, self.machines.get_mut(name)) else {
            return;
        };
        match outcome {
            Ok(None) => machine.sleep.wakers.push(reply),
            Ok(Some(guest)) => drop(reply.send(Ok(guest))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// The guest of a machine that runs; `None` while it comes to.
    pub(super) fn rouse(&mut self, name: &str, wake: bool) -> Result<Option<Guest>, Error> {
        let machine = self.get(name)?;
        let asleep = machine.sleep.asleep;
        if asleep.is_some() && !wake {
            return Err(Error::Asleep(name.to_owned()));
        }
        if asleep.is_some() && machine.sleep.waking.is_none() {
            (machine.sleep.waking, machine.sleep.by_user) = (Some(Instant::now()), false);
        }
        match (machine.state, asleep) {
            (State::Running, None) => {
                // Who would not wake it does not keep it awake either.
                if wake {
                    (machine.sleep.active, machine.sleep.quiet) = (Instant::now(), None);
                } else if machine.sleep.quiet.is_some() {
                    return Err(Error::Asleep(name.to_owned()));
                }
                if machine.guest.is_some() {
                    return Ok(machine.guest.clone());
                }
            }
            (State::Starting, _) | (State::Running | State::Stopping, Some(_)) => return Ok(None),
            (State::Paused, Some(How::Pause)) => {
                self.input("wake", name, Input::Resume, Duration::ZERO)?;
                return Ok(None);
            }
            // Its disk is being copied; it is woken once that is done.
            (State::Stopped | State::Failed, Some(How::Stop)) if machine.taking => return Ok(None),
            (State::Stopped | State::Failed, Some(How::Stop)) => {
                self.input("wake", name, Input::Start, self.start_time)?;
                return Ok(None);
            }
            _ => {}
        }
        let machine = self.get(name)?;
        let way_out = if machine.state == State::Paused { "resume it first" } else { "start it first" };
        let state = format!("{}; {way_out}", machine.state.as_str());
        Err(Error::WrongState { operation: "connect to", name: name.to_owned(), state })
    }

    /// Its disk has been copied: whoever came meanwhile gets it awake.
    pub(super) fn wake_after_taking(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        if machine.sleep.waking.is_none() || machine.sleep.asleep != Some(How::Stop) || machine.state.has_monitor() {
            return;
        }
        if let Err(error) = self.input("wake", name, Input::Start, self.start_time) {
            tracing::error!("{error}");
        }
    }

    /// It runs: nobody waits any more, and its time begins.
    pub(super) fn awake(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name).filter(|m| m.state == State::Running) else { return };
        (machine.sleep.active, machine.sleep.quiet) = (Instant::now(), None);
        if let Some(began) = machine.sleep.waking.take() {
            machine.sleep.shown.wake_usec = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        }
        let slept = machine.sleep.asleep.take();
        if let Some(guest) = machine.guest.clone() {
            machine.sleep.answer(&Ok(guest), name);
        }
        let by_user = std::mem::take(&mut machine.sleep.by_user);
        if let Some(how) = slept {
            self.unmark(name);
            if !by_user {
                self.tell_of_sleep(name, how, false, Ok(()));
            }
        }
        self.arm(name);
    }

    /// Its processors stand still, because it sleeps or because somebody wanted it.
    pub(super) fn stands_still(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        machine.sleep.stands_still = false;
        if machine.sleep.asleep.is_none() {
            machine.sleep.waking = None;
            return machine.sleep.answer(&Err("it was paused; resume it first".to_owned()), name);
        }
        let now = stats::of(&machine.pids).memory_bytes;
        machine.sleep.shown.given_back = machine.sleep.before.saturating_sub(now);
        // Somebody came while it fell asleep.
        if machine.sleep.waking.is_some()
            && let Err(error) = self.input("wake", name, Input::Resume, Duration::ZERO)
        {
            tracing::error!("{error}");
        }
    }

    /// Its monitor is gone; `asked` where that was wanted.
    pub(super) fn ended(&mut self, name: &str, asked: bool) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        machine.sleep.stands_still = false;
        let reason = machine.reason.clone();
        match machine.sleep.asleep {
            Some(How::Stop) if asked => {
                machine.sleep.shown.given_back = machine.sleep.before;
                if machine.sleep.waking.is_some()
                    && let Err(error) = self.input("wake", name, Input::Start, self.start_time)
                {
                    tracing::error!("{error}");
                }
                return;
            }
            Some(How::Stop) if machine.sleep.waking.is_some() => {
                self.tell_of_sleep(name, How::Stop, false, Err(reason.clone()));
            }
            Some(How::Pause) => {
                machine.sleep.asleep = None;
                self.unmark(name);
            }
            Some(How::Stop) | None => {}
        }
        if let Some(machine) = self.machines.get_mut(name) {
            machine.sleep.waking = None;
            machine.sleep.answer(&Err(reason), name);
        }
    }

    /// A user decides: it does not sleep any more, whatever becomes of it. Whether that was all that there was to do.
    pub(super) fn end_sleep(&mut self, name: &str) -> bool {
        let Some(machine) = self.machines.get_mut(name) else { return false };
        let Some(how) = machine.sleep.asleep.take() else { return false };
        machine.sleep.waking = None;
        let shown = machine.show(name);
        let done = !machine.state.has_monitor();
        self.unmark(name);
        if done || (how == How::Pause && shown.state == State::Paused) {
            let _ = self.changes.send(Change::State(shown));
        }
        done
    }

    /// What has it go on was a user.
    pub(super) fn goes_on_by_user(&mut self, name: &str) {
        if let Some(machine) = self.machines.get_mut(name) {
            machine.sleep.by_user = machine.sleep.asleep.is_some();
        }
    }

    /// Its time begins with the last activity.
    fn arm(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let Some(rule) = &machine.spec.idle else { return };
        machine.sleep.quiet = None;
        let at = machine.sleep.active + Duration::from_secs(rule.after_s.into());
        self.arm_at(name, at);
    }

    fn arm_at(&mut self, name: &str, at: Instant) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        machine.sleep.timer += 1;
        let timer = machine.sleep.timer;
        self.tell_after(at.saturating_duration_since(Instant::now()), Message::Idle(name.to_owned(), timer));
    }

    /// Whether a timer is still the last one, and the machine awake; then its spec's time.
    fn still_due(&self, name: &str, timer: u64) -> Option<Duration> {
        let machine = self.machines.get(name)?;
        let due = machine.sleep.timer == timer && machine.state == State::Running && machine.sleep.asleep.is_none();
        let rule = machine.spec.idle.as_ref().filter(|_| due && self.ending.is_none())?;
        Some(Duration::from_secs(rule.after_s.into()))
    }

    /// The time is over: unless somebody came meanwhile, it is left in quiet, and looked at after that.
    pub(super) fn idle_due(&mut self, name: &str, timer: u64) {
        let Some(after) = self.still_due(name, timer) else { return };
        let Some(machine) = self.machines.get_mut(name) else { return };
        let Some(guest) = machine.guest.clone().filter(|_| machine.sleep.active.elapsed() >= after) else {
            return self.arm(name);
        };
        if machine.sleep.quiet.is_none() {
            let now = Instant::now();
            machine.sleep.quiet = Some((now, stats::of(&machine.pids).cpu_usec));
            return self.arm_at(name, now + QUIET.min(after));
        }
        let (pids, name, sender) = (machine.pids.clone(), name.to_owned(), self.sender.clone());
        tokio::task::spawn_blocking(move || {
            let seen = idle::look(&pids, &guest.socket).map_err(|error| error.to_string());
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Message::Looked(name, timer, seen));
            }
        });
    }

    /// What was seen: unless something goes on, it falls asleep.
    pub(super) fn looked(&mut self, name: &str, timer: u64, seen: Result<Seen, String>) {
        let Some(after) = self.still_due(name, timer) else { return };
        let Some(machine) = self.machines.get_mut(name) else { return };
        let busy = match (seen, machine.sleep.quiet.take()) {
            // A snapshot is being taken of it, or somebody came.
            _ if machine.taking => true,
            (Ok(_), None) => true,
            (Ok(seen), Some((since, cpu_usec))) => {
                machine.sleep.before = seen.memory_bytes;
                seen.is_busy(since.elapsed(), cpu_usec)
            }
            (Err(reason), _) => {
                tracing::warn!("look whether machine {name} is idle: {reason}");
                true
            }
        };
        if busy {
            machine.sleep.active = Instant::now();
        }
        if machine.sleep.active.elapsed() < after {
            return self.arm(name);
        }
        if let Err(error) = self.fall_asleep(name) {
            tracing::warn!("put machine {name} to sleep: {error}");
            if let Some(machine) = self.machines.get_mut(name) {
                machine.sleep.active = Instant::now();
            }
            self.arm(name);
        }
    }

    fn fall_asleep(&mut self, name: &str) -> Result<(), Error> {
        let machine = self.get(name)?;
        let Some(rule) = machine.spec.idle.clone() else { return Ok(()) };
        // On the disk first: the next service must know it from one that a user stopped.
        self.store.mark_asleep(name, Some(rule.then))?;
        let machine = self.get(name)?;
        machine.sleep.asleep = Some(rule.then);
        machine.sleep.shown.times += 1;
        machine.sleep.shown.given_back = 0;
        let (input, time) = match rule.then {
            How::Pause => (Input::Pause, Duration::ZERO),
            How::Stop => (Input::Stop, GRACE),
        };
        self.input("put to sleep", name, input, time)?;
        self.tell_of_sleep(name, rule.then, true, Ok(()));
        Ok(())
    }

    fn unmark(&self, name: &str) {
        if let Err(error) = self.store.mark_asleep(name, None) {
            tracing::warn!("{error}");
        }
    }

    fn tell_of_sleep(&self, name: &str, how: How, asleep: bool, outcome: Result<(), String>) {
        let _ = self.changes.send(Change::Sleep { name: name.to_owned(), how, asleep, outcome });
    }
}
