//! `shipote machine`: microVMs. The service hands out connections to the guests' agents; what is said on them is said
//! from here.

mod copy;
mod door;
mod exec;
mod image;
mod life;
mod snapshot;

pub(crate) use exec::exec_session;
pub(crate) use life::{begin, end};

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use shipote_bus::machines::{MachinesError, MachinesProxy};
use shipote_bus::service::MechanismInfo;
use shipote_bus::{connect, error};
use tokio::net::UnixStream;
use zbus::proxy::CacheProperties;

/// How long a call may take that copies a disk.
const COPY_TIME: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub(crate) struct MachineArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a machine that is made for it and ends with it
    #[command(after_help = "Examples:\n  shipote machine run --memory 128M -- uname -a\n  \
        shipote machine run --image alpine -- cat /etc/os-release\n  \
        docker save alpine > alpine.tar; shipote machine run --image alpine.tar -- cat /etc/os-release\n  \
        shipote machine run --rootfs ./root -- /bin/sh\n\n\
        Exit status: the command's own; 128 + N if signal N ended it; 124 after --timeout; 125 if Shipote failed,\n\
        126 if the program cannot be executed, 127 if it is not there.")]
    Run(exec::RunArgs),
    /// Define a machine
    #[command(
        after_help = "Examples:\n  shipote machine create build --memory 1G --disk 4G --volume /srv/source:/source:ro\n  \
        shipote machine create web --publish 80 --idle 5m --idle-then stop -- busybox httpd -f -p 80 -h /www\n  \
        shipote machine create shop --publish 8080:80 --restart on-failure\n  \
        shipote machine create web -f web.toml --memory 512M\n  \
        shipote machine create second --from clean"
    )]
    Create {
        /// Name: 1 to 48 of a-z, 0-9 and `-`, with no `-` at either end; it is the guest's host name, where a workspace's may
        /// be almost any text
        name: String,
        /// Begin with the disk and the spec of this snapshot; options say what is otherwise
        #[arg(long, value_name = "SNAPSHOT")]
        from: Option<String>,
        /// Spec (TOML); `-` reads standard input; options say what is otherwise
        #[arg(short = 'f', long, value_name = "SPEC")]
        file: Option<PathBuf>,
        #[command(flatten)]
        size: life::Size,
        #[command(flatten)]
        run: life::Run,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Start a machine and wait until its agent answers
    Start {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have a machine power off and wait until it has
    Stop {
        /// Name
        name: String,
        /// Time until it is killed: 30s, 2m, or milliseconds
        #[arg(long, value_name = "TIME", default_value = "10s", value_parser = crate::units::milliseconds)]
        grace: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Stop a machine's processors until it is resumed
    Pause {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have a paused machine go on
    Resume {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Have a machine's guest make do with less of its memory, or give it more of that again
    #[command(after_help = "Examples:\n  shipote machine memory web 128M\n  shipote machine memory web all\n\n\
        What the guest gives up is this host's again, as soon as the guest has freed it; `shipote machine stats NAME` says\n\
        what it has. It holds for the machine's next starts, too.")]
    Memory {
        /// Name
        name: String,
        /// Size, in whole MiB: 128M, 2G; or `all` of what the machine was made with
        #[arg(value_name = "SIZE", value_parser = life::memory)]
        size: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Publish more ports of a machine, or fewer
    #[command(
        after_help = "Examples:\n  shipote machine publish web 8080\n  shipote machine publish web --remove 8080\n\n\
        A port of the host (HOST:GUEST) is opened when the machine starts: it can be changed while it does not run."
    )]
    Publish(crate::publish::PublishArgs),
    /// Take a snapshot of a machine's disk, list snapshots or remove one
    Snapshot(snapshot::SnapshotArgs),
    /// Show what a machine takes of the host, and how its processes are confined
    Stats {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a running machine
    Exec(exec::ExecArgs),
    /// Copy a file into or out of a running machine
    #[command(after_help = "Example:\n  shipote machine cp notes.txt web:/root/notes.txt\n  \
        shipote machine cp web:/etc/passwd .")]
    Cp {
        /// File, or NAME:/PATH
        from: String,
        /// File or folder, or NAME:/PATH
        to: String,
    },
    /// List machines
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the end of a machine's console
    Logs {
        /// Name
        name: String,
    },
    /// Remove a machine
    #[command(visible_alias = "remove")]
    Rm {
        /// Name
        name: String,
        /// Kill it first if it runs
        #[arg(short, long)]
        force: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Serve a local socket that speaks a port of the guest raw, until interrupted
    Agent {
        /// Name
        name: String,
        /// Vsock port
        #[arg(long, default_value_t = shipote_agent_protocol::ports::AGENT_CONTROL)]
        port: u32,
        /// Path of the socket [default: one in a new folder of the runtime folder]
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

pub(crate) async fn run(args: MachineArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run(args) => return Ok(exec::run(&args).await),
        Command::Exec(args) => return Ok(exec::exec(&args).await),
        Command::Create { name, from, file, size, run, json } => {
            let spec = life::spec(file.as_deref(), &size, &run)?;
            life::create(&name, from.as_deref(), &spec, json).await?;
        }
        Command::Memory { name, size, json } => life::set_memory(&name, size, json).await?,
        Command::Publish(args) => crate::publish::in_machine(&args).await?,
        Command::Snapshot(args) => snapshot::run(args).await?,
        Command::Start { name, json } => life::start(&name, json).await?,
        Command::Stop { name, grace, json } => life::stop(&name, grace, json).await?,
        Command::Pause { name, json } => life::pause(&name, true, json).await?,
        Command::Resume { name, json } => life::pause(&name, false, json).await?,
        Command::Stats { name, json } => life::stats(&name, json).await?,
        Command::Ls { json } => life::list(json).await?,
        Command::Logs { name } => life::logs(&name).await?,
        Command::Rm { name, force, json } => life::remove(&name, force, json).await?,
        Command::Cp { from, to } => copy::copy(&from, &to).await?,
        Command::Agent { name, port, socket } => door::serve(&name, port, socket).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Client of the machines service.
pub(crate) async fn machines() -> anyhow::Result<MachinesProxy<'static>> {
    of(connect::client().await?).await
}

/// One whose calls may take as long as a disk takes to be copied.
async fn patient_machines() -> anyhow::Result<MachinesProxy<'static>> {
    of(connect::patient_client(COPY_TIME).await?).await
}

async fn of(connection: zbus::Connection) -> anyhow::Result<MachinesProxy<'static>> {
    Ok(MachinesProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

/// How far machines can be isolated; nothing where the appliance has no service for them.
pub(crate) async fn capabilities() -> Vec<MechanismInfo> {
    let Ok(machines) = machines().await else { return vec![] };
    machines.capabilities().await.unwrap_or_default()
}

/// The text of a refusal: the service's own, whole.
pub(crate) fn refusal(refused: &MachinesError) -> anyhow::Error {
    match refused {
        MachinesError::ZBus(error) => anyhow::anyhow!("ask the machines service: {}", error::describe(error)),
        other => anyhow::anyhow!("{}", zbus::DBusError::description(other).unwrap_or("refused without a reason")),
    }
}

/// The text of a refusal of a spec, which is called by where it is from instead of by the service's word for it.
/// `changed`: the service got it otherwise than it stands there.
pub(crate) fn spec_refusal(refused: &MachinesError, source: Option<&str>, changed: bool) -> anyhow::Error {
    let text = refusal(refused).to_string();
    match (refused, source) {
        (MachinesError::InvalidSpec(_), Some(source)) if changed && text.contains(": spec:") => {
            anyhow::anyhow!("{}", crate::spec::in_changed_source(&text, "spec", source))
        }
        // What is changed may be at fault, too.
        (MachinesError::InvalidSpec(_), Some(source)) if !changed => {
            anyhow::anyhow!("{}", crate::spec::in_source(&text, "spec", source))
        }
        _ => anyhow::anyhow!(text),
    }
}

/// A file into or out of a machine.
pub(crate) async fn copy_file(from: &str, to: &str) -> anyhow::Result<()> {
    copy::copy(from, to).await
}

/// A connection to the agent of a running machine.
pub(crate) async fn agent(name: &str) -> anyhow::Result<UnixStream> {
    open(&machines().await?, name, shipote_agent_protocol::ports::AGENT_CONTROL).await
}

/// A connection to a port of a running machine.
async fn open(machines: &MachinesProxy<'_>, name: &str, port: u32) -> anyhow::Result<UnixStream> {
    let socket = machines.connect(name, port, std::collections::BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    let stream = std::os::unix::net::UnixStream::from(std::os::fd::OwnedFd::from(socket));
    stream.set_nonblocking(true)?;
    Ok(UnixStream::from_std(stream)?)
}
