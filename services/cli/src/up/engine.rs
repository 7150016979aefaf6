//! The supervisor's effects: processes, signals, timers, notices and the bus, each turned into an event for the state
//! machine, and the machine's actions carried out.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use rustix::process::Signal;
use shipote_bus::words::counted;
use shipote_bus::{Service, appliance::ServiceStatus, paths};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use zbus::Connection;

use super::{
    appliance::{self, Published},
    bus,
    folders::Folders,
    log::Log,
    notify::Receiver,
    orphans,
    process::{self, Lifeline, Process},
    ready::Ready,
    store::{self, Store},
    supervisor::{Action, Cause, Event, Limits, Supervisor, Unit},
    terminal::Terminal,
};

/// What comes to the engine from its tasks.
enum Input {
    Exited { unit: Unit, pid: u32, how: String },
    BusListens,
    Connected(Connection),
    NotConnected(zbus::Error),
}

/// What is known of a unit beyond the machine's state.
#[derive(Default)]
struct Known {
    process: Option<Process>,
    /// What it last said, or how it ended.
    status: String,
    state: &'static str,
    since: u64,
    /// Descriptors that it has us keep.
    store: Store,
}

/// How long processes that a stopped service left behind may take to end by themselves.
const ORPHANS_GRACE: Duration = Duration::from_secs(4);

pub(super) struct Engine {
    folders: Folders,
    bus: PathBuf,
    binaries: HashMap<Service, PathBuf>,
    ready: Ready,
    log: Log,
    lifeline: Lifeline,
    machine: Supervisor,
    watchdog: Duration,
    began: Instant,
    known: HashMap<Unit, Known>,
    published: Published,
    connection: Option<Connection>,
    /// All units are ready, and nobody was told yet.
    announce_due: bool,
    inputs: mpsc::Sender<Input>,
    wishes: mpsc::Sender<Event>,
    /// The unit that kept the appliance from ever becoming ready.
    given_up: Option<Unit>,
    finished: bool,
}

impl Engine {
    /// Runs until everything has ended. Gives back the unit that failed for good, with its last words.
    pub(super) async fn run(
        folders: Folders,
        bus: PathBuf,
        binaries: Vec<(Service, PathBuf)>,
        ready: Ready,
        log: Log,
        limits: Limits,
    ) -> Result<Option<(Unit, String)>> {
        let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        let mut hang_up = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
        let mut child = signal(SignalKind::child()).context("wait for SIGCHLD")?;
        let terminal = Terminal::of_stdin();
        let notices = Receiver::bind(&folders.runtime.join("notify")).context("listen for the services' notices")?;
        orphans::adopt().context("adopt orphans")?;
        let (inputs, mut input) = mpsc::channel(64);
        let (wishes, mut wish) = mpsc::channel(16);
        let services: Vec<Service> = binaries.iter().map(|(s, _)| *s).collect();
        let mut engine = Self {
            folders,
            bus,
            binaries: binaries.into_iter().collect(),
            ready,
            log,
            lifeline: Lifeline::new().context("make the lifeline")?,
            watchdog: limits.watchdog,
            machine: Supervisor::new(&services, limits),
            began: Instant::now(),
            known: HashMap::new(),
            published: Published::default(),
            connection: None,
            announce_due: false,
            inputs,
            wishes,
            given_up: None,
            finished: false,
        };
        engine.feed(Event::Start);
        while !engine.finished {
            let deadline = engine.machine.deadline();
            let tick = async {
                match deadline {
                    Some(moment) => sleep_until(engine.began + moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Exits first: what a process said before it died must not count for its successor.
                biased;
                Some(input) = input.recv() => {
                    if matches!(input, Input::Exited { .. }) {
                        // What it had us keep in its last moment must not be lost.
                        for (pid, notice) in notices.arrived() {
                            engine.notice(pid, notice);
                        }
                    }
                    engine.input(input);
                }
                _ = terminate.recv() => engine.feed_stop("SIGTERM"),
                _ = interrupt.recv() => engine.feed_stop("SIGINT"),
                _ = hang_up.recv() => {
                    if terminal.is_gone() {
                        engine.feed_stop("the terminal is gone");
                    } else {
                        engine.log.say("SIGHUP: the services read their configuration anew");
                        engine.feed(Event::Reload);
                    }
                }
                _ = child.recv() => orphans::reap(&engine.pids()),
                notice = notices.receive() => match notice {
                    Ok((pid, notice)) => engine.notice(pid, notice),
                    Err(error) => engine.log.say(format!("receive notices: {error}")),
                },
                Some(wish) = wish.recv() => match wish {
                    Event::Stop => engine.feed_stop("Stop on the bus"),
                    wish => engine.feed(wish),
                },
                () = tick => engine.feed(Event::Tick),
            }
        }
        // What the services kept with us is closed by now, and what lived by it ends in order.
        orphans::wait(ORPHANS_GRACE).await;
        let left = orphans::kill();
        if left > 0 {
            engine.log.say(format!("killed {} that the services left behind", counted(left, "process")));
        }
        engine.folders.clear();
        Ok(engine.given_up.map(|unit| (unit, engine.known(unit).status.clone())))
    }

    fn pids(&self) -> Vec<u32> {
        self.known.values().filter_map(|k| k.process.as_ref()).map(|p| p.pid).collect()
    }

    fn known(&mut self, unit: Unit) -> &mut Known {
        self.known.entry(unit).or_default()
    }

    fn feed_stop(&mut self, why: &str) {
        self.log.say(format!("{why}: stopping"));
        self.ready.stopping();
        self.feed(Event::Stop);
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Exited { unit, pid, how } => {
                self.log.say(format!("{unit} (process {pid}) ended: {how}"));
                let known = self.known(unit);
                known.process = None;
                known.status = how;
                if unit == Unit::Bus {
                    self.connection = None;
                }
                self.feed(Event::Exited(unit));
                if self.machine.state(unit) == "stopped" {
                    self.known(unit).store = Store::default();
                }
            }
            Input::BusListens => {
                self.feed(Event::Ready(Unit::Bus));
                let inputs = self.inputs.clone();
                let serving = appliance::serve(self.ready.address.clone(), self.published.clone(), self.wishes.clone());
                tokio::spawn(async move {
                    let outcome = serving.await.map_or_else(Input::NotConnected, Input::Connected);
                    let _ = inputs.send(outcome).await;
                });
            }
            Input::Connected(connection) => {
                self.connection = Some(connection);
                self.announce();
            }
            Input::NotConnected(error) => self.log.say(format!("serve org.shipote.Appliance1: {error}")),
        }
    }

    fn notice(&mut self, pid: u32, notice: super::notify::Notice) {
        let sender = self.known.iter().find(|(_, k)| k.process.as_ref().is_some_and(|p| p.pid == pid));
        let Some(unit) = sender.map(|(unit, _)| *unit) else {
            self.log.say(format!("a notice from process {pid}, which is no service, is ignored"));
            return;
        };
        let super::notify::Notice { said, descriptors } = notice;
        self.known(unit).store.take(&said, descriptors);
        if said.watchdog {
            self.feed(Event::Ping(unit));
        }
        if let Some(status) = said.status {
            self.known(unit).status = status;
            self.publish();
        }
        if said.ready && unit != Unit::Bus {
            self.feed(Event::Ready(unit));
        }
    }

    fn feed(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.handle(self.began.elapsed(), event) {
                if let Some(failed) = self.act(action) {
                    events.push(failed);
                }
            }
        }
        self.publish();
    }

    /// Carries out an action; an event comes of it if that failed.
    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn(unit) => {
                if let Err(error) = self.spawn(unit) {
                    self.log.say(format!("{error:#}"));
                    self.known(unit).status = format!("{error:#}");
                    return Some(Event::Exited(unit));
                }
            }
            Action::Terminate(unit) => self.signal(unit, Signal::TERM),
            Action::HangUp(unit) => self.signal(unit, Signal::HUP),
            Action::Kill(unit, cause) => {
                let why = match cause {
                    Cause::SlowStart => "was not ready in time",
                    Cause::Watchdog => "did not answer the watchdog in time",
                    Cause::Grace => "did not end in time",
                };
                self.log.say(format!("{unit} {why}: killed"));
                self.signal(unit, Signal::KILL);
            }
            Action::AnnounceReady => {
                self.announce_due = true;
                self.announce();
            }
            Action::GiveUp(unit) => self.given_up = Some(unit),
            Action::Finish => self.finished = true,
        }
        None
    }

    /// Whoever reads `ready` may ask the supervisor at once: so it must be on the bus by then, like the services.
    fn announce(&mut self) {
        if self.announce_due && self.connection.is_some() {
            self.announce_due = false;
            if let Err(error) = self.ready.announce(&self.folders) {
                self.log.say(format!("{error:#}"));
            }
        }
    }

    fn signal(&mut self, unit: Unit, signal: Signal) {
        if let Some(process) = &self.known(unit).process {
            process.signal(signal);
        }
    }

    fn spawn(&mut self, unit: Unit) -> Result<()> {
        let mut command = match unit {
            Unit::Bus => bus::command(&self.bus, &self.folders.runtime, &self.ready.address, &self.lifeline)?,
            Unit::Service(service) => {
                let program = self.binaries.get(&service).context("find a service's binary")?;
                let stored = self.known.get(&unit).map(|known| &known.store);
                let names = stored.map(Store::names).unwrap_or_default();
                let numbers = stored.map(Store::numbers).unwrap_or_default();
                let listed = numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
                let mut command = process::command(program, &self.lifeline, numbers);
                command
                    .env("FDSTORE", store::CAPACITY.to_string())
                    .env(paths::STORE_NAMES_ENV, names)
                    .env(paths::STORE_NUMBERS_ENV, listed)
                    .env(paths::BUS_ADDRESS_ENV, &self.ready.address)
                    .env("STATE_DIRECTORY", self.folders.state.join(service.name()))
                    .env("RUNTIME_DIRECTORY", self.folders.runtime.join(service.name()))
                    .env("CONFIGURATION_DIRECTORY", &self.folders.config)
                    .env(paths::POLICY_DIR_ENV, &self.folders.policy)
                    .env(paths::LIFELINE_ENV, self.lifeline.number())
                    .env("NOTIFY_SOCKET", self.folders.runtime.join("notify"))
                    .env("WATCHDOG_USEC", self.watchdog.as_micros().to_string());
                command
            }
        };
        let (output, input) = std::io::pipe().context("make a pipe for a service's output")?;
        // The bus prints its address on stdout; all else is for the log.
        let stdout = if unit == Unit::Bus { Stdio::piped() } else { input.try_clone()?.into() };
        command.stdout(stdout).stderr(input);
        let (process, mut child) = process::start(&mut command)
            .with_context(|| format!("start {unit} ({})", command.as_std().get_program().display()))?;
        drop(command);
        let output = tokio::net::unix::pipe::Receiver::from_owned_fd(output.into())?;
        tokio::spawn(self.log.clone().pass_on(unit.name(), BufReader::new(output)));
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(listens(stdout, self.inputs.clone()));
        }
        tokio::spawn(wait(unit, process.pid, child, self.inputs.clone()));
        let known = self.known(unit);
        known.process = Some(process);
        known.status.clear();
        Ok(())
    }

    /// Makes the units' states known, with the time of their last change.
    fn publish(&mut self) {
        let units: Vec<Unit> = self.machine.units().collect();
        let mut services = Vec::new();
        for unit in units {
            let state = self.machine.state(unit);
            let restarts = self.machine.restarts(unit);
            let known = self.known(unit);
            if known.state != state {
                known.state = state;
                known.since = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX));
            }
            if let Unit::Service(service) = unit {
                services.push(ServiceStatus {
                    name: service.name().to_owned(),
                    pid: known.process.as_ref().map_or(0, |p| p.pid),
                    state: state.to_owned(),
                    since: known.since,
                    restarts,
                    status: known.status.clone(),
                });
            }
        }
        services.sort_by(|a, b| a.name.cmp(&b.name));
        let mut published = self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *published != services {
            *published = services;
            drop(published);
            if let Some(connection) = self.connection.clone() {
                tokio::spawn(appliance::changed(connection));
            }
        }
    }
}

async fn wait(unit: Unit, pid: u32, mut child: Child, inputs: mpsc::Sender<Input>) {
    let how = match child.wait().await {
        Ok(status) => status.to_string(),
        Err(error) => format!("wait for it: {error}"),
    };
    let _ = inputs.send(Input::Exited { unit, pid, how }).await;
}

/// The first line on the bus's stdout is its address: it listens.
async fn listens(stdout: tokio::process::ChildStdout, inputs: mpsc::Sender<Input>) {
    let mut lines = BufReader::new(stdout).lines();
    if let Ok(Some(_)) = lines.next_line().await {
        let _ = inputs.send(Input::BusListens).await;
    }
}
