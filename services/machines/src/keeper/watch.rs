//! What a keeper does all day: pass on the console and orders, and see that neither side outlives its purpose.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::machine::Machine;
use super::wait;
use super::wire::{Event, Hello, Launch, Link, Order, VERSION};
use crate::console::Position;

/// How long a service may take to close the connection on which it was told of the end.
const FAREWELL: Duration = Duration::from_secs(10);

pub(super) struct Watch<'a> {
    launch: &'a Launch,
    machine: Machine,
    link: Option<Link>,
    listener: UnixListener,
    lifeline: Option<OwnedFd>,
    /// How much of the console the present service has been sent.
    shown: Position,
    ready: bool,
    paused: bool,
    /// How the machine ended, and until when somebody may ask.
    ended: Option<(bool, String)>,
    /// When nobody will come any more.
    deadline: Option<Instant>,
}

/// Who is ready, in the order in which they are waited for.
struct Awake {
    listener: bool,
    link: bool,
    qemu: bool,
    device: bool,
    output: bool,
    qmp: bool,
    lifeline: bool,
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
            lifeline,
            shown: Position::default(),
            ready: false,
            paused: false,
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
                self.monitor();
            }
            if (awake.qemu || awake.device) && self.ended.is_none() {
                self.end(None);
            }
            if awake.link && !self.heed() {
                self.link = None;
                if self.ended.is_some() {
                    return;
                }
                self.deadline = Some(Instant::now() + Duration::from_millis(self.launch.lease_ms));
            }
            if awake.listener
                && let Ok((stream, _)) = self.listener.accept()
                && let Ok(link) = Link::new(stream)
            {
                self.greet(link);
            }
        }
    }

    /// A service, the first or a later one: the newest is the one that counts.
    fn greet(&mut self, mut link: Link) {
        link.say(&Event::Hello(Hello {
            version: VERSION,
            secret: self.launch.secret.clone(),
            ready: self.ready,
            paused: self.paused,
            pids: vec![self.machine.qemu.pid(), self.machine.device.pid()],
            confinement: self.machine.confinement.clone(),
        }));
        self.shown = Position::default();
        self.link = Some(link);
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
        if link.is_flushed()
            && self.ended.is_none()
            && let Some(data) = self.machine.console.after(&mut self.shown)
        {
            link.say(&Event::Console { data });
        }
        if link.flush().is_err() {
            self.link = None;
            self.deadline = Some(Instant::now() + Duration::from_millis(self.launch.lease_ms));
        }
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
        let mut processes = None;
        if self.ended.is_none() {
            list.push((self.machine.qemu.as_fd(), PollFlags::IN));
            list.push((self.machine.device.as_fd(), PollFlags::IN));
            processes = Some(list.len() - 2);
        }
        let outputs = list.len();
        for stream in self.machine.qemu.streams.iter().chain(&self.machine.device.streams) {
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
        let ready = wait(&list, timeout)?;
        let is = |at: Option<usize>| at.is_some_and(|at| ready[at]);
        Ok(Awake {
            listener: ready[0],
            link: is(link),
            qemu: is(processes),
            device: is(processes.map(|at| at + 1)),
            output: ready[outputs..after_outputs].contains(&true),
            qmp: is(qmp),
            lifeline: is(lifeline),
        })
    }

    /// What the monitor tells; one that talks nonsense is not listened to any more.
    fn monitor(&mut self) {
        if let Some(qmp) = &mut self.machine.qmp
            && qmp.listen().is_err()
        {
            self.machine.mute();
        }
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
                    self.machine.pause(paused);
                    self.paused = paused;
                    link.say(&Event::Paused { paused });
                }
                Ok(Some(Order::Launch(_) | Order::Kill)) => {}
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
    }
}
