//! What happens to one machine: steps of its life, what is told of it, and its start after an end that nobody wanted.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Actor, Change, Launcher, Message};
use crate::Error;
use crate::console::Console;
use crate::health::Health;
use crate::launch::{Order, Report};
use crate::spec::{Restart, Spec};
use crate::state::{Effect, Input, Refused, State};

/// The first pause before a machine is started again by itself; each that follows soon is twice as long.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After running for so long, an end counts as the first one again.
const HEALTHY: Duration = Duration::from_secs(60);

impl<L: Launcher> Actor<L> {
    /// Does one step of a machine's life; `time` is what it then has until [`Input::Expired`].
    pub(super) fn input(
        &mut self,
        operation: &'static str,
        name: &str,
        input: Input,
        time: Duration,
    ) -> Result<(), Error> {
        let machine = self.get(name)?;
        let before = machine.state;
        let (state, effect) = before.step(input).map_err(|Refused(state)| {
            let (name, state) = (name.to_owned(), state.as_str().to_owned());
            Error::WrongState { operation, name, state }
        })?;
        machine.state = state;
        if state != before {
            machine.timer += 1;
        }
        match effect {
            Some(Effect::Launch) => {
                machine.life += 1;
                machine.started = Instant::now();
                machine.powered_off = false;
                machine.reason.clear();
                machine.console = Console::default();
                let (spec, console) = (machine.spec.clone(), machine.console.clone());
                self.launch(name, &spec, console, time);
            }
            Some(Effect::AskToEnd) => {
                machine.order(Order::PowerOff);
                let timer = machine.timer;
                self.tell_after(time, Message::Expired(name.to_owned(), timer));
            }
            Some(Effect::Expect) => {
                let timer = machine.timer;
                self.tell_after(time, Message::Expired(name.to_owned(), timer));
            }
            Some(Effect::Kill) => machine.order(Order::Kill),
            Some(Effect::Pause) => machine.order(Order::Pause),
            Some(Effect::Resume) => machine.order(Order::Resume),
            None => {}
        }
        if state != before {
            let shown = self.get(name)?.show(name);
            // The bus side lives as long as the actor.
            let _ = self.changes.send(Change::State(shown));
        }
        Ok(())
    }

    pub(super) fn launch(&mut self, name: &str, spec: &Spec, console: Console, time: Duration) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let (life, timer) = (machine.life, machine.timer);
        let report = reporter(self.sender.clone(), name.to_owned(), life);
        machine.orders = Some(self.launcher.launch(name, spec, console, report));
        self.tell_after(time, Message::Expired(name.to_owned(), timer));
    }

    /// Has the actor told when this has passed, if it still lives then.
    pub(super) fn tell_after(&self, time: Duration, message: Message) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(message);
            }
        });
    }

    pub(super) fn told(&mut self, name: &str, life: u64, report: Report) {
        let Some(machine) = self.machines.get_mut(name).filter(|machine| machine.life == life) else { return };
        let input = match report {
            Report::Started(hello, group) => {
                machine.group = group;
                machine.pids = hello.pids;
                machine.fixed_memory = !hello.balloons;
                machine.confinement = hello.confinement;
                machine.sleep.stands_still = hello.paused;
                return;
            }
            Report::Memory(memory) => {
                machine.memory = Some(memory);
                return;
            }
            Report::GoesOut(way) => return self.goes_out(name, Some(way)),
            Report::Wanted => return self.need(name, true, None),
            Report::Paused(paused) => Input::Paused(paused),
            Report::Held(held) => {
                let answer = if held {
                    Ok(())
                } else {
                    let state = "kept by an earlier release, which cannot hold it; stop it, or restart it".to_owned();
                    Err(Error::WrongState { operation: "hold", name: name.to_owned(), state })
                };
                machine.holding.take().map(|waiting| waiting.send(answer));
                return;
            }
            Report::Health(health) => return self.does(name, health),
            Report::Ready(guest) => {
                machine.guest = Some(guest);
                machine.ready = Instant::now();
                machine.health = machine.spec.health.as_ref().map(|_| Health::Starting);
                Input::Ready
            }
            Report::Exited { clean, reason } => {
                machine.guest = None;
                machine.orders = None;
                machine.pids.clear();
                (machine.memory, machine.fixed_memory) = (None, false);
                machine.group = None;
                machine.powered_off = clean;
                // One that has ended stands still.
                machine.holding.take().map(|waiting| waiting.send(Ok(())));
                machine.reason = match machine.health.take() {
                    Some(Health::Unhealthy(why)) if machine.spec.restart != Restart::No => {
                        format!("it was unhealthy: {why}")
                    }
                    _ => reason,
                };
                Input::Exited { clean }
            }
        };
        let asked = machine.state == State::Stopping;
        let stands_still = machine.sleep.stands_still;
        if let Err(error) = self.input("follow", name, input, Duration::ZERO) {
            tracing::error!("{error}");
        }
        match input {
            Input::Ready if !stands_still => self.awake(name),
            Input::Paused(false) => self.awake(name),
            Input::Paused(true) => self.stands_still(name),
            Input::Exited { clean } => {
                self.goes_out(name, None);
                self.ended(name, asked);
                if self.machines.get(name).is_some_and(|machine| machine.expired) {
                    self.remove_expired(name);
                } else if !asked {
                    self.restart(name, clean);
                }
            }
            _ => {}
        }
    }

    /// Shows how a machine does, and ends one that does not what it is for where it is then started anew.
    pub(super) fn does(&mut self, name: &str, health: Health) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let ends = matches!(health, Health::Unhealthy(_)) && machine.spec.restart != Restart::No;
        machine.health = Some(health);
        let _ = self.changes.send(Change::Health(machine.show(name)));
        if ends && machine.state == State::Running {
            machine.order(Order::Kill);
        }
    }

    /// Has a machine that ended by itself started again, if it is to be.
    pub(super) fn restart(&mut self, name: &str, clean: bool) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        match machine.spec.restart {
            Restart::Always => {}
            Restart::OnFailure if !clean => {}
            Restart::OnFailure | Restart::No => return,
        }
        machine.failures = if machine.started.elapsed() < HEALTHY { machine.failures + 1 } else { 1 };
        let pause = (PAUSE * 2_u32.saturating_pow(machine.failures - 1)).min(PAUSE_MAX);
        let life = machine.life;
        self.tell_after(pause, Message::Again(name.to_owned(), life));
    }
}

/// What a machine's task tells the actor through.
pub(super) fn reporter(
    sender: mpsc::WeakUnboundedSender<Message>,
    name: String,
    life: u64,
) -> Box<dyn Fn(Report) + Send + Sync> {
    Box::new(move |report| {
        if let Some(sender) = sender.upgrade() {
            let _ = sender.send(Message::Told(name.clone(), life, report));
        }
    })
}
