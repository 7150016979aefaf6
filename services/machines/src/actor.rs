//! The one owner of all machines. Everything that happens to them comes through its queue, in order.

mod egress;
mod expiry;
mod handle;
mod life;
mod machine;
mod memory;
mod publish;
mod sleep;
mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use shipote_confinement::Mechanism;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::console::Console;
use crate::disk;
use crate::groups::Group;
use crate::guest::Guest;
use crate::idle::{How, Seen};
use crate::launch::{Order, Report};
use crate::spec::Spec;
use crate::state::{Input, State};
use crate::store::Store;

pub use egress::GoesOut;
pub use handle::Handle;
use life::{PAUSE, reporter};
use machine::Machine;
pub use machine::Shown;
pub use sleep::Slept;
pub use snapshot::Taking;

/// Machines that may exist.
pub const MACHINES_MAX: usize = 256;
/// How long a machine may take to answer where nothing else is said. Generous: its processor may be emulated, and shared.
pub const START_TIME: Duration = Duration::from_secs(120);
/// How long somebody waits for a machine that sleeps: it may have to end before it can start.
const WAKE_TIME: Duration = Duration::from_secs(180);

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

/// What is told of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It came into another state.
    State(Shown),
    /// It does otherwise than before.
    Health(Shown),
    /// It goes out, has another list, or goes out no more; the id of its way.
    Egress(String),
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
    /// Entries are added to its list of what it may reach, and taken away.
    ChangeEgress(String, Vec<String>, Vec<String>, Reply<Vec<String>>),
    /// It publishes more, and less.
    ChangePublished(String, Vec<String>, Vec<String>, Reply<Vec<String>>),
    /// Its guest is to make do with so many bytes of its memory; 0: it may have all.
    SetMemory(String, u64, Reply<u64>),
    /// Those that go out.
    Ways(oneshot::Sender<Vec<GoesOut>>),
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
    /// Memory that its guest has, bytes; 0 where it doesn't run.
    pub guest_memory: u64,
    /// What limits them, where anything does.
    pub group: Option<Group>,
    /// How they are confined.
    pub confinement: Vec<Mechanism>,
    /// For how long it has been running; none where it doesn't.
    pub up: Option<Duration>,
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
                guest_memory: machine.memory.as_ref().map_or(0, |bytes| bytes.load(Ordering::Relaxed)),
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
            Message::ChangeEgress(name, allow, deny, reply) => {
                drop(reply.send(self.change_egress(&name, allow, &deny)));
            }
            Message::ChangePublished(name, add, remove, reply) => {
                drop(reply.send(self.change_published(&name, add, &remove)));
            }
            Message::SetMemory(name, bytes, reply) => drop(reply.send(self.set_memory(&name, bytes))),
            Message::Ways(reply) => drop(reply.send(self.ways())),
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
                    self.tell_after(PAUSE, Message::Again(name, life));
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
}
