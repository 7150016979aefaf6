//! A machine between its start, or adoption, and its end: its keeper's events, orders, what it dials and publishes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shipote_agent_protocol::{AgentRequest, AgentResponse, ports, read_message, write_message};
use shipote_confinement::Mechanism;
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

use super::keeper::{Watched, watch_process};
use super::{Order, Place, Report, listener};
use crate::guest::Guest;
use crate::health;
use crate::keeper::wire::{self, Event, Hello};
use crate::published::{Awake, Door};
use crate::relay;
use crate::vmm::qemu;
use crate::way::{self, Way};

/// How long a keeper may take to say that it is there. It starts the vsock device meanwhile.
const KEEPER_TIME: Duration = Duration::from_secs(60);
/// How long a guest waits after its first knock that was followed by no answer, and at most.
const KNOCK_PAUSE: Duration = Duration::from_millis(50);
const KNOCK_PAUSE_MAX: Duration = Duration::from_secs(5);

/// A machine between its start (or adoption) and its end.
pub(super) struct Life<'a, R> {
    pub(super) place: &'a Place,
    pub(super) knocked: UnixListener,
    /// What it publishes, until it is ready and they are opened.
    pub(super) doors: Vec<Door>,
    pub(super) link: OwnedWriteHalf,
    pub(super) orders: &'a mut mpsc::UnboundedReceiver<Order>,
    pub(super) report: &'a R,
    pub(super) adopted: bool,
}

impl<R: Fn(Report)> Life<'_, R> {
    /// How it ended; `None` where it was left to itself.
    pub(super) async fn run(mut self, reader: OwnedReadHalf, processes: &mut Vec<Watched>) -> Option<(bool, String)> {
        let (sender, mut events) = mpsc::channel(4);
        let reading = tokio::spawn(read(reader, sender));
        let mut hello = match tokio::time::timeout(KEEPER_TIME, self.hello(&mut events)).await {
            Ok(Ok(hello)) => hello,
            Ok(Err(reason)) => return Some((false, reason)),
            Err(_) => return Some((false, format!("its keeper said nothing within {KEEPER_TIME:?}"))),
        };
        processes.extend(hello.pids.iter().copied().filter_map(watch_process));
        let guest = Guest {
            name: self.place.name.clone(),
            socket: self.place.folder.join(qemu::VSOCK_FOLDER).join(qemu::VSOCK_SOCKET),
            secret: hello.secret.clone(),
        };
        let mut is_ready = hello.ready;
        let mut paused = hello.paused;
        let (holds, balloons) = (hello.holds, hello.balloons);
        let all = u64::from(self.place.spec.memory_mib) << 20;
        let memory = Arc::new(AtomicU64::new(hello.memory.unwrap_or(all).min(all)));
        (self.report)(Report::Memory(Arc::clone(&memory)));
        hello.confinement.push(match &self.place.group {
            Some(group) => group.mechanism(),
            None => Mechanism::missing("cgroup", "this host gives the service none"),
        });
        (self.report)(Report::Started(Box::new(hello), self.place.group.clone()));
        let (pauses, is_paused) = watch::channel(paused);
        let (health_changes, mut healths) = mpsc::channel(1);
        let (wanted, mut wants) = mpsc::channel(1);
        let awake = Awake { wanted, paused: is_paused.clone() };
        let mut ready_tasks = Vec::new();
        let place = self.place;
        let check = |guest: &Guest| {
            place.spec.health.clone().map(|check| {
                Task(tokio::spawn(health::watch(guest.clone(), check, is_paused.clone(), health_changes.clone())))
            })
        };
        if is_ready {
            ready_tasks = publish(std::mem::take(&mut self.doors), &guest, &awake);
            ready_tasks.extend(check(&guest));
            (self.report)(Report::Ready(guest.clone()));
        }
        if paused {
            (self.report)(Report::Paused(true));
        }
        // One that was taken over may never have been told of the last change.
        if balloons && self.adopted || place.spec.memory_target_mib.is_some() {
            make_do_with(&mut self.link, &place.name, balloons, place.spec.memory_now_mib()).await;
        }
        let _offers = self.offers();
        // Its own handle, so that the loop below may say something meanwhile.
        let knocked = self.knocked;
        let adopted = self.adopted;
        let ready = async {
            first_answer(&knocked, &guest, adopted).await;
            // Again where the last service ended in this very moment: better twice than never.
            match &place.spec.run {
                Some(run) => run.start(&guest).await,
                None => Ok(()),
            }
        };
        tokio::pin!(ready);
        let end = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Console { data }) => self.place.console.push(&data),
                    Some(Event::Paused { paused: now }) if now != paused => {
                        paused = now;
                        pauses.send_replace(paused);
                        (self.report)(Report::Paused(paused));
                    }
                    Some(Event::Held { held }) => (self.report)(Report::Held(held)),
                    Some(Event::Memory { bytes }) => memory.store(bytes.unwrap_or(all).min(all), Ordering::Relaxed),
                    Some(Event::Paused { .. } | Event::Hello(_)) => {}
                    Some(Event::Ended { clean, reason }) => break Some((clean, reason)),
                    None => break Some((false, "its keeper was killed".to_owned())),
                },
                Some(health) = healths.recv() => (self.report)(Report::Health(health)),
                Some(()) = wants.recv() => (self.report)(Report::Wanted),
                begun = &mut ready, if !is_ready => {
                    is_ready = true;
                    if let Err(reason) = begun {
                        order(&mut self.link, &wire::Order::Kill).await;
                        break Some((false, format!("its command could not be started: {reason}")));
                    }
                    ready_tasks = publish(std::mem::take(&mut self.doors), &guest, &awake);
                    ready_tasks.extend(check(&guest));
                    order(&mut self.link, &wire::Order::Ready).await;
                    (self.report)(Report::Ready(guest.clone()));
                }
                given = self.orders.recv() => match given {
                    Some(Order::PowerOff) => {
                        // One that stands still answers nobody.
                        order(&mut self.link, &wire::Order::Pause { paused: false }).await;
                        let guest = guest.clone();
                        tokio::spawn(async move {
                            if let Err(error) = guest.ask(&AgentRequest::Shutdown).await {
                                tracing::warn!("{error}");
                            }
                        });
                    }
                    Some(Order::Pause) => order(&mut self.link, &wire::Order::Pause { paused: true }).await,
                    Some(Order::Resume) => order(&mut self.link, &wire::Order::Pause { paused: false }).await,
                    Some(Order::Hold(held)) if holds => order(&mut self.link, &wire::Order::Hold { held }).await,
                    Some(Order::Hold(_)) => (self.report)(Report::Held(false)),
                    Some(Order::Memory(mib)) => make_do_with(&mut self.link, &place.name, balloons, mib).await,
                    Some(Order::Kill) => order(&mut self.link, &wire::Order::Kill).await,
                    // The keeper sees the connection end, and its lease begins.
                    Some(Order::Leave) | None => break None,
                },
            }
        };
        reading.abort();
        drop(ready_tasks);
        end
    }

    /// What the guest dials on the host.
    fn offers(&self) -> Vec<Task> {
        let Place { name, folder, spec, proxy, .. } = self.place;
        let mut tasks = Vec::new();
        match self.way() {
            Ok(Some(way)) => {
                let standing_in = way::stand_in(way, name.clone(), proxy.clone(), way::AWAY);
                tasks.push(Task(tokio::spawn(standing_in)));
            }
            Ok(None) => {}
            Err(error) => tracing::error!("machine {name}: open its way out: {error}"),
        }
        if let Some(socket) = &spec.ssh_agent {
            if let Some(problem) = crate::ssh_agent::problem(socket) {
                tracing::warn!("machine {name} has no SSH agent for now: {problem}");
            }
            match listener(folder, ports::SSH_AGENT) {
                Ok(listener) => {
                    tasks.push(Task(tokio::spawn(relay::socket(listener, name.clone(), socket.clone()))));
                }
                Err(error) => tracing::error!("machine {name}: listen for the SSH agent's clients: {error}"),
            }
        }
        tasks
    }

    /// How it goes out, if it does. One that was taken over goes out as it did, whatever its list has become.
    fn way(&self) -> std::io::Result<Option<Arc<Way>>> {
        let Place { name, folder, spec, way, ways, .. } = self.place;
        // The actor has had this one from the beginning.
        if let Some(way) = way {
            return Ok(Some(Arc::clone(way)));
        }
        let went_out = self.adopted && Way::was_in(folder);
        if !spec.goes_out() && !went_out {
            return Ok(None);
        }
        let way = Arc::new(Way::open(folder)?);
        ways.keep(name, &way);
        (self.report)(Report::GoesOut(Arc::clone(&way)));
        Ok(Some(way))
    }

    async fn hello(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<Hello, String> {
        loop {
            match events.recv().await {
                Some(Event::Hello(hello)) if hello.version == wire::VERSION => return Ok(hello),
                Some(Event::Hello(hello)) => {
                    order(&mut self.link, &wire::Order::Kill).await;
                    let ours = wire::VERSION;
                    return Err(format!(
                        "its keeper is of version {}, the service of {ours}: it was ended",
                        hello.version
                    ));
                }
                Some(Event::Ended { reason, .. }) => return Err(reason),
                Some(_) => {}
                None => return Err("its keeper ended at once; the service's log says why".to_owned()),
            }
        }
    }
}

/// Opens what is published, for as long as the tasks live.
fn publish(doors: Vec<Door>, guest: &Guest, awake: &Awake) -> Vec<Task> {
    doors.into_iter().map(|door| Task(tokio::spawn(door.serve(guest.clone(), awake.clone())))).collect()
}

/// A task that ends when dropped.
struct Task(tokio::task::JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the keeper. One that is gone is noticed where its events are read.
async fn order(link: &mut OwnedWriteHalf, order: &wire::Order) {
    if let Err(error) = write_message(link, order).await {
        tracing::debug!("order a keeper: {error}");
    }
}

/// Has the keeper ask the guest to make do with so many MiB, if it can.
async fn make_do_with(link: &mut OwnedWriteHalf, machine: &str, balloons: bool, mib: u32) {
    if balloons {
        order(link, &wire::Order::Memory { mib }).await;
    } else {
        tracing::warn!(
            "machine {machine}: its keeper is of an earlier release; it has {mib} MiB from its next start on"
        );
    }
}

/// Passes on what the keeper says, to its end.
async fn read(mut reader: OwnedReadHalf, events: mpsc::Sender<Event>) {
    while let Ok(Some(event)) = read_message(&mut reader).await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

/// Returns when the agent has answered. The guest's knock saves asking in vain; it proves nothing by itself. Of a machine
/// that was taken over it may have been missed.
///
/// One that knocks without end and answers nothing fills neither the log nor the processor: each time in vain it is let
/// wait longer.
async fn first_answer(knocked: &UnixListener, guest: &Guest, mut missed: bool) {
    let mut pause = KNOCK_PAUSE;
    loop {
        if !std::mem::take(&mut missed)
            && let Err(error) = knocked.accept().await
        {
            tracing::warn!("machine {}: accept the guest's knock: {error}", guest.name);
        }
        match guest.ask(&AgentRequest::Ping).await {
            Ok(AgentResponse::Pong { .. }) => return,
            Ok(_) => tracing::warn!("machine {}: its agent answers a ping with something else", guest.name),
            Err(error) => tracing::warn!("{error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(KNOCK_PAUSE_MAX);
    }
}
