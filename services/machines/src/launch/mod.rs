//! One machine's life as the service sees it: a keeper with a machine, the first answer, orders, the end.

mod keeper;
mod life;
mod sockets;
mod start;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use shipote_agent_protocol::write_message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::console::Console;
use crate::groups::{Group, Groups};
use crate::guest::Guest;
use crate::health::Health;
use crate::image::Image;
use crate::keeper::wire::{self, Hello};
use crate::kept::KeptWays;
use crate::lifeline::Lifeline;
use crate::published::Door;
use crate::spec::Spec;
use crate::users::Users;
use crate::vmm::host::Host;
use crate::way::Way;
use keeper::{Watched, watch_process};
use life::Life;
use sockets::knocker;
use start::start;

pub(crate) use keeper::end_keeper;
pub use keeper::find_keeper;
pub(crate) use sockets::{dialled, listener};

/// How long the processes of a machine may take to be gone once they were killed.
const END_TIME: Duration = Duration::from_secs(10);

/// What a machine's task is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ask the guest to power off.
    PowerOff,
    /// Kill it.
    Kill,
    /// Stop its processors.
    Pause,
    /// Have them go on.
    Resume,
    /// Stop them for a moment, or have them go on unless they are stopped otherwise.
    Hold(bool),
    /// Have its guest make do with so many MiB of its memory.
    Memory(u32),
    /// Let it go on by itself: the service ends and will be back.
    Leave,
}

/// What a machine's task tells.
#[derive(Debug)]
pub enum Report {
    /// Its processes, how they are confined, and what limits them.
    Started(Box<Hello>, Option<Group>),
    /// Where it is always to be seen how many bytes of its memory its guest has.
    Memory(Arc<AtomicU64>),
    /// It goes out this way.
    GoesOut(Arc<Way>),
    /// The agent answers.
    Ready(Guest),
    /// Its processors stand still, or go on.
    Paused(bool),
    /// What [`Order::Hold`] wanted has been done. `false` as the answer to `true`: its keeper cannot.
    Held(bool),
    /// It does what it is for, or doesn't.
    Health(Health),
    /// Somebody connects to a port of the host.
    Wanted,
    /// All processes are gone. `clean` where the guest powered off.
    Exited {
        /// The guest ended by itself.
        clean: bool,
        /// Why, in words.
        reason: String,
    },
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name.
    pub name: String,
    /// Spec.
    pub spec: Spec,
    /// Kernel and the rest.
    pub image: Image,
    /// What guests run on.
    pub host: Host,
    /// How long the machine goes on without a service.
    pub lease: Duration,
    /// Its disk, if it has one.
    pub disk: Option<PathBuf>,
    /// Folders beneath which those lie that it may have as volumes.
    pub shared: Vec<PathBuf>,
    /// Control groups.
    pub groups: Groups,
    /// Users.
    pub users: Users,
}

/// A machine's name, folder and console, whoever started it.
#[derive(Debug, Clone)]
pub struct Place {
    /// Name.
    pub name: String,
    /// Folder of its sockets.
    pub folder: PathBuf,
    /// Where its console is kept.
    pub console: Console,
    /// The program that its keeper is: the service's own.
    pub program: PathBuf,
    /// What its keeper watches beside the service's own connection.
    pub lifeline: Option<Arc<Lifeline>>,
    /// What it may reach, what it publishes, and the rest.
    pub spec: Spec,
    /// The file that its keeper's token lies in.
    pub token: PathBuf,
    /// What limits it, once it is there.
    pub group: Option<Group>,
    /// Whether the proxy is there, which lets it out.
    pub proxy: watch::Receiver<bool>,
    /// How it went out before it was taken over, where that was kept.
    pub way: Option<Arc<Way>>,
    /// Ways out that outlast this service.
    pub ways: KeptWays,
}

/// Starts a machine and follows it to its end, or until it is left. There is at most one [`Report::Exited`], and it is
/// the last.
pub async fn run(plan: Plan, mut place: Place, orders: mpsc::UnboundedReceiver<Order>, report: impl Fn(Report)) {
    let group = plan.groups.make(&plan.name, &plan.spec);
    let started = async {
        place.group = group?;
        // A port that is taken is known before anything runs.
        let doors = Door::open(&place.spec.publish).await?;
        start(&plan, &place).await.map(|(link, keeper, knocked)| Started { link, keeper, knocked, doors })
    };
    let started = started.await;
    follow(place, started, false, orders, report).await;
}

/// Takes over a machine that an earlier service started.
pub async fn adopt(
    stream: std::os::unix::net::UnixStream,
    place: Place,
    orders: mpsc::UnboundedReceiver<Order>,
    report: impl Fn(Report),
) {
    let doors = Door::open(&place.spec.publish).await.unwrap_or_else(|error| {
        tracing::error!("machine {} runs, but none of its ports is published: {error}", place.name);
        vec![]
    });
    let adopting = async {
        // One that nobody can speak to any more is of no use to anybody.
        let token = std::fs::read_to_string(&place.token).inspect_err(|_| end_keeper(&stream))?;
        stream.set_nonblocking(true)?;
        let mut link = UnixStream::from_std(stream)?;
        write_message(&mut link, &wire::Order::Adopt { token }).await.map_err(std::io::Error::other)?;
        let keeper = link.peer_cred()?.pid().and_then(watch_process);
        Ok(Started { link, keeper, knocked: knocker(&place.folder)?, doors })
    };
    let adopted = adopting.await.map_err(Error::io("take over", format!("machine {}", place.name)));
    follow(place, adopted, true, orders, report).await;
}

/// A machine whose keeper is there.
struct Started {
    link: UnixStream,
    /// The keeper's process. Its child's, or that of the connection's other end: of a pair of sockets that this service
    /// made, that would be itself.
    keeper: Option<Watched>,
    knocked: UnixListener,
    doors: Vec<Door>,
}

async fn follow(
    place: Place,
    started: Result<Started, Error>,
    adopted: bool,
    mut orders: mpsc::UnboundedReceiver<Order>,
    report: impl Fn(Report),
) {
    let mut processes = Vec::new();
    let end = match started {
        Ok(Started { link, keeper, knocked, doors }) => {
            processes.extend(keeper);
            let (reader, link) = link.into_split();
            let life = Life { place: &place, knocked, doors, link, orders: &mut orders, report: &report, adopted };
            life.run(reader, &mut processes).await
        }
        Err(error) => Some((false, error.to_string())),
    };
    let Some((clean, mut reason)) = end else { return };
    place.ways.forget(&place.name);
    if let Some(breach) = place.group.as_ref().filter(|_| !clean).and_then(Group::breach) {
        reason = format!("{breach} ({reason})");
    }
    for process in processes {
        if tokio::time::timeout(END_TIME, process.readable()).await.is_err() {
            tracing::error!("machine {}: a process of it does not end", place.name);
        }
    }
    if let Some(group) = place.group.clone() {
        // Nobody waits for it in vain: the machine's name is free for its next life only then.
        let _ = tokio::task::spawn_blocking(move || group.end()).await;
    }
    match std::fs::remove_dir_all(&place.folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("remove {}: {error}", place.folder.display());
        }
        _ => {}
    }
    report(Report::Exited { clean, reason });
}
