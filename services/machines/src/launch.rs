//! One machine's life as the service sees it: a keeper with a machine, the first answer, orders, the end.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use shipote_agent_protocol::{AgentRequest, AgentResponse, ports, read_message, write_message};
use shipote_bus::paths::LIFELINE_ENV;
use shipote_confinement::Mechanism;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::Command;
use tokio::sync::{mpsc, watch};

use crate::Error;
use crate::console::Console;
use crate::groups::{Group, Groups};
use crate::guest::Guest;
use crate::health::{self, Health};
use crate::image::Image;
use crate::keeper::wire::{self, Event, Hello, Launch};
use crate::keeper::{ARGUMENT, SOCKET};
use crate::lifeline::Lifeline;
use crate::published::{Awake, Door};
use crate::relay;
use crate::spec::Spec;
use crate::users::Users;
use crate::vmm::host::Host;
use crate::vmm::qemu;
use crate::way::{self, Way};

/// How long a keeper may take to say that it is there. It starts the vsock device meanwhile.
const KEEPER_TIME: Duration = Duration::from_secs(60);
/// How long the processes of a machine may take to be gone once they were killed.
const END_TIME: Duration = Duration::from_secs(10);
/// How long a guest waits after its first knock that was followed by no answer, and at most.
const KNOCK_PAUSE: Duration = Duration::from_millis(50);
const KNOCK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest path that a Unix socket can have, unix(7).
const SOCKET_PATH_MAX: usize = 107;

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

/// A process that is waited for.
type Watched = AsyncFd<rustix::fd::OwnedFd>;

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

/// The listener that a guest's knock comes to. Whoever is newest has it.
fn knocker(folder: &Path) -> std::io::Result<UnixListener> {
    listener(folder, ports::AGENT_READY)
}

/// Where what a guest dials on a port of the host arrives.
pub(crate) fn dialled(folder: &Path, port: u32) -> PathBuf {
    folder.join(qemu::VSOCK_FOLDER).join(format!("{}_{port}", qemu::VSOCK_SOCKET))
}

/// Listens for what the guest dials on a port of the host.
pub(crate) fn listener(folder: &Path, port: u32) -> std::io::Result<UnixListener> {
    let path = dialled(folder, port);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

async fn start(plan: &Plan, place: &Place) -> Result<(UnixStream, Option<Watched>, UnixListener), Error> {
    let folder = &place.folder;
    let _ = std::fs::remove_dir_all(folder);
    let sockets = folder.join(qemu::VSOCK_FOLDER);
    // The folders above may be missing too.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&sockets)
        .map_err(Error::io("create", sockets.display()))?;
    let longest = dialled(folder, ports::AGENT_READY);
    if longest.as_os_str().len() > SOCKET_PATH_MAX {
        let problem = format!("its socket {} would have too long a path; give it a shorter name", longest.display());
        return Err(Error::InvalidSpec { name: plan.name.clone(), problem });
    }
    let knocked = knocker(folder).map_err(Error::io("listen on", longest.display()))?;
    if let Some(disk) = &plan.disk {
        crate::disk::ensure(disk, plan.spec.disk_mib).await?;
    }
    let invalid = |problem: String| Error::InvalidSpec { name: plan.name.clone(), problem };
    let volumes = plan.spec.volumes().map_err(invalid)?;
    if let Some(volume) = volumes.iter().find(|volume| !volume.is_beneath(&plan.shared)) {
        return Err(Error::NotShared(volume.host.clone()));
    }
    let in_guest: Vec<_> = (volumes.iter().enumerate())
        .map(|(n, volume)| {
            let (tag, path) = (crate::volumes::tag(n), &volume.guest);
            serde_json::json!({"tag": tag, "path": path, "read_only": volume.read_only})
        })
        .collect();
    let (secret, token) = (secret()?, secret()?);
    keep_token(&place.token, &token).map_err(Error::io("write", place.token.display()))?;
    let (users, image, accelerator) = (plan.users.clone(), plan.image.clone(), plan.host.accelerator.clone());
    let user = tokio::task::spawn_blocking(move || users.take(&image, &accelerator)).await;
    let user = user.map_err(|error| Error::io("find a user for", &plan.name)(std::io::Error::other(error)))?;
    let launch = Launch {
        name: plan.name.clone(),
        folder: folder.clone(),
        image: plan.image.clone(),
        arguments: qemu::arguments(&plan.host, &plan.spec),
        disk: plan.disk.clone(),
        user,
        volumes,
        group: place.group.as_ref().map(Group::machine),
        settings: serde_json::json!({
            "hostname": plan.name,
            "secret": secret,
            "disk": plan.disk.is_some(),
            "egress": plan.spec.goes_out(),
            "ssh": plan.spec.ssh_agent.is_some(),
            "volumes": in_guest,
        })
        .to_string(),
        certificates: if plan.spec.goes_out() { certificates() } else { None },
        secret,
        token,
        lease_ms: u64::try_from(plan.lease.as_millis()).unwrap_or(u64::MAX),
    };
    let (mut link, keeper) = spawn_keeper(place)?;
    let failed = |error: shipote_agent_protocol::FrameError| Error::Io {
        operation: "start",
        object: format!("the keeper of machine {}", plan.name),
        source: std::io::Error::other(error),
    };
    write_message(&mut link, &wire::Order::Launch(Box::new(launch))).await.map_err(failed)?;
    Ok((link, keeper, knocked))
}

/// Starts a keeper. It outlives this process, which therefore only waits for it while it can.
fn spawn_keeper(place: &Place) -> Result<(UnixStream, Option<Watched>), Error> {
    let failed = || Error::io("start the keeper", place.program.display());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
    let mut command = Command::new(&place.program);
    command.arg(ARGUMENT).arg(&place.folder).stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    command.stdout(Stdio::null());
    if let Some(lifeline) = place.lifeline.clone() {
        command.env(LIFELINE_ENV, lifeline.as_fd().as_raw_fd().to_string());
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that it owns a share of.
        unsafe {
            command.pre_exec(move || Ok(rustix::io::fcntl_setfd(&*lifeline, rustix::io::FdFlags::empty())?));
        }
    }
    if let Some(group) = &place.group {
        let file = std::fs::File::options().write(true).open(group.keeper()).map_err(failed())?;
        // SAFETY: between fork and exec the closure makes one system call, on a descriptor that it owns.
        unsafe {
            command.pre_exec(move || Ok(rustix::io::write(&file, b"0").map(drop)?));
        }
    }
    let mut child = command.spawn().map_err(failed())?;
    let keeper = child.id().and_then(|pid| watch_process(i32::try_from(pid).ok()?));
    tokio::spawn(async move { child.wait().await });
    ours.set_nonblocking(true).map_err(failed())?;
    Ok((UnixStream::from_std(ours).map_err(failed())?, keeper))
}

/// Asks for the keeper of a machine that an earlier service started; `None` where there is none any more.
#[must_use]
pub fn find_keeper(folder: &Path) -> Option<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(folder.join(SOCKET)).ok()
}

/// Ends a keeper that no service can speak to, and its machine with it.
pub(crate) fn end_keeper(link: &std::os::unix::net::UnixStream) {
    let killed = rustix::net::sockopt::socket_peercred(link)
        .and_then(|peer| pidfd_open(peer.pid, PidfdFlags::empty()))
        .and_then(|keeper| pidfd_send_signal(&keeper, Signal::KILL));
    if let Err(error) = killed {
        tracing::error!("end a keeper: {error}");
    }
}

/// A machine between its start (or adoption) and its end.
struct Life<'a, R> {
    place: &'a Place,
    knocked: UnixListener,
    /// What it publishes, until it is ready and they are opened.
    doors: Vec<Door>,
    link: OwnedWriteHalf,
    orders: &'a mut mpsc::UnboundedReceiver<Order>,
    report: &'a R,
    adopted: bool,
}

impl<R: Fn(Report)> Life<'_, R> {
    /// How it ended; `None` where it was left to itself.
    async fn run(mut self, reader: OwnedReadHalf, processes: &mut Vec<Watched>) -> Option<(bool, String)> {
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
        if balloons && (self.adopted || self.place.spec.memory_target_mib.is_some()) {
            order(&mut self.link, &wire::Order::Memory { mib: self.place.spec.memory_now_mib() }).await;
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
                    Some(Order::Memory(mib)) if balloons => {
                        order(&mut self.link, &wire::Order::Memory { mib }).await;
                    }
                    Some(Order::Memory(_)) => {}
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
        // One that was taken over goes out as it did, whatever its list has become.
        if spec.goes_out() || self.adopted && Way::was_in(folder) {
            match Way::open(folder).map(Arc::new) {
                Ok(way) => {
                    (self.report)(Report::GoesOut(Arc::clone(&way)));
                    let standing_in = way::stand_in(way, name.clone(), proxy.clone(), way::AWAY);
                    tasks.push(Task(tokio::spawn(standing_in)));
                }
                Err(error) => tracing::error!("machine {name}: open its way out: {error}"),
            }
        }
        if let Some(socket) = &spec.ssh_agent {
            match listener(folder, ports::SSH_AGENT) {
                Ok(listener) => {
                    tasks.push(Task(tokio::spawn(relay::socket(listener, name.clone(), socket.clone()))));
                }
                Err(error) => tracing::error!("machine {name}: listen for the SSH agent's clients: {error}"),
            }
        }
        tasks
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

/// The certificates that this host knows others by, which its guests then do too.
fn certificates() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    named.into_iter().chain(known.map(PathBuf::from)).find(|path| path.is_file())
}

/// Tells the keeper. One that is gone is noticed where its events are read.
async fn order(link: &mut OwnedWriteHalf, order: &wire::Order) {
    if let Err(error) = write_message(link, order).await {
        tracing::debug!("order a keeper: {error}");
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

/// Something that becomes readable when a process is gone; `None` where it is gone already.
fn watch_process(pid: i32) -> Option<Watched> {
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::NONBLOCK).ok()?;
    // SAFETY: the AsyncFd owns the descriptor, which is therefore open, and the same one, for as long as it lives.
    unsafe { AsyncFd::register(fd) }.ok()
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

/// Keeps what a later service shows the keeper, for our user alone.
fn keep_token(path: &Path, token: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(token.as_bytes())
}

/// 256 random bits, in hexadecimal.
fn secret() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Error::io("draw", "a secret")(error.into()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
