//! How everybody else reaches the actor: each call is one message, and waits for its answer.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{
    Actor, Change, GoesOut, Inspected, Launcher, Machine, Message, Reply, START_TIME, Shown, Taking, WAKE_TIME,
};
use crate::Error;
use crate::guest::Guest;
use crate::spec::Spec;
use crate::store::Store;

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

    /// Adds entries to the list of what a machine may reach, and takes others away; the list as it is now.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::InvalidSpec`], [`Error::WrongState`] where it runs without a way out.
    pub async fn change_egress(&self, name: &str, allow: Vec<String>, deny: Vec<String>) -> Result<Vec<String>, Error> {
        self.ask(|reply| Message::ChangeEgress(name.to_owned(), allow, deny, reply)).await
    }

    /// Has a machine publish more, and less; what it publishes now.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::InvalidSpec`], [`Error::WrongState`] for a port of the host while it runs.
    pub async fn change_published(
        &self,
        name: &str,
        add: Vec<String>,
        remove: Vec<String>,
    ) -> Result<Vec<String>, Error> {
        self.ask(|reply| Message::ChangePublished(name.to_owned(), add, remove, reply)).await
    }

    /// Has a machine's guest make do with so many bytes of its memory, in this life and the next ones; 0: it may have all.
    /// What it is to have now; what it has, [`Self::inspect`] tells.
    ///
    /// # Errors
    /// [`Error::NoSuchMachine`], [`Error::InvalidSpec`] for more than it has or less than it needs, [`Error::WrongState`]
    /// where its keeper cannot.
    pub async fn set_memory(&self, name: &str, bytes: u64) -> Result<u64, Error> {
        self.ask(|reply| Message::SetMemory(name.to_owned(), bytes, reply)).await
    }

    /// The machines that go out, by name.
    ///
    /// # Errors
    /// [`Error::Stopping`].
    pub async fn ways(&self) -> Result<Vec<GoesOut>, Error> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Message::Ways(reply)).map_err(|_| Error::Stopping)?;
        answer.await.map_err(|_| Error::Stopping)
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
