//! What a keeper does all day: pass on the console and orders, and see that neither side outlives its purpose.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::machine::Machine;
use super::process::Process;
use super::wait;
use super::wire::{Event, Hello, Launch, Link, Order, VERSION};
use crate::console::Position;

/// Connections that have not shown yet that they are a service's; the oldest makes room for one more.
const STRANGERS: usize = 4;
/// How long a service may take to close the connection on which it was told of the end.
const FAREWELL: Duration = Duration::from_secs(10);

pub(super) struct Watch<'a> {
    launch: &'a Launch,
    machine: Machine,
    link: Option<Link>,
    listener: UnixListener,
    /// Who has connected and said nothing yet.
    strangers: VecDeque<Link>,
    lifeline: Option<OwnedFd>,
    /// How much of the console the present service has been sent.
    shown: Position,
    ready: bool,
    paused: bool,
    /// What the present service was told that the guest has of its memory.
    told: Option<u64>,
    /// As long as the present service wants it.
    held: bool,
    /// How the machine ended, and until when somebody may ask.
    ended: Option<(bool, String)>,
    /// When nobody will come any more.
    deadline: Option<Instant>,
}

/// Who is ready, in the order in which they are waited for.
struct Awake {
    listener: bool,
    link: bool,
    process: bool,
    output: bool,
    qmp: bool,
    lifeline: bool,
    strangers: bool,
    connects: bool,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        launch: &'a Launch,
        machine: Machine,
        link: Link,
        listener: UnixListener,
        lifeline: Option<OwnedFd>,
    ) -> Self {
        let mut watch = Self {
            launch,
            machine,
            link: None,
            listener,
            strangers: VecDeque::new(),
            lifeline,
            shown: Position::default(),
            ready: false,
            paused: false,
            told: None,
            held: false,
            ended: None,
            deadline: None,
        };
        watch.greet(link);
        watch
    }

    /// Returns when the machine has ended and somebody knows, or nobody will ask.
    pub(super) fn run(mut self) {
        loop {
            self.pass_on();
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                if self.ended.is_none() {
                    self.end(Some("its service did not come back in time"));
                }
                return;
            }
            let awake = match self.sleep(self.deadline.map(|deadline| deadline - now)) {
                Ok(awake) => awake,
                Err(error) => {
                    eprintln!("shipote-machines: keeper of {}: wait: {error}", self.launch.name);
                    return;
                }
            };
            if awake.lifeline {
                self.end(Some("the appliance it belongs to is gone"));
                return;
            }
            if awake.output {
                self.machine.listen();
            }
            if awake.qmp {
                self.machine.monitor();
            }
            if awake.connects {
                self.machine.connect();
            }
            if awake.process && self.ended.is_none() {
                self.end(None);
            }
            if awake.link && !self.heed() {
                if self.ended.is_some() {
                    return;
                }
                self.lose_service();
            }
            if awake.listener
                && let Ok((stream, _)) = self.listener.accept()
                && let Ok(link) = Link::new(stream)
            {
                self.strangers.truncate(STRANGERS - 1);
                self.strangers.push_front(link);
            }
            if awake.strangers {
                self.admit();
            }
        }
    }

    /// Hears those who have said nothing yet: one that knows the token is the service now, one that says anything else
    /// goes.
    fn admit(&mut self) {
        for mut stranger in std::mem::take(&mut self.strangers) {
            match stranger.hear() {
                Ok(Some(Order::Adopt { token })) if token == self.launch.token => self.greet(stranger),
                Ok(None) => self.strangers.push_back(stranger),
                Ok(Some(_)) | Err(_) => {}
            }
        }
    }

    /// A service, the first or a later one: the newest is the one that counts.
    fn greet(&mut self, mut link: Link) {
        self.told = self.machine.memory;
        link.say(&Event::Hello(Hello {
            version: VERSION,
            secret: self.launch.secret.clone(),
            ready: self.ready,
            paused: self.paused,
            holds: true,
            balloons: true,
            memory: self.told,
            pids: self.machine.processes().map(Process::pid).collect(),
            confinement: self.machine.confinement.clone(),
        }));
        self.shown = Position::default();
        self.link = Some(link);
        self.hold(false);
        self.deadline = None;
        self.announce();
    }

    /// Says that it ended, after the rest of the console.
    fn announce(&mut self) {
        if let (Some((clean, reason)), Some(link)) = (&self.ended, &mut self.link) {
            while let Some(data) = self.machine.console.after(&mut self.shown) {
                link.say(&Event::Console { data });
            }
            link.say(&Event::Ended { clean: *clean, reason: reason.clone() });
            self.deadline = Some(Instant::now() + FAREWELL);
        }
    }

    fn end(&mut self, killed: Option<&str>) {
        self.ended = Some(self.machine.end(self.ready, killed));
        self.announce();
    }

    /// Sends what waits, and more of the console once all of that was taken.
    fn pass_on(&mut self) {
        let Some(link) = &mut self.link else { return };
        // Of what changes often only the newest, once what was said before has been taken.
        if link.is_flushed() && self.ended.is_none() {
            if self.told != self.machine.memory {
                self.told = self.machine.memory;
                link.say(&Event::Memory { bytes: self.told });
            }
            if let Some(data) = self.machine.console.after(&mut self.shown) {
                link.say(&Event::Console { data });
            }
        }
        if link.flush().is_err() {
            self.lose_service();
        }
    }

    /// The service has gone: its lease begins, and what it held goes on.
    fn lose_service(&mut self) {
        self.link = None;
        self.deadline = Some(Instant::now() + Duration::from_millis(self.launch.lease_ms));
        self.hold(false);
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        self.machine.pause(self.paused || held);
    }

    fn sleep(&self, timeout: Option<Duration>) -> std::io::Result<Awake> {
        let mut list: Vec<(BorrowedFd<'_>, PollFlags)> = vec![(self.listener.as_fd(), PollFlags::IN)];
        let more = self.link.as_ref().is_some_and(|link| {
            !link.is_flushed() || (self.ended.is_none() && self.machine.console.has_after(&self.shown))
        });
        let link = self.link.as_ref().map(|link| {
            list.push((link.as_fd(), if more { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }));
            list.len() - 1
        });
        let processes = list.len();
        if self.ended.is_none() {
            list.extend(self.machine.processes().map(|process| (process.as_fd(), PollFlags::IN)));
        }
        let outputs = list.len();
        for stream in self.machine.processes().flat_map(|process| &process.streams) {
            list.push((stream.as_fd(), PollFlags::IN));
        }
        let after_outputs = list.len();
        let qmp = self.machine.qmp.as_ref().map(|qmp| {
            list.push((qmp.as_fd(), PollFlags::IN));
            list.len() - 1
        });
        let lifeline = self.lifeline.as_ref().map(|lifeline| {
            list.push((lifeline.as_fd(), PollFlags::IN));
            list.len() - 1
        });
        let connects = self.machine.device.asks.as_ref().map(|asks| {
            list.push((asks.as_fd(), PollFlags::IN));
            list.len() - 1
        });
        let strangers = list.len();
        list.extend(self.strangers.iter().map(|stranger| (stranger.as_fd(), PollFlags::IN)));
        let ready = wait(&list, timeout)?;
        let is = |at: Option<usize>| at.is_some_and(|at| ready[at]);
        Ok(Awake {
            listener: ready[0],
            link: is(link),
            process: ready[processes..outputs].contains(&true),
            output: ready[outputs..after_outputs].contains(&true),
            qmp: is(qmp),
            lifeline: is(lifeline),
            connects: is(connects),
            strangers: ready[strangers..].contains(&true),
        })
    }

    /// Does what the service orders; `false` when it has gone.
    fn heed(&mut self) -> bool {
        loop {
            let Some(link) = &mut self.link else { return false };
            match link.hear() {
                Ok(Some(Order::Ready)) => {
                    self.ready = true;
                    self.machine.unpacked();
                }
                Ok(Some(Order::Kill)) if self.ended.is_none() => self.end(Some("it was killed")),
                Ok(Some(Order::Pause { paused })) => {
                    self.paused = paused;
                    self.machine.pause(paused || self.held);
                    link.say(&Event::Paused { paused });
                }
                Ok(Some(Order::Memory { mib })) => {
                    if let Err(error) = self.machine.make_do_with(mib) {
                        eprintln!("shipote-machines: keeper of {}: give it {mib} MiB: {error}", self.launch.name);
                    }
                }
                Ok(Some(Order::Hold { held })) => {
                    link.say(&Event::Held { held });
                    self.hold(held);
                }
                Ok(Some(Order::Launch(_) | Order::Adopt { .. } | Order::Kill)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
