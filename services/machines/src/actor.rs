//! The one owner of all machines. Everything that happens to them comes through its queue, in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use shipote_confinement::Mechanism;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::console::Console;
use crate::guest::Guest;
use crate::health::Health;
use crate::launch::{Order, Report};
use crate::spec::{Restart, Spec};
use crate::state::{Effect, Input, Refused, State};
use crate::store::Store;

/// Machines that may exist.
pub const MACHINES_MAX: usize = 256;
/// How long a machine may take to answer. Generous: its processor may be emulated, and shared.
const START_TIME: Duration = Duration::from_secs(120);

/// The first pause before a machine is started again by itself; each that follows soon is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After running for so long, an end counts as the first one again.
const HEALTHY: Duration = Duration::from_secs(60);

/// What a machine is launched by.
pub trait Launcher: Send + 'static {
    /// Launches a machine. It takes orders until it tells [`Report::Exited`], which it does whatever happens.
    fn launch(
        &self,
        name: &str,
        spec: &Spec,
        console: Console,
        report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> mpsc::UnboundedSender<Order>;

    /// Takes over a machine that runs from before this service began; `None` where it doesn't.
    fn adopt(
        &self,
        name: &str,
        spec: &Spec,
        console: Console,
        report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> Option<mpsc::UnboundedSender<Order>>;

    /// Ends the machines that run but are none of these.
    fn end_strangers(&self, _known: &[String]) {}
}

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
}

/// What is told of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It came into another state.
    State(Shown),
    /// It does otherwise than before.
    Health(Shown),
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Message {
    Create(String, Spec, Reply<()>),
    Start(String, Reply<()>),
    Stop(String, Duration, Reply<()>),
    Pause(String, bool, Reply<()>),
    Inspect(String, Reply<Inspected>),
    Remove(String, Reply<()>),
    List(oneshot::Sender<Vec<Shown>>),
    Guest(String, Reply<Guest>),
    Console(String, Reply<Vec<u8>>),
    /// Of the machine's `n`th life.
    Told(String, u64, Report),
    /// The machine's `n`th timer.
    Expired(String, u64),
    /// Its pause before it is started again is over.
    Again(String, u64),
    /// With `true` the machines go on.
    Shutdown(bool, oneshot::Sender<()>),
}

/// What is known of a machine's processes.
#[derive(Debug, Clone)]
pub struct Inspected {
    /// As in lists.
    pub shown: Shown,
    /// The monitor's process and the vsock device's; none where it doesn't run.
    pub pids: Vec<i32>,
    /// How they are confined.
    pub confinement: Vec<Mechanism>,
}

struct Machine {
    spec: Spec,
    state: State,
    reason: String,
    console: Console,
    /// Counts its lives, so that what is left over of one cannot touch the next.
    life: u64,
    /// Counts its timers and states, so that a timer that was set for one state cannot fire in another.
    timer: u64,
    orders: Option<mpsc::UnboundedSender<Order>>,
    guest: Option<Guest>,
    health: Option<Health>,
    pids: Vec<i32>,
    confinement: Vec<Mechanism>,
    /// When it was started last.
    started: Instant,
    /// How often in a row it ended soon after.
    failures: u32,
}

/// Owns the machines; see [`Handle`].
pub struct Actor<L> {
    machines: BTreeMap<String, Machine>,
    store: Store,
    launcher: L,
    changes: mpsc::UnboundedSender<Change>,
    sender: mpsc::WeakUnboundedSender<Message>,
    /// Who waits for the end of all machines.
    ending: Option<oneshot::Sender<()>>,
}

/// How everybody else reaches the actor.
#[derive(Clone)]
pub struct Handle(mpsc::UnboundedSender<Message>);

impl Handle {
    /// Starts an actor with the machines that the store has. Changes of state go to `changes`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn start<L: Launcher>(
        store: Store,
        launcher: L,
        changes: mpsc::UnboundedSender<Change>,
    ) -> Result<Self, Error> {
        let (sender, messages) = mpsc::unbounded_channel();
        let machines = store.load()?.into_iter().map(|(name, spec)| (name, Machine::new(spec))).collect();
        let weak = sender.downgrade();
        let mut actor = Actor { machines, store, launcher, changes, sender: weak, ending: None };
        actor.adopt_all();
        tokio::spawn(actor.run(messages));
        Ok(Self(sender))
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(message(reply)).map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)?
    }

    /// Defines a machine.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::LimitReached`], or the disk's.
    pub async fn create(&self, name: &str, spec: Spec) -> Result<(), Error> {
        self.ask(|reply| Message::Create(name.to_owned(), spec, reply)).await
    }

    /// Has it started; that it runs is told later.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`].
    pub async fn start_machine(&self, name: &str) -> Result<(), Error> {
        self.ask(|reply| Message::Start(name.to_owned(), reply)).await
    }

    /// Has it power off, and killed after `grace`; that it is stopped is told later.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`].
    pub async fn stop(&self, name: &str, grace: Duration) -> Result<(), Error> {
        self.ask(|reply| Message::Stop(name.to_owned(), grace, reply)).await
    }

    /// Has its processors stop (`paused`) or go on; that they did is told later.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`].
    pub async fn pause(&self, name: &str, paused: bool) -> Result<(), Error> {
        self.ask(|reply| Message::Pause(name.to_owned(), paused, reply)).await
    }

    /// What is known of its processes.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`].
    pub async fn inspect(&self, name: &str) -> Result<Inspected, Error> {
        self.ask(|reply| Message::Inspect(name.to_owned(), reply)).await
    }

    /// Removes a machine that doesn't run.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`], or the disk's.
    pub async fn remove(&self, name: &str) -> Result<(), Error> {
        self.ask(|reply| Message::Remove(name.to_owned(), reply)).await
    }

    /// All machines, by name.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn list(&self) -> Result<Vec<Shown>, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Message::List(reply)).map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)
    }

    /// How to reach a running machine.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`].
    pub async fn guest(&self, name: &str) -> Result<Guest, Error> {
        self.ask(|reply| Message::Guest(name.to_owned(), reply)).await
    }

    /// The end of a machine's console, of this life or the last.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`].
    pub async fn console(&self, name: &str) -> Result<Vec<u8>, Error> {
        self.ask(|reply| Message::Console(name.to_owned(), reply)).await
    }

    /// Ends every machine and returns when the last is gone.
    pub async fn shut_down(&self) {
        self.end(false).await;
    }

    /// Ends without the machines: they wait for the next service as long as their leases say.
    pub async fn leave(&self) {
        self.end(true).await;
    }

    async fn end(&self, leave: bool) {
        let (reply, done) = oneshot::channel();
        if self.0.send(Message::Shutdown(leave, reply)).is_ok() {
            let _ = done.await;
        }
    }
}

impl Machine {
    fn new(spec: Spec) -> Self {
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
            health: None,
            pids,
            confinement,
            started: Instant::now(),
            failures: 0,
        }
    }

    fn show(&self, name: &str) -> Shown {
        Shown {
            name: name.to_owned(),
            spec: self.spec.clone(),
            state: self.state,
            reason: self.reason.clone(),
            health: self.health.clone(),
        }
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A machine that takes no more orders is about to tell of its end.
            let _ = orders.send(order);
        }
    }
}

impl<L: Launcher> Actor<L> {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        while let Some(message) = messages.recv().await {
            self.handle(message);
            if self.ending.is_some() && !self.machines.values().any(|machine| machine.state.has_monitor()) {
                if let Some(waiting) = self.ending.take() {
                    let _ = waiting.send(());
                }
                return;
            }
        }
    }

    fn handle(&mut self, message: Message) {
        // Whoever asked may have gone meanwhile: what was asked for is done all the same.
        match message {
            Message::Create(name, spec, reply) => drop(reply.send(self.create(name, spec))),
            Message::Start(name, reply) => drop(reply.send(self.input("start", &name, Input::Start, START_TIME))),
            Message::Stop(name, grace, reply) => drop(reply.send(self.input("stop", &name, Input::Stop, grace))),
            Message::Pause(name, paused, reply) => {
                let (operation, input) = if paused { ("pause", Input::Pause) } else { ("resume", Input::Resume) };
                drop(reply.send(self.input(operation, &name, input, Duration::ZERO)));
            }
            Message::Inspect(name, reply) => drop(reply.send(self.get(&name).map(|machine| Inspected {
                shown: machine.show(&name),
                pids: machine.pids.clone(),
                confinement: machine.confinement.clone(),
            }))),
            Message::Remove(name, reply) => drop(reply.send(self.remove(&name))),
            Message::List(reply) => {
                drop(reply.send(self.machines.iter().map(|(name, machine)| machine.show(name)).collect()));
            }
            Message::Guest(name, reply) => drop(reply.send(self.guest(&name))),
            Message::Console(name, reply) => {
                drop(reply.send(self.get(&name).map(|machine| machine.console.bytes())));
            }
            Message::Told(name, life, report) => self.told(&name, life, report),
            Message::Expired(name, timer) => {
                if self.machines.get(&name).is_some_and(|machine| machine.timer == timer) {
                    let _ = self.input("end", &name, Input::Expired, Duration::ZERO);
                }
            }
            Message::Again(name, life) => {
                let waits = |machine: &Machine| machine.life == life && !machine.state.has_monitor();
                if self.ending.is_none() && self.machines.get(&name).is_some_and(waits) {
                    let _ = self.input("start", &name, Input::Start, START_TIME);
                }
            }
            Message::Shutdown(leave, reply) => {
                self.ending = Some(reply);
                for machine in self.machines.values_mut() {
                    machine.order(if leave { Order::Leave } else { Order::Kill });
                    if leave {
                        // Nothing more will be told of it.
                        machine.state = State::Stopped;
                    }
                }
            }
        }
    }

    /// Takes over what an earlier service left.
    fn adopt_all(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        for name in &names {
            let Some(machine) = self.machines.get_mut(name) else { continue };
            let (life, console) = (machine.life + 1, Console::default());
            let report = reporter(self.sender.clone(), name.clone(), life);
            let Some(orders) = self.launcher.adopt(name, &machine.spec, console.clone(), report) else { continue };
            (machine.life, machine.orders, machine.console) = (life, Some(orders), console);
            if let Err(error) = self.input("take over", name, Input::Adopt, START_TIME) {
                tracing::error!("{error}");
            }
        }
        self.launcher.end_strangers(&names);
    }

    fn get(&mut self, name: &str) -> Result<&mut Machine, Error> {
        self.machines.get_mut(name).ok_or_else(|| Error::NoSuchMachine(name.to_owned()))
    }

    fn create(&mut self, name: String, spec: Spec) -> Result<(), Error> {
        if self.machines.contains_key(&name) {
            return Err(Error::NameTaken(name));
        }
        if self.machines.len() >= MACHINES_MAX {
            return Err(Error::LimitReached { name, limit: MACHINES_MAX });
        }
        self.store.save(&name, &spec)?;
        let machine = Machine::new(spec);
        let _ = self.changes.send(Change::State(machine.show(&name)));
        self.machines.insert(name, machine);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        let state = self.get(name)?.state;
        if state.has_monitor() {
            let state = format!("{}; stop it first", state.as_str());
            return Err(Error::WrongState { operation: "remove", name: name.to_owned(), state });
        }
        self.store.remove(name)?;
        self.machines.remove(name);
        Ok(())
    }

    fn guest(&mut self, name: &str) -> Result<Guest, Error> {
        let machine = self.get(name)?;
        match &machine.guest {
            Some(guest) if machine.state == State::Running => Ok(guest.clone()),
            _ => {
                let state = format!("{}; start it first", machine.state.as_str());
                Err(Error::WrongState { operation: "connect to", name: name.to_owned(), state })
            }
        }
    }

    /// Does one step of a machine's life; `time` is what it then has until [`Input::Expired`].
    fn input(&mut self, operation: &'static str, name: &str, input: Input, time: Duration) -> Result<(), Error> {
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
                machine.reason.clear();
                machine.console = Console::default();
                let (spec, console) = (machine.spec.clone(), machine.console.clone());
                self.launch(name, &spec, console, time);
            }
            Some(Effect::AskToEnd) => {
                machine.order(Order::PowerOff);
                let timer = machine.timer;
                self.expire_after(name, timer, time);
            }
            Some(Effect::Expect) => {
                let timer = machine.timer;
                self.expire_after(name, timer, time);
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

    fn launch(&mut self, name: &str, spec: &Spec, console: Console, time: Duration) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let (life, timer) = (machine.life, machine.timer);
        let report = reporter(self.sender.clone(), name.to_owned(), life);
        machine.orders = Some(self.launcher.launch(name, spec, console, report));
        self.expire_after(name, timer, time);
    }

    fn expire_after(&self, name: &str, timer: u64, time: Duration) {
        let (name, sender) = (name.to_owned(), self.sender.clone());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Message::Expired(name, timer));
            }
        });
    }

    fn told(&mut self, name: &str, life: u64, report: Report) {
        let Some(machine) = self.machines.get_mut(name).filter(|machine| machine.life == life) else { return };
        let input = match report {
            Report::Started(hello) => {
                machine.pids = hello.pids;
                machine.confinement = hello.confinement;
                return;
            }
            Report::Paused(paused) => Input::Paused(paused),
            Report::Health(health) => return self.does(name, health),
            Report::Ready(guest) => {
                machine.guest = Some(guest);
                machine.health = machine.spec.health.as_ref().map(|_| Health::Starting);
                Input::Ready
            }
            Report::Exited { clean, reason } => {
                machine.guest = None;
                machine.orders = None;
                machine.pids.clear();
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
        if let Err(error) = self.input("follow", name, input, Duration::ZERO) {
            tracing::error!("{error}");
        }
        if let Input::Exited { clean } = input
            && !asked
        {
            self.restart(name, clean);
        }
    }

    /// Shows how a machine does, and ends one that does not what it is for where it is then started anew.
    fn does(&mut self, name: &str, health: Health) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        let ends = matches!(health, Health::Unhealthy(_)) && machine.spec.restart != Restart::No;
        machine.health = Some(health);
        let _ = self.changes.send(Change::Health(machine.show(name)));
        if ends && machine.state == State::Running {
            machine.order(Order::Kill);
        }
    }

    /// Has a machine that ended by itself started again, if it is to be.
    fn restart(&mut self, name: &str, clean: bool) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        match machine.spec.restart {
            Restart::Always => {}
            Restart::OnFailure if !clean => {}
            Restart::OnFailure | Restart::No => return,
        }
        machine.failures = if machine.started.elapsed() < HEALTHY { machine.failures + 1 } else { 1 };
        let pause = (PAUSE * 2_u32.saturating_pow(machine.failures - 1)).min(PAUSE_MAX);
        let (life, name, sender) = (machine.life, name.to_owned(), self.sender.clone());
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Message::Again(name, life));
            }
        });
    }
}

/// What a machine's task tells the actor through.
fn reporter(sender: mpsc::WeakUnboundedSender<Message>, name: String, life: u64) -> Box<dyn Fn(Report) + Send + Sync> {
    Box::new(move |report| {
        if let Some(sender) = sender.upgrade() {
            let _ = sender.send(Message::Told(name.clone(), life, report));
        }
    })
}
