//! `org.shipote.Machines1.Manager`, at the root object: authorise, convert, one message to the actor.

mod changes;
mod convert;
mod egress;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shipote_agent_protocol::Reach;
use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::machines::{MachineDetails, MachineInfo, MachinesError, SnapshotInfo};
use shipote_bus::service::MechanismInfo;
use shipote_machines::Error;
use shipote_machines::actor::Handle;
use shipote_machines::launcher::Qemu;
use shipote_machines::published::{self, Published};
use shipote_machines::snapshots::Snapshots;
use shipote_machines::spec::Spec;
use shipote_machines::{ssh_agent, take};
use shipote_service::{Authority, Caller, mechanism_info};
use zbus::OwnedVariant;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use convert::{details, info, refusal, snapshot_info};

pub(crate) use changes::publish;
pub(crate) use egress::Egress;

/// polkit: everything about machines.
const ACTION: &str = "org.shipote.machines.manage";
/// polkit: running commands in machines, which whoever speaks to the agent can.
const ACTION_EXEC: &str = "org.shipote.machines.exec";
/// polkit: reaching what machines publish.
const ACTION_CONNECT: &str = "org.shipote.machines.connect";
/// How long after a machine is ready what it runs may take until it listens.
const SETTLE: Duration = Duration::from_secs(20);
/// The pauses between two attempts meanwhile: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Longest spec, bytes.
const SPEC_MAX: usize = 64 * 1024;

type Options = HashMap<String, OwnedVariant>;

/// Option of `Create`: the snapshot that the machine begins as.
const FROM: &str = "from";

/// The root object.
pub(crate) struct Manager {
    pub(crate) snapshots: Snapshots,
    /// Folder of the machines' disks.
    pub(crate) state: PathBuf,
    pub(crate) launcher: Qemu,
    pub(crate) actor: Handle,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

impl Manager {
    async fn authorise(&self, header: &Header<'_>, options: &Options) -> Result<Caller, MachinesError> {
        self.authorise_for(ACTION, header, options).await
    }

    async fn authorise_for(
        &self,
        action: &str,
        header: &Header<'_>,
        options: &Options,
    ) -> Result<Caller, MachinesError> {
        known(options, None)?;
        self.allow(action, header).await
    }

    async fn allow(&self, action: &str, header: &Header<'_>) -> Result<Caller, MachinesError> {
        allow(&self.authority, action, header).await
    }

    /// Whether what a machine runs was started so short a time ago that it may only be about to listen.
    async fn may_listen_soon(&self, name: &str) -> bool {
        let inspected = self.actor.inspect(name).await;
        inspected.is_ok_and(|machine| machine.shown.spec.run.is_some() && machine.up.is_some_and(|up| up < SETTLE))
    }

    async fn audited<T>(
        &self,
        event: Event,
        name: &str,
        caller: Caller,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, MachinesError> {
        audited(&self.audit, event, name, caller, work).await
    }
}

/// Who asks, if polkit lets them.
async fn allow(authority: &Authority, action: &str, header: &Header<'_>) -> Result<Caller, MachinesError> {
    authority.check(header, action).await.map_err(|error| MachinesError::NotAuthorized(error.to_string()))
}

/// Does a mutation with its audit record: refused before it starts where records are required and cannot be taken.
async fn audited<T>(
    audit: &Audit,
    event: Event,
    object: &str,
    caller: Caller,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, MachinesError> {
    audit.ready().map_err(|error| MachinesError::AuditUnavailable(error.to_string()))?;
    let result = work.await;
    let record = Record::new(event, object, caller.uid, Door::Bus).outcome(&result);
    if let Err(error) = audit.record(&record) {
        tracing::error!("record {event:?} of {object}: {error}");
    }
    result.map_err(refusal)
}

#[zbus::interface(name = "org.shipote.Machines1.Manager")]
impl Manager {
    /// Defines a machine. `spec` is TOML (`memory_mib`, `memory_target_mib`, `cpus`, `board`, `disk_mib`, `egress`, `egress_ask`,
    /// `ssh_agent`, `publish`, `volumes`, `restart`, `expires_unix`, `labels`, `run`, `idle`, `health`), empty for the
    /// defaults. Option `from` (string): the snapshot that it begins as; `spec` then says what is otherwise.
    async fn create(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        spec: &str,
        mut options: Options,
    ) -> Result<(), MachinesError> {
        let from = match options.remove(FROM).map(String::try_from) {
            None => None,
            Some(Ok(from)) => Some(from),
            Some(Err(_)) => return Err(MachinesError::InvalidArgument(format!("option {FROM}: it is no string"))),
        };
        let caller = self.authorise(&header, &options).await?;
        if spec.len() > SPEC_MAX {
            return Err(MachinesError::InvalidSpec(format!("a spec of {} bytes; the limit is {SPEC_MAX}", spec.len())));
        }
        if let Some(from) = from {
            let creating = take::create(&self.actor, &self.snapshots, &self.state, name, spec, &from);
            return self.audited(Event::MachineCreate, name, caller, creating).await;
        }
        let spec = Spec::parse(name, spec).map_err(refusal)?;
        let creating = async {
            ssh_agent::check(name, &spec).await?;
            self.actor.create(name, spec.clone()).await
        };
        self.audited(Event::MachineCreate, name, caller, creating).await
    }

    /// Starts a machine. Returns when it is being started; `StateChanged` tells that it runs, or why it failed. No
    /// options yet.
    async fn start(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        self.audited(Event::MachineStart, name, caller, self.actor.start_machine(name)).await
    }

    /// Asks a machine to power off; after `grace_ms` milliseconds it is killed. Returns at once; `StateChanged` tells of
    /// the end. No options yet.
    async fn stop(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        grace_ms: u64,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        let grace = Duration::from_millis(grace_ms);
        self.audited(Event::MachineStop, name, caller, self.actor.stop(name, grace)).await
    }

    /// Stops a machine's processors until `Resume`; `StateChanged` tells that they stand still. Its memory stays where it
    /// is. No options yet.
    async fn pause(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        self.audited(Event::MachinePause, name, caller, self.actor.pause(name, true)).await
    }

    /// Has a paused machine's processors go on; `StateChanged` tells that they do. No options yet.
    async fn resume(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        self.audited(Event::MachineResume, name, caller, self.actor.pause(name, false)).await
    }

    /// What a machine takes of the host, and how its processes are confined. No options yet.
    #[zbus(out_args("details"))]
    async fn inspect(&self, name: &str, options: Options) -> Result<MachineDetails, MachinesError> {
        known(&options, None)?;
        let inspected = self.actor.inspect(name).await.map_err(refusal)?;
        Ok(details(name, inspected))
    }

    /// Removes a machine that does not run. No options yet.
    async fn delete(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        self.audited(Event::MachineDelete, name, caller, self.actor.remove(name)).await
    }

    /// Lists the machines by name. No options yet.
    #[zbus(out_args("machines"))]
    async fn list(&self, options: Options) -> Result<Vec<MachineInfo>, MachinesError> {
        known(&options, None)?;
        Ok(self.actor.list().await.map_err(refusal)?.into_iter().map(info).collect())
    }

    /// Takes a snapshot of a machine's disk, to be called `snapshot`. One that runs first writes what it has to write, and
    /// stands still while its disk is copied; returns when that is done. No options yet.
    #[zbus(out_args("taken"))]
    async fn snapshot(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        snapshot: &str,
        options: Options,
    ) -> Result<SnapshotInfo, MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        let taking = take::snapshot(&self.actor, &self.snapshots, name, snapshot);
        let object = format!("{name} {snapshot}");
        let taken = self.audited(Event::MachineSnapshot, &object, caller, taking).await?;
        Ok(snapshot_info(&self.snapshots, snapshot.to_owned(), taken))
    }

    /// Lists the snapshots by name. No options yet.
    #[zbus(out_args("snapshots"))]
    async fn list_snapshots(&self, options: Options) -> Result<Vec<SnapshotInfo>, MachinesError> {
        known(&options, None)?;
        let snapshots = self.snapshots.clone();
        let list = move || {
            let all = snapshots.list().into_iter();
            all.map(|(name, snapshot)| snapshot_info(&snapshots, name, snapshot)).collect()
        };
        tokio::task::spawn_blocking(list).await.map_err(|error| MachinesError::Failed(error.to_string()))
    }

    /// Removes a snapshot; machines that were made of it have disks of their own. No options yet.
    async fn delete_snapshot(
        &self,
        #[zbus(header)] header: Header<'_>,
        snapshot: &str,
        options: Options,
    ) -> Result<(), MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        let (snapshots, name) = (self.snapshots.clone(), snapshot.to_owned());
        let removing = async {
            tokio::task::spawn_blocking(move || snapshots.remove(&name)).await.unwrap_or(Err(Error::Stopping))
        };
        self.audited(Event::MachineSnapshotDelete, snapshot, caller, removing).await
    }

    /// Connects to a vsock port of a running machine: a stream socket that speaks it raw. On the agent's port (6000) the
    /// connection is greeted already, so that any client of the agent's protocol can use it. A machine that sleeps is
    /// woken first, one that is being started waited for. No options yet.
    #[zbus(out_args("socket"))]
    async fn connect(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        port: u32,
        options: Options,
    ) -> Result<zbus::OwnedFd, MachinesError> {
        let caller = self.authorise_for(ACTION_EXEC, &header, &options).await?;
        let connecting = async {
            let stream = self.actor.awake(name, true).await?.connect(port).await?;
            // Whoever gets it expects reads to wait.
            let plain = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
            plain.map(OwnedFd::from).map_err(Error::io("hand over the connection to", name))
        };
        let socket = self.audited(Event::MachineRun, name, caller, connecting).await?;
        Ok(socket.into())
    }

    /// Connects to a TCP port that a running machine publishes, inside the guest: a connected stream socket that carries
    /// the plain bytes, half-close too. A machine that sleeps is woken first, one that is being started waited for, and
    /// what its spec has it `run` gets a moment to listen; with the option `wake` (b) false it is left asleep, and the
    /// call refused. Whoever may call this reaches what is published, of every machine, and nothing else.
    #[zbus(out_args("socket"))]
    async fn reach(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        port: u16,
        options: Options,
    ) -> Result<zbus::OwnedFd, MachinesError> {
        known(&options, Some("wake"))?;
        let wake = match options.get("wake").map(bool::try_from) {
            None => true,
            Some(Ok(wake)) => wake,
            Some(Err(_)) => return Err(MachinesError::InvalidArgument("option wake: has to be true or false".into())),
        };
        self.allow(ACTION_CONNECT, &header).await?;
        let inspected = self.actor.inspect(name).await.map_err(refusal)?;
        let target = Reach::Tcp { port };
        let is_it = |text: &String| Published::parse(text).is_ok_and(|published| published.guest == target);
        if !inspected.shown.spec.publish.iter().any(is_it) {
            return Err(MachinesError::InvalidArgument(format!(
                "machine {name} does not publish port {port}; name it in `publish` of its spec, or by `shipote machine publish`"
            )));
        }
        let guest = self.actor.awake(name, wake).await.map_err(refusal)?;
        let mut pause = PAUSES.0;
        let socket = loop {
            match published::connect(&guest, &target).await {
                Err(Error::Connect { .. }) if self.may_listen_soon(name).await => tokio::time::sleep(pause).await,
                done => break done.map_err(refusal)?,
            }
            pause = (pause * 2).min(PAUSES.1);
        };
        Ok(OwnedFd::from(socket).into())
    }

    /// How far machines can be isolated on this host and what their processors are: name, `enforced`, `degraded` or
    /// `missing`, and the reason. Found out by trying, at the first call.
    #[zbus(out_args("mechanisms"))]
    async fn capabilities(&self) -> Vec<MechanismInfo> {
        self.launcher.capabilities().await.iter().map(mechanism_info).collect()
    }

    /// Has a machine publish more (`GUEST`, or `HOST:GUEST` where it does not run) from now on, and what it publishes no
    /// more; open connections go on. Returns what it publishes now. No options yet.
    #[zbus(out_args("published"))]
    async fn publish(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        add: Vec<String>,
        remove: Vec<String>,
        options: Options,
    ) -> Result<Vec<String>, MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        let event = if add.is_empty() { Event::MachineUnpublish } else { Event::MachinePublish };
        self.audited(event, name, caller, self.actor.change_published(name, add, remove)).await
    }

    /// Asks the guest of a machine to make do with `bytes` of its memory (whole MiB; 0: it may have all), in this life and
    /// the next ones: the rest goes back to the host. A guest does that in its own time; `Inspect` says what it has.
    /// Returns what it is to have. No options yet.
    #[zbus(out_args("target"))]
    async fn set_memory(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        bytes: u64,
        options: Options,
    ) -> Result<u64, MachinesError> {
        let caller = self.authorise(&header, &options).await?;
        self.audited(Event::MachineChange, name, caller, self.actor.set_memory(name, bytes)).await
    }

    /// What a connection to a running machine's workload ports (5000 and 5001) begins with: the `token` of `Auth`. No
    /// options yet.
    #[zbus(out_args("token"))]
    async fn workload_token(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<String, MachinesError> {
        self.authorise(&header, &options).await?;
        let guest = self.actor.guest(name).await.map_err(refusal)?;
        Ok(shipote_agent_protocol::workload_token(&guest.secret))
    }

    /// The end of a machine's console, of this life or the last (64 KiB at most), as a pipe. No options yet.
    #[zbus(out_args("text"))]
    async fn console(
        &self,
        #[zbus(header)] header: Header<'_>,
        name: &str,
        options: Options,
    ) -> Result<zbus::OwnedFd, MachinesError> {
        self.authorise(&header, &options).await?;
        let text = self.actor.console(name).await.map_err(refusal)?;
        let pipe = || -> std::io::Result<OwnedFd> {
            let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            // No more than the pipe holds: this cannot block.
            let holds = rustix::pipe::fcntl_getpipe_size(&writer)?;
            let mut rest = &text[text.len().saturating_sub(holds)..];
            while !rest.is_empty() {
                rest = &rest[rustix::io::write(&writer, rest)?..];
            }
            Ok(reader)
        };
        pipe().map(Into::into).map_err(|error| MachinesError::Failed(format!("console of {name}: {error}")))
    }

    /// A machine that is looked after does otherwise than before: `starting`, `healthy` or `unhealthy`, and why.
    #[zbus(signal)]
    async fn health_changed(
        emitter: &SignalEmitter<'_>,
        name: String,
        health: String,
        reason: String,
    ) -> zbus::Result<()>;

    /// A machine came into another state; `reason` says why it ended.
    #[zbus(signal)]
    async fn state_changed(
        emitter: &SignalEmitter<'_>,
        name: String,
        state: String,
        reason: String,
    ) -> zbus::Result<()>;
}

/// Refuses options other than this one.
fn known(options: &Options, only: Option<&str>) -> Result<(), MachinesError> {
    match (options.keys().find(|name| Some(name.as_str()) != only), only) {
        (None, _) => Ok(()),
        (Some(name), None) => Err(MachinesError::InvalidArgument(format!("option {name}: there is none of this name"))),
        (Some(name), Some(only)) => Err(MachinesError::InvalidArgument(format!("option {name}: there is only {only}"))),
    }
}
