//! The one owner of all machines. Everything that happens to them comes through its queue, in order.

mod expiry;
mod sleep;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use shipote_confinement::Mechanism;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::console::Console;
use crate::disk;
use crate::groups::Group;
use crate::guest::Guest;
use crate::health::Health;
use crate::idle::{How, Seen};
use crate::launch::{Order, Report};
use crate::spec::{Restart, Spec};
use crate::state::{Effect, Input, Refused, State};
use crate::store::Store;

use sleep::Sleep;
pub use sleep::Slept;

/// Machines that may exist.
pub const MACHINES_MAX: usize = 256;
/// How long a machine may take to answer where nothing else is said. Generous: its processor may be emulated, and shared.
pub const START_TIME: Duration = Duration::from_secs(120);
/// How long somebody waits for a machine that sleeps: it may have to end before it can start.
const WAKE_TIME: Duration = Duration::from_secs(180);

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

/// What is told of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It came into another state.
    State(Shown),
    /// It does otherwise than before.
    Health(Shown),
    /// Its time was over, and it was removed.
    Expired {
        /// Name.
        name: String,
        /// Whether it could be removed.
        outcome: Result<(), String>,
    },
    /// It falls asleep, or somebody woke it: nobody's mutation, but one.
    Sleep {
        /// Name.
        name: String,
        /// How it sleeps.
        how: How,
        /// It falls asleep; else it is awake.
        asleep: bool,
        /// Whether it could be woken.
        outcome: Result<(), String>,
    },
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Message {
    /// With a disk to begin with, which becomes the machine's.
    Create(String, Box<Spec>, Option<PathBuf>, Reply<()>),
    /// A snapshot is to be taken.
    Take(String, Reply<Taking>),
    /// Its processors are to stand still for it.
    Hold(String, Reply<()>),
    /// It has been taken, or not.
    Taken(String),
    Start(String, Reply<()>),
    Stop(String, Duration, Reply<()>),
    Pause(String, bool, Reply<()>),
    Inspect(String, Reply<Inspected>),
    Remove(String, Reply<()>),
    List(oneshot::Sender<Vec<Shown>>),
    Guest(String, Reply<Guest>),
    /// Somebody needs it; with `true` one that sleeps is woken.
    Need(String, bool, Reply<Guest>),
    /// Its `n`th timer says that it may be idle.
    Idle(String, u64),
    /// What was seen then.
    Looked(String, u64, Result<Seen, String>),
    Console(String, Reply<Vec<u8>>),
    /// Of the machine's `n`th life.
    Told(String, u64, Report),
    /// The machine's `n`th timer.
    Expired(String, u64),
    /// Its pause before it is started again is over.
    Again(String, u64),
    /// The time of one that ends at this second may be over.
    Due(String, u64),
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
    /// What limits them, where anything does.
    pub group: Option<Group>,
    /// How they are confined.
    pub confinement: Vec<Mechanism>,
    /// For how long it has been running; none where it doesn't.
    pub up: Option<Duration>,
}

/// A machine of which a snapshot is being taken.
#[derive(Debug)]
pub struct Taking {
    /// Its spec.
    pub spec: Spec,
    /// Its disk.
    pub disk: PathBuf,
    /// How it is now: running, paused, or not at all.
    pub state: State,
    /// It had powered off, as far as this service knows.
    pub powered_off: bool,
    /// How to reach it where it runs.
    pub guest: Option<Guest>,
    name: String,
    sender: mpsc::WeakUnboundedSender<Message>,
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.upgrade() {
            let _ = sender.send(Message::Taken(std::mem::take(&mut self.name)));
        }
    }
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
    /// Its last life ended by its powering off; what an earlier service saw is not known.
    powered_off: bool,
    /// A snapshot of it is being taken.
    taking: bool,
    /// Who waits for its processors to stand still.
    holding: Option<Reply<()>>,
    health: Option<Health>,
    pids: Vec<i32>,
    group: Option<Group>,
    confinement: Vec<Mechanism>,
    /// When it was started last.
    started: Instant,
    /// When it was ready last.
    ready: Instant,
    /// How often in a row it ended soon after.
    failures: u32,
    sleep: Sleep,
    /// Its time is over: once it has ended it is removed.
    expired: bool,
}

/// Owns the machines; see [`Handle`].
pub struct Actor<L> {
    machines: BTreeMap<String, Machine>,
    store: Store,
    launcher: L,
    changes: mpsc::UnboundedSender<Change>,
    sender: mpsc::WeakUnboundedSender<Message>,
    start_time: Duration,
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
        Self::start_with(store, launcher, changes, START_TIME)
    }

    /// The same, with the time that a machine may take to answer.
    ///
    /// # Errors
    /// As of [`Self::start`].
    pub fn start_with<L: Launcher>(
        store: Store,
        launcher: L,
        changes: mpsc::UnboundedSender<Change>,
        start_time: Duration,
    ) -> Result<Self, Error> {
        let (sender, messages) = mpsc::unbounded_channel();
        let known = store.load()?.into_iter().map(|(name, spec)| {
            let asleep = store.asleep(&name);
            (name, Machine::new(spec, asleep))
        });
        let machines = known.collect();
        let weak = sender.downgrade();
        let mut actor = Actor { machines, store, launcher, changes, sender: weak, start_time, ending: None };
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
        self.create_with(name, spec, None).await
    }

    /// Defines a machine that begins with a disk, a file beside its own folder, which becomes its own.
    ///
    /// # Errors
    /// As of [`Self::create`]; the file is then where it was.
    pub async fn create_with(&self, name: &str, spec: Spec, disk: Option<PathBuf>) -> Result<(), Error> {
        self.ask(|reply| Message::Create(name.to_owned(), Box::new(spec), disk, reply)).await
    }

    /// Keeps a machine from starting and being removed while a snapshot of it is taken: for as long as the answer lives.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`], [`Error::InvalidSpec`] where it has no disk.
    pub async fn take(&self, name: &str) -> Result<Taking, Error> {
        self.ask(|reply| Message::Take(name.to_owned(), reply)).await
    }

    /// Has the processors of a machine stand still until what [`Self::take`] gave is dropped. Returns when they do, or
    /// it has ended.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`] where its keeper cannot.
    pub async fn hold(&self, name: &str) -> Result<(), Error> {
        self.ask(|reply| Message::Hold(name.to_owned(), reply)).await
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

    /// How to reach a machine that runs, or that sleeps: with `wake` it is woken, and waited for. One that is just being
    /// started is waited for as well.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::WrongState`], [`Error::Wake`], without `wake` [`Error::Asleep`].
    pub async fn awake(&self, name: &str, wake: bool) -> Result<Guest, Error> {
        let woken = self.ask(|reply| Message::Need(name.to_owned(), wake, reply));
        tokio::time::timeout(WAKE_TIME, woken).await.unwrap_or_else(|_| {
            Err(Error::Wake { name: name.to_owned(), reason: format!("it was not awake within {WAKE_TIME:?}") })
        })
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
    fn new(spec: Spec, asleep: Option<How>) -> Self {
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
            group: None,
            confinement,
            started: Instant::now(),
            ready: Instant::now(),
            failures: 0,
            sleep: Sleep::new(asleep),
            expired: false,
        }
    }

    fn show(&self, name: &str) -> Shown {
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
            Message::Create(name, spec, disk, reply) => drop(reply.send(self.create(name, *spec, disk))),
            Message::Take(name, reply) => drop(reply.send(self.take(name))),
            Message::Hold(name, reply) => self.hold(&name, reply),
            Message::Taken(name) => self.taken(&name),
            Message::Start(name, reply) => {
                let free = self.not_taking("start", &name);
                let started = free.and_then(|()| self.input("start", &name, Input::Start, self.start_time));
                self.goes_on_by_user(&name);
                drop(reply.send(started));
            }
            Message::Stop(name, grace, reply) => {
                let done = self.end_sleep(&name);
                let stopped = if done { Ok(()) } else { self.input("stop", &name, Input::Stop, grace) };
                drop(reply.send(stopped));
            }
            Message::Pause(name, paused, reply) => {
                if !paused && self.machines.get(&name).is_some_and(|m| m.sleep.asleep == Some(How::Pause)) {
                    let woken = self.rouse(&name, true).map(|_| ());
                    self.goes_on_by_user(&name);
                    return drop(reply.send(woken));
                }
                if paused {
                    self.end_sleep(&name);
                }
                let (operation, input) = if paused { ("pause", Input::Pause) } else { ("resume", Input::Resume) };
                drop(reply.send(self.input(operation, &name, input, Duration::ZERO)));
            }
            Message::Inspect(name, reply) => drop(reply.send(self.get(&name).map(|machine| Inspected {
                shown: machine.show(&name),
                pids: machine.pids.clone(),
                group: machine.group.clone(),
                confinement: machine.confinement.clone(),
                up: machine.guest.as_ref().map(|_| machine.ready.elapsed()),
            }))),
            Message::Remove(name, reply) => drop(reply.send(self.remove(&name))),
            Message::List(reply) => {
                drop(reply.send(self.machines.iter().map(|(name, machine)| machine.show(name)).collect()));
            }
            Message::Guest(name, reply) => drop(reply.send(self.guest(&name))),
            Message::Need(name, wake, reply) => match self.get(&name) {
                Ok(_) => self.need(&name, wake, Some(reply)),
                Err(error) => drop(reply.send(Err(error))),
            },
            Message::Idle(name, timer) => self.idle_due(&name, timer),
            Message::Looked(name, timer, seen) => self.looked(&name, timer, seen),
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
                if self.ending.is_some() || !self.machines.get(&name).is_some_and(waits) {
                    return;
                }
                if self.not_taking("start", &name).is_err() {
                    self.again_after(&name, life, PAUSE);
                } else {
                    let _ = self.input("start", &name, Input::Start, self.start_time);
                }
            }
            Message::Due(name, expires) => self.due(&name, expires),
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
            let Some(orders) = self.launcher.adopt(name, &machine.spec, console.clone(), report) else {
                // One that stood still is gone; one that was stopped sleeps on.
                if machine.sleep.asleep == Some(How::Pause) {
                    self.end_sleep(name);
                }
                continue;
            };
            (machine.life, machine.orders, machine.console) = (life, Some(orders), console);
            if let Err(error) = self.input("take over", name, Input::Adopt, self.start_time) {
                tracing::error!("{error}");
            }
        }
        for name in &names {
            self.expect_end(name);
        }
        self.launcher.end_strangers(&names);
    }

    fn get(&mut self, name: &str) -> Result<&mut Machine, Error> {
        self.machines.get_mut(name).ok_or_else(|| Error::NoSuchMachine(name.to_owned()))
    }

    /// Refuses what may not be done while a snapshot is taken.
    fn not_taking(&mut self, operation: &'static str, name: &str) -> Result<(), Error> {
        let taking = self.get(name)?.taking;
        let state = || "being copied for a snapshot; wait until that is done".to_owned();
        if taking { Err(Error::WrongState { operation, name: name.to_owned(), state: state() }) } else { Ok(()) }
    }

    fn take(&mut self, name: String) -> Result<Taking, Error> {
        const OPERATION: &str = "take a snapshot of";
        self.not_taking(OPERATION, &name)?;
        let (sender, disk) = (self.sender.clone(), self.store.folder(&name).join(disk::FILE));
        let machine = self.get(&name)?;
        let state = machine.state;
        if !matches!(state, State::Stopped | State::Failed | State::Running | State::Paused) {
            let state = format!("{}; wait until it has", state.as_str());
            return Err(Error::WrongState { operation: OPERATION, name, state });
        }
        if machine.spec.disk_mib == 0 || !disk.exists() {
            let problem =
                "it has no disk, or was never started: there is nothing that a snapshot would keep".to_owned();
            return Err(Error::InvalidSpec { name, problem });
        }
        machine.taking = true;
        let (spec, guest, powered_off) = (machine.spec.clone(), machine.guest.clone(), machine.powered_off);
        Ok(Taking { spec, disk, state, powered_off, guest, name, sender })
    }

    fn hold(&mut self, name: &str, reply: Reply<()>) {
        match self.get(name) {
            Ok(machine) if machine.state.has_monitor() => {
                machine.holding = Some(reply);
                machine.order(Order::Hold(true));
            }
            other => drop(reply.send(other.map(drop))),
        }
    }

    /// It has been taken, or not: what had to wait for it is done now.
    fn taken(&mut self, name: &str) {
        let Some(machine) = self.machines.get_mut(name) else { return };
        (machine.taking, machine.holding) = (false, None);
        machine.order(Order::Hold(false));
        if machine.expired && !machine.state.has_monitor() {
            return self.remove_expired(name);
        }
        self.wake_after_taking(name);
    }

    fn create(&mut self, name: String, spec: Spec, disk: Option<PathBuf>) -> Result<(), Error> {
        if self.machines.contains_key(&name) {
            return Err(Error::NameTaken(name));
        }
        if self.machines.len() >= MACHINES_MAX {
            return Err(Error::LimitReached { name, limit: MACHINES_MAX });
        }
        self.store.save(&name, &spec)?;
        if let Some(from) = disk {
            let to = self.store.folder(&name).join(disk::FILE);
            if let Err(error) = std::fs::rename(&from, &to) {
                let _ = self.store.remove(&name);
                return Err(Error::io("put in its place", to.display())(error));
            }
        }
        let machine = Machine::new(spec, None);
        let _ = self.changes.send(Change::State(machine.show(&name)));
        self.machines.insert(name.clone(), machine);
        self.expect_end(&name);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.not_taking("remove", name)?;
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
                machine.powered_off = false;
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
            Report::Started(hello, group) => {
                machine.group = group;
                machine.pids = hello.pids;
                machine.confinement = hello.confinement;
                machine.sleep.stands_still = hello.paused;
                return;
            }
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
        let life = machine.life;
        self.again_after(name, life, pause);
    }

    fn again_after(&self, name: &str, life: u64, pause: Duration) {
        let (name, sender) = (name.to_owned(), self.sender.clone());
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
