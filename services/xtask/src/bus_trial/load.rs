//! The steady load: calls, descriptors, credentials, signals to twenty subscribers, properties, objects, names.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, future::join_all};
use tokio::time::{Instant, interval, timeout};
use zbus::{Connection, MessageStream, fdo::DBusProxy, names::BusName};

use super::{
    Trial,
    service::{Counter, INTERFACE, Item, NAME, OBJECTS_NAME, PATH, Served, Trial as Interface},
};

const CALLERS: u64 = 8;
const SUBSCRIBERS: usize = 20;
/// Calls are sent in bursts, so many a second from each caller.
const BURSTS: u64 = 50;
/// The last tick: tells the subscribers to stop.
const LAST: u64 = u64::MAX;

pub(super) async fn run(trial: &Trial, service: &Served) {
    let callers = join_all((0..CALLERS).map(|n| part(trial, "calls", caller(trial, n))));
    let signals = part(trial, "signals", signals(trial, service));
    tokio::join!(
        callers,
        signals,
        part(trial, "descriptors", descriptors(trial)),
        part(trial, "credentials", credentials(trial)),
        part(trial, "properties and objects", properties(trial, service)),
        part(trial, "names", names(trial)),
        part(trial, "unowned names", unowned(trial)),
    );
}

/// A part of the load that gives up is a fault of its own.
async fn part(trial: &Trial, what: &'static str, work: impl Future<Output = Result<()>>) {
    if let Err(error) = work.await {
        trial.ledger.fault("no part of the load gives up", format_args!("{what}: {error:#}"));
    }
}

async fn caller(trial: &Trial, seed: u64) -> Result<()> {
    let bus = trial.connect().await?;
    let burst = (trial.rate / CALLERS / BURSTS).max(1);
    let mut tick = interval(Duration::from_millis(1000 / BURSTS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut number = seed;
    while trial.running() {
        tick.tick().await;
        join_all((0..burst).map(|n| echo(trial, &bus, number.wrapping_add(n * CALLERS)))).await;
        number = number.wrapping_add(burst * CALLERS);
    }
    Ok(())
}

async fn echo(trial: &Trial, bus: &Connection, number: u64) {
    // Mostly small; now and then one that does not fit a socket's buffer.
    let length = if number.is_multiple_of(4001) { 512 * 1024 } else { (number % 96) as usize };
    #[expect(clippy::cast_possible_truncation, reason = "any byte will do")]
    let bytes = vec![number as u8; length];
    let start = Instant::now();
    let answer = bus.call_method(Some(NAME), PATH, Some(INTERFACE), "Echo", &(&bytes)).await;
    trial.ledger.delay(start.elapsed());
    let echoed = answer.and_then(|a| a.body().deserialize::<Vec<u8>>());
    if let Some(echoed) = trial.ledger.check("calls", echoed)
        && echoed != bytes
    {
        trial.ledger.fault("an answer belongs to its call", format_args!("call {number}"));
    }
}

/// A descriptor whose reader gets `contents`.
pub(super) fn memory_file(contents: &str) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("trial", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(contents.as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

fn pipe(contents: &str) -> std::io::Result<OwnedFd> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    File::from(writer).write_all(contents.as_bytes())?;
    Ok(reader)
}

/// One to sixteen descriptors a message, memory files and pipes by turns; the answer comes by descriptor too.
async fn descriptors(trial: &Trial) -> Result<()> {
    let bus = trial.connect().await?;
    let mut tick = interval(Duration::from_millis(10));
    for round in 0_usize.. {
        tick.tick().await;
        if !trial.running() {
            break;
        }
        let texts: Vec<String> = (0..=round % 16).map(|n| format!("{round}.{n} ")).collect();
        let sent = texts
            .iter()
            .enumerate()
            .map(|(n, text)| if n % 2 == 0 { memory_file(text) } else { pipe(text) })
            .collect::<std::io::Result<Vec<_>>>()?;
        let body: Vec<zbus::Fd<'_>> = sent.iter().map(|fd| fd.as_fd().into()).collect();
        let answer = async {
            let answer = bus.call_method(Some(NAME), PATH, Some(INTERFACE), "Read", &(body)).await?;
            let fd: zbus::OwnedFd = answer.body().deserialize()?;
            let mut file = File::from(OwnedFd::from(fd));
            let mut text = String::new();
            // The service wrote through the same open file: start over.
            file.seek(SeekFrom::Start(0))?;
            file.read_to_string(&mut text)?;
            ensure!(text == texts.concat(), "expected {:?}, got {text:?}", texts.concat());
            Ok(())
        };
        if trial.ledger.check("messages with descriptors", answer.await).is_some() {
            trial.ledger.count("descriptors passed", sent.len() as u64 + 1);
        }
    }
    Ok(())
}

async fn credentials(trial: &Trial) -> Result<()> {
    let mut tick = interval(Duration::from_millis(100));
    while trial.running() {
        tick.tick().await;
        let outcome = async {
            let bus = trial.connect().await?;
            check_own_credentials(&bus, &trial.ledger).await
        };
        trial.ledger.check("credentials", outcome.await);
    }
    Ok(())
}

/// The bus must say of this connection what this process knows of itself.
pub(super) async fn check_own_credentials(bus: &Connection, ledger: &super::report::Ledger) -> Result<()> {
    let own: BusName<'_> = bus.unique_name().context("no unique name")?.clone().into();
    let driver = DBusProxy::new(bus).await?;
    let uid = rustix::process::getuid().as_raw();
    let pid = std::process::id();
    let told = driver.get_connection_credentials(own.as_ref()).await?;
    ensure!(told.unix_user_id() == Some(uid), "user {:?}, not {uid}", told.unix_user_id());
    ensure!(told.process_id() == Some(pid), "process {:?}, not {pid}", told.process_id());
    ledger.note("ProcessFD in GetConnectionCredentials", if told.process_fd().is_some() { "yes" } else { "no" });
    let told = driver.get_connection_unix_process_id(own.as_ref()).await?;
    ensure!(told == pid, "process {told}, not {pid}");
    let told = driver.get_connection_unix_user(own).await?;
    ensure!(told == uid, "user {told}, not {uid}");
    Ok(())
}

async fn signals(trial: &Trial, service: &Served) -> Result<()> {
    let mut readers = Vec::new();
    for _ in 0..SUBSCRIBERS {
        let bus = trial.connect().await?;
        let rule = format!("type='signal',sender='{NAME}',interface='{INTERFACE}',member='Tick'");
        let ticks = MessageStream::for_match_rule(rule.as_str(), &bus, NonZeroUsize::new(4096)).await?;
        readers.push(tokio::spawn(subscriber(trial.clone(), ticks)));
    }
    let emitter = zbus::object_server::SignalEmitter::new(&service.main, PATH)?;
    let mut tick = interval(Duration::from_millis(20));
    let mut number = 0;
    while trial.running() {
        tick.tick().await;
        for _ in 0..4 {
            Interface::tick(&emitter, number).await?;
            number += 1;
        }
    }
    Interface::tick(&emitter, LAST).await?;
    for reader in readers {
        let seen = reader.await?;
        if seen != number {
            trial.ledger.fault("every signal arrives", format_args!("{seen} of {number}"));
        }
    }
    Ok(())
}

async fn subscriber(trial: Trial, mut ticks: MessageStream) -> u64 {
    let mut expected = 0;
    loop {
        let number = match timeout(Duration::from_secs(20), ticks.next()).await {
            Ok(Some(Ok(message))) => message.body().deserialize::<u64>().unwrap_or(LAST - 1),
            Ok(Some(Err(error))) => {
                trial.ledger.fault("a subscriber stays connected", error);
                return expected;
            }
            Ok(None) => {
                trial.ledger.fault("a subscriber stays connected", "end of its stream");
                return expected;
            }
            Err(_) => {
                trial.ledger.fault("a subscriber stays connected", "no signal for 20 s");
                return expected;
            }
        };
        if number == LAST {
            return expected;
        }
        if number != expected {
            trial.ledger.fault("signals come in order", format_args!("{number} where {expected} was due"));
        }
        expected = number + 1;
        trial.ledger.count("signals delivered", 1);
    }
}

/// A property that changes and an object that comes and goes, seen by a client with `ObjectManager`.
async fn properties(trial: &Trial, service: &Served) -> Result<()> {
    let bus = trial.connect().await?;
    let server = service.objects.object_server();
    let rule = format!("type='signal',sender='{OBJECTS_NAME}',path_namespace='{PATH}'");
    let mut seen = MessageStream::for_match_rule(rule.as_str(), &bus, NonZeroUsize::new(4096)).await?;
    let object = server.interface::<_, Counter>(PATH).await?;
    let item = format!("{PATH}/item");
    let mut tick = interval(Duration::from_millis(100));
    while trial.running() {
        tick.tick().await;
        let value = {
            let mut served = object.get_mut().await;
            served.0 += 1;
            served.counter_changed(object.signal_emitter()).await?;
            served.0
        };
        server.at(item.as_str(), Item).await?;
        let manager = zbus::fdo::ObjectManagerProxy::new(&bus, OBJECTS_NAME, PATH).await?;
        let objects = manager.get_managed_objects().await?;
        if objects.len() != 1 {
            trial.ledger.fault("ObjectManager lists the objects", format_args!("{} instead of 1", objects.len()));
        }
        server.remove::<Item, _>(item.as_str()).await?;
        for due in ["PropertiesChanged", "InterfacesAdded", "InterfacesRemoved"] {
            let next = async {
                let message = seen.next().await.context("end of stream")??;
                let header = message.header();
                let member = header.member().map(ToString::to_string).unwrap_or_default();
                ensure!(member == due, "{member} where {due} was due, at {value}");
                Ok(())
            };
            let outcome = timeout(Duration::from_secs(5), next).await.context("nothing within 5 s").and_then(|r| r);
            trial.ledger.check("change signals of objects", outcome);
        }
    }
    Ok(())
}

/// A name that goes from one connection to another; a third one watches its owners.
async fn names(trial: &Trial) -> Result<()> {
    const SHARED: &str = "org.shipote.Trial1.Shared";
    let watcher = trial.connect().await?;
    let driver = DBusProxy::new(&watcher).await?;
    let mut changes = driver.receive_name_owner_changed_with_args(&[(0, SHARED)]).await?;
    let mut tick = interval(Duration::from_millis(50));
    while trial.running() {
        tick.tick().await;
        let outcome = async {
            let first = trial.connect().await?;
            let second = trial.connect().await?;
            let queue = zbus::fdo::RequestNameFlags::ALLOW_REPLACEMENT;
            DBusProxy::new(&first).await?.request_name(SHARED.try_into()?, queue).await?;
            DBusProxy::new(&second).await?.request_name(SHARED.try_into()?, queue).await?;
            // The first one goes without a word: the second one is next in the queue.
            let owners = [first.unique_name().cloned(), second.unique_name().cloned(), None];
            first.close().await?;
            for (at, due) in owners.iter().enumerate() {
                if at == 2 {
                    DBusProxy::new(&second).await?.release_name(SHARED.try_into()?).await?;
                }
                let change = timeout(Duration::from_secs(5), changes.next()).await?.context("end of stream")?;
                let owner = change.args()?.new_owner.as_ref().map(ToString::to_string);
                ensure!(owner == due.as_ref().map(ToString::to_string), "owner {owner:?}, not {due:?}");
            }
            Ok::<_, anyhow::Error>(())
        };
        trial.ledger.check("a name's owners in order", outcome.await);
    }
    Ok(())
}

/// A call to a name that nobody owns must fail at once: clients rely on it to tell that a service is down.
async fn unowned(trial: &Trial) -> Result<()> {
    let bus = trial.connect().await?;
    let mut tick = interval(Duration::from_secs(1));
    while trial.running() {
        tick.tick().await;
        for name in ["org.shipote.Trial1.Nobody", ":9.999999"] {
            let call = bus.call_method(Some(name), "/", Some("org.shipote.None"), "None", &());
            let outcome = match timeout(Duration::from_secs(1), call).await {
                Ok(Err(zbus::Error::FDO(e)))
                    if matches!(*e, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_)) =>
                {
                    Ok(())
                }
                Ok(other) => Err(format!("{other:?}")),
                Err(_) => Err(format!("call to {name} without an answer for a second")),
            };
            trial.ledger.check("a call to an unowned name fails at once", outcome);
        }
    }
    Ok(())
}
