//! Commands that are no program of their workspace: gets what they run from the service that has it, and makes
//! `shipote-runner` stand in for them.
//!
//! ```text
//!   component, filter ── Plugins1.Open ──▶ compiled code, sealed memfd ─┐
//!   machine ── Machines1.Connect ──▶ socket to its agent ───────────────┤ descriptor 4
//!   shipote-runner, copied once into a sealed memfd ────────────────────┘ descriptor 3 ──▶ keeper ──▶ execve
//! ```
//!
//! The program comes as a descriptor because it lies nowhere in the workspace's root, and in a memfd because the landlock
//! domain of a workspace allows no other file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use serde::Deserialize;
use shipote_bus::machines::{MachinesError, MachinesProxy};
use shipote_bus::plugins::{OpenInfo, PluginManagerProxy, PluginsError};
use shipote_bus::spec::{Foreign, NodeCommand};
use shipote_node::{BINARY, Component, Filter, GIVEN, Job, MachineCommand, PROGRAM, PROGRAM_PATH};
use shipote_sandbox::CommandSpec;
use tokio::sync::OnceCell;
use zbus::proxy::CacheProperties;

use crate::error::{Error, SpawnKind};

/// Port of the agent that runs commands.
const AGENT_CONTROL: u32 = 6000;

/// What the runner is, found before the service confines itself.
#[derive(Debug)]
pub(crate) struct Runner {
    found: Result<File, String>,
}

impl Runner {
    /// Opens the binary beside the service's own.
    pub(crate) fn find() -> Self {
        let path = std::env::current_exe().map_or_else(|_| PathBuf::from(BINARY), |own| own.with_file_name(BINARY));
        Self { found: File::open(&path).map_err(|error| format!("open {}: {error}", path.display())) }
    }

    /// A copy that nobody can change, to be executed.
    fn copy(&self) -> Result<OwnedFd, String> {
        let mut from = self.found.as_ref().map_err(|reason| format!("{reason}; install it beside the services"))?;
        let mut copied = || -> io::Result<OwnedFd> {
            let to = rustix::fs::memfd_create(BINARY, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            let mut to = File::from(to);
            from.rewind()?;
            io::copy(&mut from, &mut to)?;
            let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
            rustix::fs::fcntl_add_seals(&to, seals)?;
            // Executing takes that nobody has it open for writing.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&to));
            Ok(File::open(path)?.into())
        };
        copied().map_err(|error| format!("copy {BINARY} into memory: {error}"))
    }
}

/// Gets what commands run that are no program of their workspace; cheap to clone.
#[derive(Clone)]
pub(crate) struct Foreigners {
    connection: zbus::Connection,
    runner: Arc<Runner>,
    program: Arc<OnceCell<Arc<OwnedFd>>>,
}

/// What the registry's policy says that matters here.
#[derive(Deserialize)]
struct Bounds {
    memory_bytes: u64,
    deadline_ms: u64,
    #[serde(default)]
    fuel: u64,
}

impl Foreigners {
    pub(crate) fn new(connection: zbus::Connection, runner: Runner) -> Self {
        Self { connection, runner: Arc::new(runner), program: Arc::default() }
    }

    /// Makes of `spec`, which is the command as if it were a program, what the keeper is to start.
    pub(super) async fn stand_in(
        &self,
        foreign: &Foreign,
        label: &str,
        command: &NodeCommand,
        spec: &mut CommandSpec,
    ) -> Result<(), Error> {
        let failed = |kind, reason| Error::Spawn { kind, program: command.exec.clone(), reason };
        let (job, given) = match foreign {
            Foreign::Component { reference, dirs } => {
                let (code, bounds) = self.open(reference, "command", &failed).await?;
                // Nothing is inherited: the workspace's own variables are for its programs.
                let env = command.envp.clone();
                let job = Component {
                    name: label.to_owned(),
                    args: command.argv.clone(),
                    env,
                    dirs: dirs.clone(),
                    memory_bytes: bounds.memory_bytes,
                    fuel: bounds.fuel,
                };
                (Job::Component(job), code)
            }
            Foreign::Filter { reference } => {
                let (code, bounds) = self.open(reference, "filter", &failed).await?;
                let Bounds { memory_bytes, deadline_ms, fuel } = bounds;
                let args = command.argv.clone();
                (Job::Filter(Filter { name: reference.clone(), args, memory_bytes, deadline_ms, fuel }), code)
            }
            Foreign::Machine { name, image } => {
                let agent = self.connect(name).await.map_err(|(kind, reason)| failed(kind, reason))?;
                let program = [&command.exec].into_iter().chain(&command.argv).cloned().collect();
                let (machine, env, image) = (name.clone(), command.envp.clone(), image.clone());
                (Job::Machine(MachineCommand { machine, command: program, env, image }), agent)
            }
        };
        let program = self.program().await.map_err(|reason| failed(SpawnKind::Other, reason))?;
        spec.exec = PROGRAM_PATH.to_owned();
        spec.argv = vec![job.to_argument()];
        spec.env = Vec::new();
        spec.descriptors = vec![(PROGRAM, program), (GIVEN, Arc::new(given))];
        Ok(())
    }

    /// The runner, copied at its first use.
    async fn program(&self) -> Result<Arc<OwnedFd>, String> {
        let copy = || async {
            let runner = Arc::clone(&self.runner);
            let copied = tokio::task::spawn_blocking(move || runner.copy()).await.map_err(|error| error.to_string())?;
            copied.map(Arc::new)
        };
        self.program.get_or_try_init(copy).await.cloned()
    }

    /// A component's compiled code, and what its policy gives it.
    async fn open(
        &self,
        reference: &str,
        kind: &str,
        failed: &impl Fn(SpawnKind, String) -> Error,
    ) -> Result<(OwnedFd, Bounds), Error> {
        let opened = async {
            let registry =
                PluginManagerProxy::builder(&self.connection).cache_properties(CacheProperties::No).build().await?;
            registry.open(reference, BTreeMap::new()).await
        };
        let (code, info): (_, OpenInfo) = opened.await.map_err(|error| match error {
            PluginsError::ZBus(error) => {
                failed(SpawnKind::Other, format!("ask the plugin registry: {}", shipote_bus::error::describe(&error)))
            }
            PluginsError::NoSuchPlugin(reason) => failed(SpawnKind::NotFound, reason),
            other => failed(SpawnKind::NotExecutable, described(&other)),
        })?;
        if info.kind != kind {
            let reason = format!(
                "{} {} is a {} component, not a {kind}; `shipote plugin ls` shows which is which",
                info.name, info.version, info.kind
            );
            return Err(failed(SpawnKind::NotExecutable, reason));
        }
        let bounds = serde_json::from_str(&info.policy)
            .map_err(|error| failed(SpawnKind::Other, format!("read its policy: {error}")))?;
        Ok((code.into(), bounds))
    }

    /// A greeted connection to the agent of a machine.
    async fn connect(&self, name: &str) -> Result<OwnedFd, (SpawnKind, String)> {
        let connected = async {
            let machines =
                MachinesProxy::builder(&self.connection).cache_properties(CacheProperties::No).build().await?;
            machines.connect(name, AGENT_CONTROL, BTreeMap::new()).await
        };
        connected.await.map(Into::into).map_err(|error| match error {
            MachinesError::ZBus(error) => {
                (SpawnKind::Other, format!("connect to machine {name}: {}", shipote_bus::error::describe(&error)))
            }
            MachinesError::NoSuchMachine(reason) => (SpawnKind::NotFound, reason),
            other => (SpawnKind::Other, described(&other)),
        })
    }
}

fn described(error: &impl zbus::DBusError) -> String {
    error.description().unwrap_or("refused without a reason").to_owned()
}
