//! The client of the measurements: machines over the bus, and what is said to the agents in them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::StreamExt as _;
use shipote_agent_protocol::{AgentRequest, AgentResponse, FILE_WRITE_MAX, ports, read_message, write_message};
use shipote_bus::machines::{MachinesProxy, StateChangedStream};
use tokio::runtime::{Builder, Runtime};
use zbus::proxy::CacheProperties;

/// A machine's state may take long to change where its processor is emulated.
const STATE_TIME: Duration = Duration::from_secs(180);
const CALL_TIME: Duration = Duration::from_secs(30);

/// The service.
pub(super) struct Client {
    runtime: Runtime,
    machines: MachinesProxy<'static>,
    changes: StateChangedStream,
}

impl Client {
    pub(super) fn connect(address: &str) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
        let (machines, changes) = runtime.block_on(async {
            let builder = zbus::connection::Builder::address(address).method_timeout(CALL_TIME);
            let connection = builder.build().await.with_context(|| format!("connect to {address}"))?;
            let machines = MachinesProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
            let changes = machines.receive_state_changed().await.context("listen to the machines service")?;
            anyhow::Ok((machines, changes))
        })?;
        Ok(Self { runtime, machines, changes })
    }

    pub(super) fn create(&self, name: &str, spec: &str) -> anyhow::Result<()> {
        self.runtime
            .block_on(self.machines.create(name, spec, BTreeMap::new()))
            .with_context(|| format!("create {name}"))
    }

    /// Starts a machine; returns when its agent has answered.
    pub(super) fn start(&mut self, name: &str) -> anyhow::Result<()> {
        self.runtime.block_on(self.machines.start(name, BTreeMap::new())).with_context(|| format!("start {name}"))?;
        self.until(name, "running")
    }

    /// Ends a machine at once.
    pub(super) fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        self.runtime.block_on(self.machines.stop(name, 0, BTreeMap::new())).with_context(|| format!("stop {name}"))?;
        self.until(name, "stopped")
    }

    fn until(&mut self, name: &str, state: &str) -> anyhow::Result<()> {
        let changes = &mut self.changes;
        let waiting = async {
            while let Some(change) = changes.next().await {
                let change = change.args().context("understand the machines service")?;
                match change.state.as_str() {
                    _ if change.name != name => {}
                    now if now == state => return Ok(()),
                    "failed" => bail!("machine {name} failed: {}", change.reason),
                    _ => {}
                }
            }
            bail!("the bus closed the connection")
        };
        let waited = self.runtime.block_on(async { tokio::time::timeout(STATE_TIME, waiting).await });
        waited.with_context(|| format!("machine {name} is not {state} after {STATE_TIME:?}"))?
    }

    /// Processes of a machine; the monitor's comes first.
    pub(super) fn processes(&self, name: &str) -> anyhow::Result<Vec<i32>> {
        let inspecting = self.machines.inspect(name, BTreeMap::new());
        Ok(self.runtime.block_on(inspecting).with_context(|| format!("inspect {name}"))?.pids)
    }

    /// A connection to a port of a machine, which blocks.
    pub(super) fn port(&self, name: &str, port: u32) -> anyhow::Result<UnixStream> {
        let socket = self.runtime.block_on(self.machines.connect(name, port, BTreeMap::new()));
        let socket = socket.with_context(|| format!("connect to port {port} of {name}"))?;
        Ok(UnixStream::from(OwnedFd::from(socket)))
    }

    /// A connection to the agent of a machine.
    pub(super) fn agent(&self, name: &str) -> anyhow::Result<Agent<'_>> {
        let stream = self.port(name, ports::AGENT_CONTROL)?;
        stream.set_nonblocking(true)?;
        let _entered = self.runtime.enter();
        Ok(Agent { runtime: &self.runtime, stream: tokio::net::UnixStream::from_std(stream)? })
    }
}

/// An agent.
pub(super) struct Agent<'a> {
    runtime: &'a Runtime,
    stream: tokio::net::UnixStream,
}

impl Agent<'_> {
    /// The answer to a request, past what it says of its progress.
    pub(super) fn ask(&mut self, request: &AgentRequest) -> anyhow::Result<AgentResponse> {
        let Self { runtime, stream } = self;
        runtime.block_on(async {
            write_message(stream, request).await?;
            loop {
                match read_message(stream).await?.context("the agent closed the connection")? {
                    AgentResponse::Progress { .. } => {}
                    AgentResponse::Error { message, .. } => bail!("{}: {message}", request.method()),
                    answer => return Ok(answer),
                }
            }
        })
    }

    /// Runs a command to its end, which must be a good one; what it said.
    pub(super) fn run(&mut self, command: &[&str]) -> anyhow::Result<String> {
        match self.ask(&exec(command, false))? {
            AgentResponse::Completed { exit_code: 0, stdout, .. } => Ok(String::from_utf8_lossy(&stdout).into_owned()),
            other => bail!("{}: {other:?}", command.join(" ")),
        }
    }

    /// Puts a program into the machine and leaves it running there.
    pub(super) fn leave_running(&mut self, path: &str, program: &[u8]) -> anyhow::Result<()> {
        let mode = Some(0o755);
        self.ask(&AgentRequest::FileWriteBegin { path: path.to_owned(), mode, total_size: program.len() as u64 })?;
        let mut pieces = program.chunks(FILE_WRITE_MAX).peekable();
        while let Some(piece) = pieces.next() {
            self.ask(&AgentRequest::FileWriteChunk { data: piece.to_vec(), done: pieces.peek().is_none() })?;
        }
        self.ask(&exec(&[path], true)).map(drop)
    }
}

/// A command in the agent's own root.
pub(super) fn exec(command: &[&str], background: bool) -> AgentRequest {
    AgentRequest::VmExec {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: vec![],
        workdir: None,
        timeout_ms: None,
        interactive: false,
        tty: false,
        background,
    }
}
