//! What the process was started with.

use std::fs::File;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::Context as _;
use rustix::process::DumpableBehavior;
use shipote_node::{GIVEN, PROGRAM};
use shipote_plugin_abi::engine;
use wasmtime::component::Component;
use wasmtime::{Engine, Store, StoreLimits, StoreLimitsBuilder, Trap};

/// The descriptor that the job is about.
pub(crate) struct Given(OwnedFd);

impl Given {
    /// Takes it over, and makes this a process that its neighbours cannot look into.
    pub(crate) fn take() -> anyhow::Result<Self> {
        // SAFETY: numbers only; of a descriptor that is not open it says so.
        let open = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
        anyhow::ensure!(
            open(PROGRAM) && open(GIVEN),
            "shipote-runner: descriptors {PROGRAM} and {GIVEN} are not open; it is started by the workspaces service"
        );
        // SAFETY: both are open, and nothing else in this process knows of them.
        let (_program, given) = unsafe { (OwnedFd::from_raw_fd(PROGRAM), OwnedFd::from_raw_fd(GIVEN)) };
        // Other commands of the workspace run as the same user; the connection to a machine is not theirs.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("keep others from looking in")?;
        // As for every command: who reads no more ends who writes. Rust's start has set it to be ignored.
        // SAFETY: no handler of ours is involved.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        Ok(Self(given))
    }

    /// The descriptor itself.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// The compiled component in it, for the engine that the registry compiled it for.
    pub(crate) fn component(self, name: &str, fuel: u64) -> anyhow::Result<Component> {
        let config = if fuel == 0 { engine::config() } else { engine::metered() };
        let engine = Engine::new(&config).map_err(|error| anyhow::anyhow!("run {name}: {error:#}"))?;
        let mut code = File::from(self.0);
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut code).with_context(|| format!("run {name}: rewind its code"))?;
        std::io::Read::read_to_end(&mut code, &mut bytes).with_context(|| format!("run {name}: read its code"))?;
        // SAFETY: the workspaces service hands over what the registry compiled, in a memfd that is sealed; wasmtime itself
        // refuses what another version or configuration has made.
        let component = unsafe { Component::deserialize(&engine, &bytes) };
        component.map_err(|error| anyhow::anyhow!("run {name}: load its code: {error:#}"))
    }
}

/// The memory that a component may have.
pub(crate) fn limits(memory_bytes: u64) -> StoreLimits {
    let memory = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
    // Growth past the limit is refused, as memory.grow has it, rather than a trap: allocators say so in their own way.
    StoreLimitsBuilder::new().memory_size(memory).table_elements(1_000_000).instances(1_000).build()
}

/// A store whose component is never interrupted unless somebody says so.
pub(crate) fn store<T>(engine: &Engine, data: T) -> Store<T> {
    let mut store = Store::new(engine, data);
    store.set_epoch_deadline(u64::MAX / 2);
    store
}

/// What went wrong inside a component, in one line.
pub(crate) fn cause(error: &wasmtime::Error) -> String {
    error.downcast_ref::<Trap>().map_or_else(|| error.root_cause().to_string(), ToString::to_string)
}
