//! A command in a machine: its input, output and terminal, over the agent's protocol.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use shipote_agent_protocol::session::{self, STATUS_FAILED, Session};
use shipote_agent_protocol::{AgentRequest, AgentResponse, ports, read_message, write_message};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};

use super::image::Source;
use super::life::{Size, begin, end};
use super::{machines, open, refusal};
use crate::spec::key_value;
use crate::{output, units};

/// How long a machine that was made for one command may take to power off.
const GRACE_MS: u64 = 3_000;

/// What is run.
#[derive(Debug, Args)]
pub(super) struct What {
    /// Give it a terminal of the machine's own
    #[arg(short, long)]
    tty: bool,
    /// Environment
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Working folder
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// End it after this time: 90s, 1m30s, or seconds
    #[arg(long, value_name = "TIME", value_parser = units::some_seconds)]
    timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// Machine
    name: String,
    /// Image of the machine to run it in [default: the agent's own root]
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    what: What,
    /// Program and arguments
    #[arg(required_unless_present = "image", trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    size: Size,
    /// Machine's name [default: one of its own]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    what: What,
    /// Program and arguments [default, with --image or --rootfs: what that names, or a shell]
    #[arg(required_unless_present_any = ["image", "rootfs"], trailing_var_arg = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) async fn exec(args: &ExecArgs) -> ExitCode {
    let outcome = async {
        let machines = machines().await?;
        let request = args.what.request(args.image.clone(), args.command.clone())?;
        attend(open(&machines, &args.name, ports::AGENT_CONTROL).await?, &request).await
    };
    leave(outcome.await)
}

/// A command in a running machine, or one that sleeps; leaves with its status.
pub(crate) async fn exec_session(name: &str, session: Session) -> ExitCode {
    let outcome = async {
        let stream = open(&machines().await?, name, ports::AGENT_CONTROL).await?;
        attend(stream, &session.request()).await
    };
    leave(outcome.await)
}

pub(super) async fn run(args: &RunArgs) -> ExitCode {
    leave(run_in_new(args).await)
}

async fn run_in_new(args: &RunArgs) -> anyhow::Result<u8> {
    let machines = machines().await?;
    let name = args.name.clone().unwrap_or_else(|| format!("run-{}", std::process::id()));
    // The machine must go whatever ends us: from here on signals are ours to handle.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let spec = args.size.spec_with(&args.source.egress());
    machines.create(&name, &spec, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    let work = async {
        begin(&machines, &name).await?;
        let image = args.source.import(&machines, &name).await?;
        let request = args.what.request(image, args.command.clone())?;
        attend(open(&machines, &name, ports::AGENT_CONTROL).await?, &request).await
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Ok(130),
        _ = terminate.recv() => Ok(143),
    };
    // One that has ended by itself needs no end; removing it says whatever else is wrong.
    let _ = end(&machines, &name, GRACE_MS).await;
    machines.delete(&name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    outcome
}

/// Leaves at once: tokio would wait for the thread that reads standard input.
fn leave(outcome: anyhow::Result<u8>) -> ExitCode {
    let status = outcome.unwrap_or_else(|error| {
        eprintln!("shipote: {}", output::readable(&format!("{error:#}")));
        STATUS_FAILED
    });
    let _ = std::io::stdout().flush();
    std::process::exit(status.into())
}

impl What {
    /// The request for it: in an image, else in the agent's own root.
    fn request(&self, image: Option<String>, command: Vec<String>) -> anyhow::Result<AgentRequest> {
        let timeout_ms = self.timeout.and_then(units::millis);
        let mut env = self.env.clone();
        if let (true, Ok(term)) = (self.tty, std::env::var("TERM")) {
            env.insert(0, ("TERM".to_owned(), term));
        }
        let (workdir, tty) = (self.cwd.clone(), self.tty);
        Ok(Session { command, image, env, workdir, timeout_ms, tty }.request())
    }
}

/// Runs a command on a connection to its end; gives its exit status.
async fn attend(stream: UnixStream, request: &AgentRequest) -> anyhow::Result<u8> {
    let tty = matches!(request, AgentRequest::VmExec { tty: true, .. } | AgentRequest::Run { tty: true, .. });
    let (mut reader, mut writer) = stream.into_split();
    write_message(&mut writer, request).await?;
    match read_message(&mut reader).await? {
        Some(AgentResponse::Started) => {}
        Some(AgentResponse::Error { message, code }) => {
            eprintln!("shipote: {}", output::readable(&message));
            return Ok(session::status_of_refusal(code.as_deref(), &message));
        }
        _ => bail!("exec: the machine's agent went away"),
    }
    let raw = if tty { RawTerminal::enter()? } else { None };
    let feeding = tokio::spawn(feed(writer, tty));
    // A reader of ours that went away ends the command: without us the agent kills it.
    let outcome = session::show(&mut reader, std::io::stdout(), std::io::stderr()).await;
    feeding.abort();
    drop(raw);
    outcome.context("exec")
}

/// Passes on standard input and the terminal's size.
async fn feed(mut writer: OwnedWriteHalf, tty: bool) -> anyhow::Result<()> {
    let mut input = session::input()?;
    let mut resized = signal(SignalKind::window_change())?;
    if tty {
        write_message(&mut writer, &size()).await?;
    }
    loop {
        tokio::select! {
            Some(data) = input.recv() => {
                // What ends input of a terminal is typed, it isn't the end of ours; empty data ends a pipe.
                let data = if tty && data.is_empty() { vec![4] } else { data };
                write_message(&mut writer, &AgentRequest::Stdin { data }).await?;
            }
            _ = resized.recv(), if tty => write_message(&mut writer, &size()).await?,
            // The connection stays: closing it would end the command.
            else => std::future::pending().await,
        }
    }
}

fn size() -> AgentRequest {
    let known = [tcgetwinsize(std::io::stdout()), tcgetwinsize(std::io::stdin())];
    // A terminal that was never told its size says 0.
    let size = known.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    let (cols, rows) = size.map_or((80, 24), |size| (size.ws_col, size.ws_row));
    AgentRequest::Resize { cols, rows }
}

/// Our terminal in raw mode, until dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    /// `None` where standard input is no terminal.
    fn enter() -> anyhow::Result<Option<Self>> {
        let Ok(saved) = tcgetattr(std::io::stdin()) else { return Ok(None) };
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("put the terminal into raw mode")?;
        Ok(Some(Self(saved)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}
