//! The machine against a model of the world: processes that become ready, ping, fall silent, exit, ignore SIGTERM.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits { watchdog: Duration::from_secs(20), grace: GRACE };
const fn unit(service: Service) -> Unit {
    Unit::Service(service)
}
const PROXY: Unit = unit(Service::Proxy);
const PLUGINS: Unit = unit(Service::Plugins);

fn seconds(n: u64) -> Moment {
    Duration::from_secs(n)
}

/// Bus and services running at second 1.
fn running(services: &[Service]) -> Supervisor {
    let mut s = Supervisor::new(services, LIMITS);
    assert_eq!(s.handle(Moment::ZERO, Event::Start), [Action::Spawn(Unit::Bus)]);
    s.handle(seconds(1), Event::Ready(Unit::Bus));
    let units: Vec<Unit> = s.units().filter(|u| *u != Unit::Bus).collect();
    for (n, unit) in units.iter().enumerate() {
        let actions = s.handle(seconds(1), Event::Ready(*unit));
        assert_eq!(actions.contains(&Action::AnnounceReady), n + 1 == units.len());
    }
    s
}

#[test]
fn services_start_once_the_bus_listens() {
    let mut s = Supervisor::new(&[Service::Proxy, Service::Plugins], LIMITS);
    assert_eq!(s.handle(Moment::ZERO, Event::Start), [Action::Spawn(Unit::Bus)]);
    assert_eq!(s.state(PROXY), "starting");
    assert_eq!(s.handle(seconds(1), Event::Ready(Unit::Bus)), [Action::Spawn(PROXY), Action::Spawn(PLUGINS)]);
    assert_eq!(s.handle(seconds(1), Event::Ready(PLUGINS)), []);
    assert_eq!(s.handle(seconds(1), Event::Ready(PROXY)), [Action::AnnounceReady]);
    assert_eq!(s.handle(seconds(1), Event::Ready(PROXY)), [], "a reload says READY=1 again");
}

#[test]
fn pauses_double_and_begin_anew_after_a_healthy_minute() {
    let mut s = running(&[Service::Proxy]);
    let mut now = seconds(2);
    let mut pauses = Vec::new();
    for _ in 0..10 {
        assert_eq!(s.handle(now, Event::Exited(PROXY)), []);
        assert_eq!(s.state(PROXY), "failed");
        let until = s.deadline().unwrap();
        pauses.push((until - now).as_millis());
        now = until;
        assert_eq!(s.handle(now, Event::Tick), [Action::Spawn(PROXY)]);
        s.handle(now, Event::Ready(PROXY));
    }
    assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]);
    now += HEALTHY;
    s.handle(now, Event::Exited(PROXY));
    assert_eq!(s.deadline(), Some(now + BACK_OFF_MIN));
    assert_eq!(s.restarts(PROXY), 11);
}

#[test]
fn a_silent_service_is_killed_and_started_again() {
    let mut s = running(&[Service::Proxy]);
    s.handle(seconds(15), Event::Ping(PROXY));
    assert_eq!(s.handle(seconds(34), Event::Tick), []);
    assert_eq!(s.handle(seconds(35), Event::Tick), [Action::Kill(PROXY, Cause::Watchdog)]);
    assert_eq!(s.handle(seconds(36), Event::Tick), [], "once is enough");
    s.handle(seconds(36), Event::Exited(PROXY));
    assert_eq!(s.handle(seconds(37), Event::Tick), [Action::Spawn(PROXY)]);
}

#[test]
fn one_that_never_becomes_ready_is_killed() {
    let mut s = Supervisor::new(&[Service::Proxy], LIMITS);
    s.handle(Moment::ZERO, Event::Start);
    s.handle(Moment::ZERO, Event::Ready(Unit::Bus));
    assert_eq!(s.handle(START_TIMEOUT, Event::Tick), [Action::Kill(PROXY, Cause::SlowStart)]);
}

#[test]
fn gives_up_only_before_it_was_ever_ready() {
    let mut s = Supervisor::new(&[Service::Proxy], LIMITS);
    s.handle(Moment::ZERO, Event::Start);
    s.handle(Moment::ZERO, Event::Ready(Unit::Bus));
    let mut now = seconds(1);
    for _ in 1..GIVE_UP {
        assert_eq!(s.handle(now, Event::Exited(PROXY)), []);
        now = s.deadline().unwrap();
        assert_eq!(s.handle(now, Event::Tick), [Action::Spawn(PROXY)]);
    }
    assert_eq!(s.handle(now, Event::Exited(PROXY)), [Action::GiveUp(PROXY), Action::Terminate(Unit::Bus)]);
    assert_eq!(s.handle(now, Event::Exited(Unit::Bus)), [Action::Finish]);
}

#[test]
fn all_start_again_with_the_bus() {
    let mut s = running(&[Service::Proxy, Service::Plugins]);
    let actions = s.handle(seconds(5), Event::Exited(Unit::Bus));
    assert_eq!(actions, [Action::Terminate(PROXY), Action::Terminate(PLUGINS)]);
    assert_eq!(s.handle(seconds(5), Event::Exited(PROXY)), [], "not without a bus");
    assert_eq!(s.handle(seconds(6), Event::Tick), [Action::Spawn(Unit::Bus)]);
    assert_eq!(s.handle(seconds(6), Event::Ready(Unit::Bus)), [Action::Spawn(PROXY)]);
    assert_eq!(s.handle(seconds(6), Event::Exited(PLUGINS)), [Action::Spawn(PLUGINS)], "the slow one too");
}

#[test]
fn a_stop_goes_in_order_and_is_patient_only_for_so_long() {
    let mut s = running(&[Service::Plugins, Service::Proxy, Service::Workspaces, Service::Machines]);
    let order = [Service::Proxy, Service::Machines, Service::Workspaces, Service::Plugins].map(unit);
    assert_eq!(s.handle(seconds(2), Event::Stop), [Action::Terminate(order[0])]);
    assert_eq!(s.handle(seconds(2), Event::Stop), [], "once is enough");
    assert_eq!(s.handle(seconds(3), Event::Exited(order[0])), [Action::Terminate(order[1])]);
    assert_eq!(s.handle(seconds(3) + GRACE, Event::Tick), [Action::Kill(order[1], Cause::Grace)]);
    assert_eq!(s.handle(seconds(14), Event::Exited(order[1])), [Action::Terminate(order[2])]);
    assert_eq!(s.handle(seconds(14), Event::Exited(order[3])), [], "out of turn");
    assert_eq!(s.handle(seconds(14), Event::Exited(order[2])), [Action::Terminate(Unit::Bus)]);
    assert_eq!(s.handle(seconds(14), Event::Exited(Unit::Bus)), [Action::Finish]);
}

#[test]
fn a_wanted_restart_does_not_wait() {
    let mut s = running(&[Service::Proxy]);
    assert_eq!(s.handle(seconds(2), Event::Restart(Service::Proxy)), [Action::Terminate(PROXY)]);
    assert_eq!(s.handle(seconds(3), Event::Exited(PROXY)), [Action::Spawn(PROXY)]);
    s.handle(seconds(3), Event::Exited(PROXY));
    assert_eq!(s.handle(seconds(3), Event::Restart(Service::Proxy)), [Action::Spawn(PROXY)], "cuts a pause short");
    assert_eq!(s.handle(seconds(3), Event::Restart(Service::Machines)), [], "not part of this appliance");
}

#[test]
fn a_reload_reaches_running_services() {
    let mut s = running(&[Service::Proxy, Service::Plugins]);
    s.handle(seconds(2), Event::Exited(PROXY));
    assert_eq!(s.handle(seconds(2), Event::Reload), [Action::HangUp(PLUGINS)]);
}

/// One step of the world.
#[derive(Clone, Debug)]
enum Step {
    /// The n-th living process becomes ready, pings or exits.
    Ready(usize),
    Ping(usize),
    Exit(usize),
    /// Time passes, then a tick.
    Pass(u64),
    Restart(usize),
    Reload,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<usize>().prop_map(Step::Ready),
        3 => any::<usize>().prop_map(Step::Ping),
        3 => any::<usize>().prop_map(Step::Exit),
        6 => (0_u64..40_000).prop_map(Step::Pass),
        1 => any::<usize>().prop_map(Step::Restart),
        1 => Just(Step::Reload),
        1 => Just(Step::Stop),
    ]
}

/// The processes there are, and what the machine has been told and has asked for.
struct World {
    machine: Supervisor,
    now: Moment,
    alive: BTreeSet<Unit>,
    told_to_end: BTreeSet<Unit>,
    bus_ready: bool,
    stopping: bool,
    finished: bool,
}

impl World {
    fn feed(&mut self, event: Event) {
        self.stopping |= event == Event::Stop;
        if let Event::Exited(unit) = event {
            self.alive.remove(&unit);
            self.told_to_end.remove(&unit);
        }
        self.bus_ready |= event == Event::Ready(Unit::Bus);
        self.bus_ready &= self.alive.contains(&Unit::Bus);
        for action in self.machine.handle(self.now, event) {
            assert!(!self.finished, "{action:?} after the end");
            match action {
                Action::Spawn(unit) => {
                    assert!(!self.stopping, "{unit} started while stopping");
                    assert!(unit == Unit::Bus || self.bus_ready, "{unit} started without a bus");
                    assert!(self.alive.insert(unit), "{unit} started twice");
                }
                Action::Terminate(unit) => {
                    assert!(self.alive.contains(&unit));
                    assert!(self.told_to_end.insert(unit), "{unit} told to end twice");
                    if self.stopping {
                        let before = self.alive.iter().filter(|u| u.stop_rank() < unit.stop_rank()).count();
                        assert_eq!(before, 0, "{unit} before its turn");
                    }
                }
                Action::Kill(unit, cause) => {
                    assert!(self.alive.contains(&unit));
                    assert!(cause != Cause::Grace || self.told_to_end.contains(&unit));
                }
                Action::HangUp(unit) => assert!(self.alive.contains(&unit)),
                Action::AnnounceReady => assert_eq!(self.alive.len(), self.machine.records.len()),
                Action::GiveUp(_) => self.stopping = true,
                Action::Finish => {
                    assert!(self.alive.is_empty());
                    self.finished = true;
                }
            }
        }
        for r in &self.machine.records {
            let process = matches!(r.state, State::Starting { .. } | State::Running { .. } | State::Stopping { .. });
            assert_eq!(process, self.alive.contains(&r.unit), "{r:?}");
        }
    }

    fn living(&self, n: usize) -> Option<Unit> {
        self.alive.iter().nth(n % self.alive.len().max(1)).copied()
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ready(n) => self.living(n).into_iter().for_each(|u| self.feed(Event::Ready(u))),
            Step::Ping(n) => self.living(n).into_iter().for_each(|u| self.feed(Event::Ping(u))),
            Step::Exit(n) => self.living(n).into_iter().for_each(|u| self.feed(Event::Exited(u))),
            Step::Pass(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.feed(Event::Tick);
                assert!(self.machine.deadline().is_none_or(|d| d > self.now), "a tick settles what was due");
            }
            Step::Restart(n) => self.feed(Event::Restart(Service::ALL[n % 4])),
            Step::Reload => self.feed(Event::Reload),
            Step::Stop => self.feed(Event::Stop),
        }
    }
}

proptest! {
    #[test]
    fn holds_its_invariants(steps in prop::collection::vec(step(), 0..120), services in 0_usize..=4) {
        let machine = Supervisor::new(&Service::ALL[..services], LIMITS);
        let mut world = World {
            machine,
            now: Moment::ZERO,
            alive: BTreeSet::new(),
            told_to_end: BTreeSet::new(),
            bus_ready: false,
            stopping: false,
            finished: false,
        };
        world.feed(Event::Start);
        for step in &steps {
            if world.finished {
                break;
            }
            world.step(step);
        }
        // Whatever went before, a stop comes to its end once the processes do as they are told.
        world.feed_if_going(Event::Stop);
        for _ in 0..=services {
            if let Some(unit) = world.told_to_end.first().copied() {
                world.feed(Event::Exited(unit));
            } else if let Some(unit) = world.alive.first().copied() {
                world.feed(Event::Exited(unit));
            }
        }
        prop_assert!(world.finished);
    }
}

impl World {
    fn feed_if_going(&mut self, event: Event) {
        if !self.finished {
            self.feed(event);
        }
    }
}
