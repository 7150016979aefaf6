//! Part of `plugins`: how long the registry takes to start, and what it takes of memory, with 1,000 plugins in its store.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::harness::{Block, Claim, Figure, interleave};
use super::living::{memory, resident};
use super::{Outcome, Setting, accounting};
use crate::appliance;
use crate::vm::{host, repository};

const PLUGINS: usize = 1_000;
/// The registry's memory is to stay below this.
const MOST: f64 = 40.0 * 1024.0 * 1024.0;

const CLAIM: Claim = Claim {
    id: "plugins-start",
    what: "start of the registry with 1,000 plugins in its store, until it is ready",
    against: "the same with one",
    figure: Figure::Time,
    target: 5.0,
};

/// A bus, and the folder of two registries.
struct Place {
    folder: tempfile::TempDir,
    binaries: PathBuf,
    bus: Child,
    notify: UnixDatagram,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let binaries = match &setting.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build_packages(&["shipote", "shipote-plugins"])?,
    };
    let place = Place::make(binaries)?;
    place.fill()?;
    let mut taken = 0;
    let all = interleave(setting.rounds, 2, |contender| {
        let state = ["thousand", "one"][contender];
        let before = accounting::own_and_ended()?;
        let begun = Instant::now();
        let mut service = place.start(state)?;
        let walls = vec![begun.elapsed()];
        if state == "thousand" {
            taken = taken.max(resident(service.id())?);
        }
        service.kill().context("end the registry")?;
        service.wait().context("wait for the registry")?;
        Ok(Block { walls, cpu: accounting::own_and_ended()? - before })
    })?;
    let what = "resident memory of the registry with 1,000 plugins in its store";
    let rows = vec![CLAIM.judge(&all[0], &all[1])?, memory("plugins-memory", what, "40 MiB", taken as f64 / MOST)];
    let notes = vec![format!("the registry takes {:.1} MiB with {PLUGINS} plugins", taken as f64 / 1_048_576.0)];
    Ok(Outcome { rows, notes })
}

impl Place {
    fn make(binaries: PathBuf) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("make a folder for the registry")?;
        let bus = Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile"])
            .arg(format!("--address=unix:path={}", folder.path().join("bus").display()))
            .spawn()
            .context("start dbus-daemon")?;
        let notify = UnixDatagram::bind(folder.path().join("notify")).context("listen for READY=1")?;
        notify.set_read_timeout(Some(Duration::from_secs(60)))?;
        let place = Self { folder, binaries, bus, notify };
        let begun = Instant::now();
        while !place.path("bus").exists() {
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("dbus-daemon does not listen");
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bus(&self) -> String {
        format!("unix:path={}", self.path("bus").display())
    }

    /// Starts the registry over a state folder; returns when it is ready.
    fn start(&self, state: &str) -> anyhow::Result<Child> {
        let child = Command::new(self.binaries.join("shipote-plugins"))
            .env("SHIPOTE_BUS_ADDRESS", self.bus())
            .env("SHIPOTE_POLICY_DIR", repository()?.join("policies"))
            .env("STATE_DIRECTORY", self.path(state))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .env("CONFIGURATION_DIRECTORY", self.path("config"))
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start shipote-plugins")?;
        let mut said = [0; 4096];
        loop {
            let length = self.notify.recv(&mut said).context("wait for READY=1 of shipote-plugins")?;
            if String::from_utf8_lossy(&said[..length]).contains("READY=1") {
                return Ok(child);
            }
        }
    }

    /// Adds one plugin, and makes a store of a thousand of its kind: components that differ, so that each has a file.
    fn fill(&self) -> anyhow::Result<()> {
        for folder in ["one", "thousand", "run", "config"] {
            fs::create_dir_all(self.path(folder))?;
        }
        let mut service = self.start("one")?;
        let added = host::run(
            Command::new(self.binaries.join("shipote"))
                .env("SHIPOTE_BUS_ADDRESS", self.bus())
                .args(["plugin", "add"])
                .arg(repository()?.join("wit/examples/stamp.wat")),
        );
        service.kill().context("end the registry")?;
        service.wait().context("wait for the registry")?;
        added?;
        let (from, to) = (self.path("one/store"), self.path("thousand/store"));
        let mut index: Value = read(&from.join("index.json"))?;
        let plugin = index["plugins"]["stamp"].clone();
        let component = fs::read_dir(from.join("components"))?.next().context("the store has no component")??;
        let component = fs::read(component.path()).context("read the component")?;
        fs::create_dir_all(to.join("components"))?;
        for number in 1..PLUGINS {
            let mut bytes = component.clone();
            // A custom section, which means nothing: its id, its size, and its name with the name's size.
            let name = format!("{number:04}");
            bytes.extend([0, 5, 4]);
            bytes.extend(name.bytes());
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            fs::write(to.join("components").join(format!("{digest}.wasm")), bytes)?;
            let mut plugin = plugin.clone();
            for (_, version) in plugin["versions"].as_object_mut().context("a plugin has versions")? {
                version["digest"] = format!("sha256:{digest}").into();
                version["metadata"]["name"] = format!("stamp-{name}").into();
            }
            index["plugins"][format!("stamp-{name}")] = plugin;
        }
        let first = fs::read_dir(from.join("components"))?.next().context("the store has no component")??;
        fs::copy(first.path(), to.join("components").join(first.file_name()))?;
        fs::write(to.join("index.json"), serde_json::to_vec(&index)?).context("write the index")
    }
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
}
