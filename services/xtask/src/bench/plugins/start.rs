//! How long the registry takes from its start to `READY=1`, and the memory it then has, with one plugin and with many.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::metadata::MiddlewareKind;

use super::super::Setting;
use super::super::accounting::{ended_children, resident};
use super::super::harness::{Block, Claim, Figure, Row, budget, interleave};
use crate::vm::{host, repository};

/// Plugins in the large store.
const MANY: usize = 1000;
/// How long a start may take at most.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY: f64 = 40.0 * 1024.0 * 1024.0;

const CLAIM: Claim = Claim {
    id: "plugin-start",
    what: "registry from its start to READY, 1,000 plugins in the store",
    against: "the same with one plugin",
    figure: Figure::Time,
    target: 5.0,
};

/// Measures, and adds its rows and notes.
pub(super) fn measure(
    setting: &Setting,
    binaries: &Path,
    rows: &mut Vec<Row>,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    host::require("bench plugins", &[("dbus-daemon", "dbus-daemon")], None)?;
    let folder = tempfile::tempdir().context("make a folder for the registries")?;
    let place = Place::new(folder.path(), binaries)?;
    let begun = Instant::now();
    for (store, count) in [("many", MANY), ("one", 1)] {
        place.fill(store, count)?;
    }
    notes.push(format!("{MANY} plugins were added to a registry in {:.0} s", begun.elapsed().as_secs_f64()));
    let mut memory = Vec::new();
    let all = interleave(setting.rounds, 2, |contender| {
        let before = ended_children()?;
        let registry = place.start(["many", "one"][contender])?;
        let took = registry.took;
        if contender == 0 {
            memory.push(resident(registry.child.id())?);
        }
        registry.end()?;
        Ok(Block { walls: vec![took], cpu: ended_children()?.saturating_sub(before) })
    })?;
    rows.push(CLAIM.judge(&all[0], &all[1])?);
    let most = memory.iter().max().copied().unwrap_or_default() as f64;
    let what = "memory of the registry with 1,000 plugins in the store";
    rows.push(budget("plugin-start-memory", what, "40 MiB", most / MEMORY, memory.len()));
    notes.push(format!("{:.1} MiB with {MANY} plugins (proportional set size)", most / 1_048_576.0));
    Ok(())
}

/// A bus, and where registries have their stores.
struct Place {
    folder: PathBuf,
    binaries: PathBuf,
    address: String,
    bus: Child,
}

impl Place {
    fn new(folder: &Path, binaries: &Path) -> anyhow::Result<Self> {
        let mut bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address=1"])
            .arg(format!("--address=unix:path={}", folder.join("bus").display()))
            .stdout(Stdio::piped())
            .spawn()
            .context("start dbus-daemon")?;
        let stdout = bus.stdout.take().context("read from dbus-daemon")?;
        let mut address = String::new();
        BufReader::new(stdout).read_line(&mut address).context("read the address of dbus-daemon")?;
        let binaries = binaries.canonicalize().with_context(|| format!("find {}", binaries.display()))?;
        Ok(Self { folder: folder.to_owned(), binaries, address: address.trim().to_owned(), bus })
    }

    /// Adds `count` plugins to a store, as a person would.
    fn fill(&self, store: &str, count: usize) -> anyhow::Result<()> {
        let components = self.folder.join(format!("{store}-components"));
        fs::create_dir_all(&components).context("make a folder for components")?;
        for number in 0..count {
            let name = format!("plugin-{number}");
            let fixture = Fixture::new(&name, "1.0.0", &[MiddlewareKind::L7Request]);
            fs::write(components.join(format!("{name}.wasm")), fixture.component()).context("write a component")?;
        }
        let registry = self.start(store)?;
        let mut shipote = Command::new(self.binaries.join("shipote"));
        shipote.env("SHIPOTE_BUS_ADDRESS", &self.address).args(["plugin", "add"]).arg(&components);
        let output = shipote.stdout(Stdio::null()).output().context("run shipote")?;
        if !output.status.success() {
            bail!("shipote plugin add: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        registry.end()
    }

    fn start(&self, store: &str) -> anyhow::Result<Registry> {
        let socket = self.folder.join("notify");
        // a socket's name is not free when its socket is gone
        let _ = fs::remove_file(&socket);
        let ready = UnixDatagram::bind(&socket).context("bind the socket for READY=1")?;
        ready.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
        let state = self.folder.join(store);
        for part in ["state", "runtime", "config"] {
            fs::create_dir_all(state.join(part)).context("make the registry's folders")?;
        }
        let mut command = Command::new(self.binaries.join("shipote-plugins"));
        command
            .env("SHIPOTE_BUS_ADDRESS", &self.address)
            .env("SHIPOTE_POLICY_DIR", repository()?.join("policies"))
            .env("STATE_DIRECTORY", state.join("state"))
            .env("RUNTIME_DIRECTORY", state.join("runtime"))
            .env("CONFIGURATION_DIRECTORY", state.join("config"))
            .env("NOTIFY_SOCKET", &socket)
            .stderr(fs::File::create(state.join("log")).context("create the registry's log")?);
        let begun = Instant::now();
        let mut registry = Registry { child: command.spawn().context("start shipote-plugins")?, took: Duration::ZERO };
        let mut message = [0; 4096];
        loop {
            let Ok(length) = ready.recv(&mut message) else {
                let log = fs::read_to_string(state.join("log")).unwrap_or_default();
                bail!("shipote-plugins was not ready within {PATIENCE:?}:\n{log}");
            };
            if message[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                registry.took = begun.elapsed();
                return Ok(registry);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // That it has ended already is no harm.
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// A registry that is ready.
struct Registry {
    child: Child,
    took: Duration,
}

impl Registry {
    fn end(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM).context("end shipote-plugins")?;
        let status = self.child.wait().context("wait for shipote-plugins")?;
        if !status.success() {
            bail!("shipote-plugins ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Ended in order it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
