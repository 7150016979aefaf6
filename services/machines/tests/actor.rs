//! The actor with machines that are only pretended.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shipote_machines::Error;
use shipote_machines::actor::{Change, Handle, Launcher, Shown};
use shipote_machines::console::Console;
use shipote_machines::guest::Guest;
use shipote_machines::idle::{How, Rule};
use shipote_machines::keeper::wire::{Hello, VERSION};
use shipote_machines::launch::{Order, Report};
use shipote_machines::spec::Spec;
use shipote_machines::state::State;
use shipote_machines::store::Store;
use tokio::sync::mpsc;

type Tell = Arc<dyn Fn(Report) + Send + Sync>;

/// Machines that do what the test says, and end when they are told to.
#[derive(Clone, Default)]
struct Pretended {
    lives: Arc<Mutex<Vec<Tell>>>,
    /// They don't power off when asked to.
    deaf: bool,
    /// They don't say by themselves that they stand still.
    slow: bool,
    /// What their guests were to make do with, MiB.
    memory: Arc<Mutex<Vec<u32>>>,
}

impl Launcher for Pretended {
    fn launch(
        &self,
        _name: &str,
        _spec: &Spec,
        console: Console,
        report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> mpsc::UnboundedSender<Order> {
        console.push(b"booting\n");
        let tell: Tell = report.into();
        self.lives.lock().unwrap().push(Arc::clone(&tell));
        let (deaf, slow, memory) = (self.deaf, self.slow, Arc::clone(&self.memory));
        let (orders, mut received) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(order) = received.recv().await {
                if let Order::Memory(mib) = order {
                    memory.lock().unwrap().push(mib);
                } else if let Order::Pause | Order::Resume = order {
                    if !slow || order == Order::Resume {
                        tell(Report::Paused(order == Order::Pause));
                    }
                } else if !(deaf && order == Order::PowerOff) {
                    return tell(Report::Exited { clean: order == Order::PowerOff, reason: format!("{order:?}") });
                }
            }
        });
        orders
    }

    fn adopt(
        &self,
        _name: &str,
        _spec: &Spec,
        _console: Console,
        _report: Box<dyn Fn(Report) + Send + Sync>,
    ) -> Option<mpsc::UnboundedSender<Order>> {
        None
    }
}

/// What a machine with these processes tells first, whose keeper knows how to change its memory, or not.
fn started(pids: Vec<i32>, balloons: bool) -> Report {
    let (version, secret, confinement) = (VERSION, String::new(), Vec::new());
    let (ready, paused, holds, memory) = (false, false, false, None);
    Report::Started(
        Box::new(Hello { version, secret, ready, paused, holds, balloons, memory, pids, confinement }),
        None,
    )
}

struct Trial {
    handle: Handle,
    changes: mpsc::UnboundedReceiver<Change>,
    machines: Pretended,
    dir: tempfile::TempDir,
}

fn trial() -> Trial {
    trial_of(Pretended::default())
}

fn trial_of(machines: Pretended) -> Trial {
    let dir = tempfile::tempdir().unwrap();
    let (sender, changes) = mpsc::unbounded_channel();
    let handle = Handle::start(Store::new(dir.path()), machines.clone(), sender).unwrap();
    Trial { handle, changes, machines, dir }
}

impl Trial {
    fn tell(&self, life: usize, report: Report) {
        let tell = Arc::clone(&self.machines.lives.lock().unwrap()[life]);
        tell(report);
    }

    /// A running machine that sleeps when nobody needed it for a second.
    async fn sleepy(&mut self, then: How) {
        self.sleepy_with(then, Vec::new()).await;
    }

    /// One whose processes are these.
    async fn sleepy_with(&mut self, then: How, pids: Vec<i32>) {
        let spec = Spec { idle: Some(Rule { after_s: 1, then }), ..Spec::default() };
        self.handle.create("a", spec).await.unwrap();
        self.handle.start_machine("a").await.unwrap();
        self.tell(0, started(pids, false));
        self.tell(0, Report::Ready(guest()));
    }

    /// Waits until its state is shown so.
    async fn until(&mut self, word: &str) -> Shown {
        loop {
            if let Change::State(shown) = self.changes.recv().await.unwrap()
                && shown.word() == word
            {
                return shown;
            }
        }
    }

    /// What is told of its sleep next.
    async fn sleep(&mut self) -> (How, bool, Result<(), String>) {
        loop {
            if let Change::Sleep { how, asleep, outcome, .. } = self.changes.recv().await.unwrap() {
                return (how, asleep, outcome);
            }
        }
    }

    async fn shown(&self) -> Shown {
        self.handle.list().await.unwrap().remove(0)
    }

    async fn next(&mut self) -> (State, String) {
        loop {
            if let Change::State(shown) = self.changes.recv().await.unwrap() {
                return (shown.state, shown.reason);
            }
        }
    }
}

fn guest() -> Guest {
    Guest { name: "a".into(), socket: "/nowhere".into(), secret: String::new() }
}

#[tokio::test]
async fn a_machine_lives_and_is_there_after_a_restart() {
    let mut trial = trial();
    trial.handle.create("a", Spec::default()).await.unwrap();
    assert!(matches!(trial.handle.create("a", Spec::default()).await, Err(Error::NameTaken(_))));
    assert!(matches!(trial.handle.start_machine("b").await, Err(Error::NoSuchMachine(_))));
    assert!(matches!(trial.handle.guest("a").await, Err(Error::WrongState { .. })));
    assert_eq!(trial.next().await.0, State::Stopped);
    trial.handle.start_machine("a").await.unwrap();
    assert_eq!(trial.next().await.0, State::Starting);
    assert!(matches!(trial.handle.start_machine("a").await, Err(Error::WrongState { .. })));
    trial.tell(0, Report::Ready(guest()));
    assert_eq!(trial.next().await.0, State::Running);
    assert!(trial.handle.guest("a").await.is_ok());
    assert_eq!(trial.handle.console("a").await.unwrap(), b"booting\n");
    assert!(matches!(trial.handle.remove("a").await, Err(Error::WrongState { .. })));
    trial.handle.stop("a", Duration::from_secs(100)).await.unwrap();
    assert_eq!(trial.next().await.0, State::Stopping);
    assert_eq!(trial.next().await, (State::Stopped, "PowerOff".into()));

    let (sender, _changes) = mpsc::unbounded_channel();
    let again = Handle::start(Store::new(trial.dir.path()), Pretended::default(), sender).unwrap();
    assert_eq!(again.list().await.unwrap().len(), 1);
    again.remove("a").await.unwrap();
    assert!(again.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_machine_that_dies_is_failed_and_starts_again_untouched_by_its_past() {
    let mut trial = trial();
    trial.handle.create("a", Spec::default()).await.unwrap();
    trial.handle.start_machine("a").await.unwrap();
    trial.tell(0, Report::Exited { clean: true, reason: "died".into() });
    for state in [State::Stopped, State::Starting] {
        assert_eq!(trial.next().await.0, state);
    }
    assert_eq!(trial.next().await, (State::Failed, "died".into()), "before it was ready even a clean end is a failure");
    trial.handle.start_machine("a").await.unwrap();
    assert_eq!(trial.next().await, (State::Starting, String::new()));
    // Late words of the first life.
    trial.tell(0, Report::Exited { clean: false, reason: "old".into() });
    trial.tell(1, Report::Ready(guest()));
    assert_eq!(trial.next().await.0, State::Running);
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_is_killed() {
    let mut trial = trial();
    trial.handle.create("a", Spec::default()).await.unwrap();
    trial.handle.start_machine("a").await.unwrap();
    for state in [State::Stopped, State::Starting, State::Failing] {
        assert_eq!(trial.next().await.0, state);
    }
    assert_eq!(trial.next().await, (State::Failed, "Kill".into()));
}

#[tokio::test(start_paused = true)]
async fn the_time_to_start_does_not_shorten_the_time_to_stop() {
    let mut trial = trial_of(Pretended { deaf: true, ..Pretended::default() });
    trial.handle.create("a", Spec::default()).await.unwrap();
    trial.handle.start_machine("a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    trial.tell(0, Report::Ready(guest()));
    for state in [State::Stopped, State::Starting, State::Running] {
        assert_eq!(trial.next().await.0, state);
    }
    let asked = tokio::time::Instant::now();
    trial.handle.stop("a", Duration::from_secs(60)).await.unwrap();
    assert_eq!(trial.next().await.0, State::Stopping);
    assert_eq!(trial.next().await, (State::Stopped, "Kill".into()));
    assert!(asked.elapsed() >= Duration::from_secs(60), "killed after {:?}", asked.elapsed());
}

#[tokio::test]
async fn the_end_of_the_service_is_the_end_of_all_machines() {
    let trial = trial();
    for name in ["a", "b"] {
        trial.handle.create(name, Spec::default()).await.unwrap();
        trial.handle.start_machine(name).await.unwrap();
    }
    trial.handle.shut_down().await;
    assert!(matches!(trial.handle.list().await, Err(Error::Stopping)));
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_started_again_where_its_spec_says_so() {
    use shipote_machines::spec::Restart;
    for (restart, clean, again) in [
        (Restart::No, false, false),
        (Restart::OnFailure, false, true),
        (Restart::OnFailure, true, false),
        (Restart::Always, true, true),
    ] {
        let mut trial = trial();
        trial.handle.create("a", Spec { restart, ..Spec::default() }).await.unwrap();
        trial.handle.start_machine("a").await.unwrap();
        trial.tell(0, Report::Ready(guest()));
        trial.tell(0, Report::Exited { clean, reason: "by itself".into() });
        for expected in [State::Stopped, State::Starting, State::Running] {
            assert_eq!(trial.next().await.0, expected);
        }
        assert_eq!(trial.next().await.0, if clean { State::Stopped } else { State::Failed });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let state = trial.handle.list().await.unwrap()[0].state;
        assert_eq!(state == State::Starting, again, "{restart:?} after {clean}");
        if again {
            // One that somebody stops stays so.
            trial.handle.stop("a", Duration::ZERO).await.unwrap();
            tokio::time::sleep(Duration::from_secs(200)).await;
            assert_eq!(trial.handle.list().await.unwrap()[0].state, State::Stopped);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_machine_is_started_anew_where_its_spec_says_so_and_shown_otherwise() {
    use shipote_machines::health::{Check, Health};
    use shipote_machines::spec::Restart;
    for (restart, anew) in [(Restart::No, false), (Restart::OnFailure, true)] {
        let mut trial = trial();
        let health = Some(Check { port: Some(80), ..Check::default() });
        trial.handle.create("a", Spec { restart, health, ..Spec::default() }).await.unwrap();
        trial.handle.start_machine("a").await.unwrap();
        trial.tell(0, Report::Ready(guest()));
        trial.tell(0, Report::Health(Health::Healthy));
        for expected in [State::Stopped, State::Starting, State::Running] {
            assert_eq!(trial.next().await.0, expected);
        }
        assert_eq!(trial.handle.list().await.unwrap()[0].health, Some(Health::Healthy));
        trial.tell(0, Report::Health(Health::Unhealthy("no answer".into())));
        if anew {
            assert_eq!(trial.next().await, (State::Failed, "it was unhealthy: no answer".into()));
            assert_eq!(trial.next().await.0, State::Starting);
            assert_eq!(trial.handle.list().await.unwrap()[0].health, None);
        } else {
            tokio::time::sleep(Duration::from_secs(100)).await;
            let shown = trial.handle.list().await.unwrap().remove(0);
            assert_eq!(shown.state, State::Running);
            assert_eq!(shown.health.unwrap().reason(), "no answer");
        }
    }
}

#[tokio::test]
async fn a_machine_that_nobody_needs_stands_still_and_whoever_needs_it_wakes_it() {
    let mut trial = trial();
    trial.sleepy(How::Pause).await;
    for times in 1..=2 {
        assert_eq!(trial.sleep().await, (How::Pause, true, Ok(())));
        trial.until("sleeping").await;
        assert!(trial.dir.path().join("a/asleep").exists(), "the next service knows");
        let asleep = trial.handle.awake("a", false).await;
        assert!(matches!(asleep, Err(Error::Asleep(_))), "{asleep:?}");
        assert_eq!(trial.shown().await.word(), "sleeping");
        trial.handle.awake("a", true).await.unwrap();
        trial.until("running").await;
        assert_eq!(trial.sleep().await, (How::Pause, false, Ok(())));
        let shown = trial.shown().await;
        assert!(shown.slept.times == times && shown.slept.wake_usec > 0, "{shown:?}");
        assert!(!trial.dir.path().join("a/asleep").exists());
    }
}

#[tokio::test]
async fn one_that_is_needed_does_not_fall_asleep() {
    let mut trial = trial();
    trial.sleepy(How::Pause).await;
    trial.until("running").await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        trial.handle.awake("a", true).await.unwrap();
    }
    assert_eq!(trial.shown().await.slept.times, 0);
    trial.until("sleeping").await;
}

/// A process that works hard whenever it is told to, as a guest that answers health checks.
struct Works(Child);

impl Works {
    fn new() -> Self {
        let program = "while read -r line; do i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done; echo; done";
        let mut words = Command::new("sh");
        Self(words.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Until it is done.
    fn work(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"work\n").unwrap();
        self.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    }
}

impl Drop for Works {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_looking_after_it_costs_does_not_keep_it_awake_and_its_own_work_does() {
    let mut trial = trial();
    let mut works = Works::new();
    let pids = vec![i32::try_from(works.0.id()).unwrap()];
    trial.sleepy_with(How::Pause, pids).await;
    trial.until("running").await;
    // its own work, at which nobody looks
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        works.work();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(trial.shown().await.slept.times, 0, "it worked");
    // as often, the work of looking after it
    let begun = tokio::time::Instant::now();
    let mut answered = 0;
    while trial.shown().await.slept.times == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{answered} looks keep it awake");
        if trial.handle.awake("a", false).await.is_ok() {
            answered += 1;
            works.work();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(answered > 0, "there were looks before its time was over");
}

#[tokio::test]
async fn one_that_was_stopped_for_want_of_work_is_started_for_the_first_request_even_by_the_next_service() {
    let mut trial = trial();
    trial.sleepy(How::Stop).await;
    trial.until("sleeping").await;
    let (sender, changes) = mpsc::unbounded_channel();
    let machines = Pretended::default();
    trial.handle = Handle::start(Store::new(trial.dir.path()), machines.clone(), sender).unwrap();
    (trial.changes, trial.machines) = (changes, machines);
    assert_eq!(trial.shown().await.word(), "sleeping");
    let waiting = [trial.handle.clone(), trial.handle.clone()]
        .map(|handle| tokio::spawn(async move { handle.awake("a", true).await.map(|_| ()) }));
    trial.until("starting").await;
    assert!(waiting.iter().all(|one| !one.is_finished()), "they are held");
    trial.tell(0, Report::Ready(guest()));
    for one in waiting {
        one.await.unwrap().unwrap();
    }
    assert_eq!(trial.machines.lives.lock().unwrap().len(), 1, "started once");
}

#[tokio::test]
async fn a_waking_that_fails_says_why_and_may_be_tried_again() {
    let mut trial = trial();
    trial.sleepy(How::Stop).await;
    trial.until("sleeping").await;
    for life in 1..=2 {
        let handle = trial.handle.clone();
        let waiting = tokio::spawn(async move { handle.awake("a", true).await.map(|_| ()) });
        trial.until("starting").await;
        trial.tell(life, Report::Exited { clean: false, reason: "no kernel".into() });
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "wake machine a: no kernel");
        assert_eq!(trial.shown().await.state, State::Failed);
    }
    let told = loop {
        let told = trial.sleep().await;
        if !told.1 {
            break told;
        }
    };
    assert_eq!(told, (How::Stop, false, Err("no kernel".to_owned())), "it is on record");
}

#[tokio::test]
async fn whoever_comes_while_it_falls_asleep_is_held_until_it_is_awake_again() {
    let mut trial = trial_of(Pretended { slow: true, ..Pretended::default() });
    trial.sleepy(How::Pause).await;
    assert_eq!(trial.sleep().await, (How::Pause, true, Ok(())));
    let handle = trial.handle.clone();
    let waiting = tokio::spawn(async move { handle.awake("a", true).await.map(|_| ()) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    trial.tell(0, Report::Paused(true));
    waiting.await.unwrap().unwrap();
    assert_eq!(trial.shown().await.word(), "running");
}

#[tokio::test]
async fn what_a_user_paused_or_stopped_wakes_for_nobody() {
    for how in [How::Pause, How::Stop] {
        let mut trial = trial();
        trial.sleepy(how).await;
        trial.until("sleeping").await;
        let (word, way_out) = match how {
            How::Pause => {
                trial.handle.pause("a", true).await.unwrap();
                ("paused", "resume it first")
            }
            How::Stop => {
                trial.handle.stop("a", Duration::ZERO).await.unwrap();
                ("stopped", "start it first")
            }
        };
        trial.until(word).await;
        assert!(!trial.dir.path().join("a/asleep").exists());
        let error = trial.handle.awake("a", true).await.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(way_out), "{error}");
        // and a user has one that sleeps go on, which is on record as the user's doing and nobody else's
        match how {
            How::Pause => trial.handle.pause("a", false).await.unwrap(),
            How::Stop => trial.handle.start_machine("a").await.unwrap(),
        }
    }
}

#[tokio::test]
async fn a_machine_whose_time_is_over_is_ended_and_removed_also_by_the_next_service() {
    let soon = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1;
    let mut trial = trial();
    trial.handle.create("a", Spec { expires_unix: Some(soon()), ..Spec::default() }).await.unwrap();
    trial.handle.start_machine("a").await.unwrap();
    trial.tell(0, Report::Ready(guest()));
    loop {
        if let Change::Expired { name, outcome } = trial.changes.recv().await.unwrap() {
            assert_eq!((name.as_str(), outcome), ("a", Ok(())));
            break;
        }
    }
    assert!(trial.handle.list().await.unwrap().is_empty() && !trial.dir.path().join("a").exists());
    // one that lasts longer than its service
    trial.handle.create("b", Spec { expires_unix: Some(soon()), ..Spec::default() }).await.unwrap();
    trial.handle.leave().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (sender, mut changes) = mpsc::unbounded_channel();
    let again = Handle::start(Store::new(trial.dir.path()), Pretended::default(), sender).unwrap();
    assert!(matches!(changes.recv().await.unwrap(), Change::Expired { .. }));
    assert!(again.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_machine_may_reach_changes_while_it_runs_and_for_its_next_lives() {
    let trial = trial();
    let spec = Spec { egress: vec!["a.example".into()], ..Spec::default() };
    trial.handle.create("web", spec).await.unwrap();
    trial.handle.create("shut", Spec::default()).await.unwrap();
    let list = |entries: &[&str]| entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
    let change =
        |name: &'static str, allow: &[&str], deny: &[&str]| trial.handle.change_egress(name, list(allow), list(deny));
    assert_eq!(change("web", &["b.example:22"], &[]).await.unwrap(), list(&["a.example", "b.example:22"]));
    assert_eq!(change("web", &["b.example:22"], &["a.example"]).await.unwrap(), list(&["b.example:22"]));
    for (allow, deny, what) in [
        (&["a b"][..], &[][..], "is no host"),
        (&[], &["a.example"], "not on its list"),
        (&["c.example"; 257], &[], ""),
    ] {
        let refused = change("web", allow, deny).await;
        assert!(what.is_empty() || matches!(&refused, Err(e) if e.to_string().contains(what)), "{refused:?}");
    }
    let many: Vec<String> = (0..256).map(|n| format!("n{n}.example")).collect();
    let refused = trial.handle.change_egress("web", many, vec![]).await;
    assert!(matches!(refused, Err(Error::InvalidSpec { .. })), "{refused:?}");
    assert!(matches!(change("none", &[], &[]).await, Err(Error::NoSuchMachine(_))));
    // What was refused changed nothing, and what was not is on the disk.
    let stored = Store::new(trial.dir.path()).load().unwrap();
    assert_eq!(stored.iter().find(|(name, _)| name == "web").unwrap().1.egress[0], "b.example:22");
    // A guest that was started without a way out is given none.
    trial.handle.start_machine("shut").await.unwrap();
    assert!(matches!(change("shut", &["a.example"], &[]).await, Err(Error::WrongState { .. })));
    trial.handle.start_machine("web").await.unwrap();
    change("web", &["d.example"], &[]).await.unwrap();
    assert!(trial.handle.ways().await.unwrap().is_empty(), "nobody has said yet how it goes out");
}

#[tokio::test]
async fn what_a_machine_publishes_changes_while_it_lives() {
    let trial = trial();
    trial.handle.create("web", Spec { publish: vec!["80".into(), "8080:80".into()], ..Spec::default() }).await.unwrap();
    let list = |entries: &[&str]| entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>();
    let change = |add: &[&str], remove: &[&str]| trial.handle.change_published("web", list(add), list(remove));
    assert_eq!(change(&["81", "8081:81"], &["8080:80"]).await.unwrap(), list(&["80", "81", "8081:81"]));
    assert!(matches!(change(&["8081:82"], &[]).await, Err(Error::InvalidSpec { .. })), "a port of the host twice");
    assert!(matches!(change(&["0"], &[]).await, Err(Error::InvalidSpec { .. })));
    assert!(matches!(change(&[], &["82"]).await, Err(Error::InvalidSpec { .. })));
    trial.handle.start_machine("web").await.unwrap();
    assert_eq!(change(&["82"], &["80"]).await.unwrap(), list(&["81", "8081:81", "82"]));
    for (add, remove) in [(&["8083:83"][..], &[][..]), (&[], &["8081:81"])] {
        assert!(matches!(change(add, remove).await, Err(Error::WrongState { .. })), "a port of the host while it runs");
    }
    let stored = Store::new(trial.dir.path()).load().unwrap();
    assert_eq!(stored[0].1.publish, list(&["81", "8081:81", "82"]));
}

#[tokio::test]
async fn what_memory_a_guest_makes_do_with_changes_while_it_lives_within_bounds() {
    let mut trial = trial();
    let set = |handle: &Handle, mib: u64| {
        let handle = handle.clone();
        async move { handle.set_memory("a", mib << 20).await }
    };
    assert!(matches!(set(&trial.handle, 128).await, Err(Error::NoSuchMachine(_))));
    trial.handle.create("a", Spec::default()).await.unwrap();
    // Less than the guest needs, more than it has, no whole MiB: told what could be given, and nothing changes.
    for bytes in [103 << 20, 257 << 20, (128 << 20) + 1, 1, u64::MAX, u64::MAX << 20] {
        let refused = trial.handle.set_memory("a", bytes).await.unwrap_err().to_string();
        assert!(refused.contains("give 104 MiB") && refused.contains("to 256 MiB"), "{refused}");
    }
    let stored = |trial: &Trial| Store::new(trial.dir.path()).load().unwrap().remove(0).1.memory_target_mib;
    assert_eq!(stored(&trial), None);

    // For its next life,
    assert_eq!(set(&trial.handle, 104).await.unwrap(), 104 << 20);
    assert_eq!(stored(&trial), Some(104));
    trial.handle.start_machine("a").await.unwrap();
    trial.tell(0, started(vec![], true));
    let has = Arc::new(AtomicU64::new(200 << 20));
    trial.tell(0, Report::Memory(Arc::clone(&has)));
    trial.tell(0, Report::Ready(guest()));
    trial.until("running").await;
    // and while it runs.
    set(&trial.handle, 200).await.unwrap();
    assert_eq!((set(&trial.handle, 0).await.unwrap(), stored(&trial)), (256 << 20, None));
    assert_eq!(set(&trial.handle, 256).await.unwrap(), 256 << 20);
    assert_eq!(*trial.machines.memory.lock().unwrap(), [200, 256, 256]);
    let inspected = trial.handle.inspect("a").await.unwrap();
    assert_eq!((inspected.guest_memory, inspected.shown.spec.memory_now_mib()), (200 << 20, 256));

    // One that has ended has none.
    trial.tell(0, Report::Exited { clean: false, reason: String::new() });
    assert_eq!(trial.handle.inspect("a").await.unwrap().guest_memory, 0);
    // A keeper that an earlier release started cannot.
    trial.handle.start_machine("a").await.unwrap();
    trial.tell(1, started(vec![], false));
    assert!(matches!(set(&trial.handle, 128).await, Err(Error::WrongState { .. })));
    assert_eq!(stored(&trial), None);
}
