//! The embedded appliance, built from this tree and started for a task.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::install::PACKAGES;
use crate::vm::{host, repository};

/// What `shipote up` needs beside itself.
const TOOLS: &[(&str, &str)] = &[("cc", "gcc"), ("dbus-daemon", "dbus-daemon"), ("busctl", "systemd")];
/// How long the services may take to end by themselves.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A running `shipote up`. Dropped, it is ended, and its folder goes.
pub(crate) struct Appliance {
    child: Child,
    folder: Option<tempfile::TempDir>,
    binaries: PathBuf,
    runtime: PathBuf,
}

/// Compiles the appliance with optimisation; returns the folder of the binaries.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    build_packages(PACKAGES)
}

/// Compiles a part of it.
pub(crate) fn build_packages(packages: &[&str]) -> anyhow::Result<PathBuf> {
    build_as("release", packages)
}

/// Compiles a part of it as packages ship it, which takes longer.
pub(crate) fn build_shipped(packages: &[&str]) -> anyhow::Result<PathBuf> {
    build_as("dist", packages)
}

fn build_as(profile: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    host::require("appliance", TOOLS, None)?;
    cargo_build(profile, |cargo| cargo.args(packages.iter().flat_map(|package| ["--package", package])))?;
    Ok(target()?.join(profile))
}

/// Runs `cargo build` for a profile and with what else is said.
pub(crate) fn cargo_build(profile: &str, what: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Result<()> {
    let mut cargo = crate::cargo::cargo()?;
    cargo.args(["build", "--profile", profile, "--locked"]);
    let status = what(&mut cargo).status().context("run cargo build")?;
    if !status.success() {
        bail!("cargo build failed: {status}");
    }
    Ok(())
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> anyhow::Result<PathBuf> {
    let root = repository()?;
    Ok(std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from))
}

impl Appliance {
    /// Starts the appliance and waits until it is ready. With a folder of its own it leaves nothing behind; without,
    /// state and sockets are where `shipote up` puts them.
    pub(crate) fn start(binaries: PathBuf, own_folder: bool) -> anyhow::Result<Self> {
        Self::start_services(binaries, own_folder, &[])
    }

    /// The same with these services only; none named: all.
    pub(crate) fn start_services(binaries: PathBuf, own_folder: bool, services: &[&str]) -> anyhow::Result<Self> {
        Self::start_configured(binaries, own_folder, services, None)
    }

    /// The same with the configuration in `shipote` beneath a folder instead of the user's own.
    pub(crate) fn start_configured(
        binaries: PathBuf,
        own_folder: bool,
        services: &[&str],
        configuration: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let folder =
            if own_folder { Some(tempfile::tempdir().context("make a folder for the appliance")?) } else { None };
        let mut command = Command::new(binaries.join("shipote"));
        command.arg("up").env("SHIPOTE_POLICY_DIR", repository()?.join("policies")).stdout(Stdio::piped());
        if let Some(configuration) = configuration {
            command.env("XDG_CONFIG_HOME", configuration);
        }
        if !services.is_empty() {
            command.arg("--services").arg(services.join(","));
        }
        if let (Some(image), None) = (crate::image::newest(), std::env::var_os("SHIPOTE_MACHINE_IMAGE")) {
            command.env("SHIPOTE_MACHINE_IMAGE", image);
        }
        let runtime = match &folder {
            Some(folder) => {
                let (state, runtime) = (folder.path().join("state"), folder.path().join("run"));
                command.arg("--state").arg(state).arg("--runtime").arg(&runtime);
                let log = std::fs::File::create(folder.path().join("log")).context("create the appliance's log")?;
                command.stderr(log);
                // Ctrl-C reaches this program, which then ends the appliance in order
                command.process_group(0);
                runtime
            }
            None => PathBuf::new(),
        };
        let mut child = command.spawn().context("start shipote up")?;
        let stdout = child.stdout.take().context("read from shipote up")?;
        let mut appliance = Appliance { child, folder, binaries, runtime };
        let mut said = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read from shipote up")?;
            if !own_folder {
                println!("{line}");
            }
            if line == "ready" {
                return Ok(appliance);
            }
            said.push(line);
        }
        let status = appliance.child.wait().context("wait for shipote up")?;
        let log = appliance.folder.as_ref().and_then(|f| std::fs::read_to_string(f.path().join("log")).ok());
        bail!("shipote up ended before it was ready ({status}):\n{}{}", said.join("\n"), log.unwrap_or_default())
    }

    /// Folder of state and sockets.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(tempfile::TempDir::path)
    }

    /// Process of `shipote up`, whose descendants are the bus, the services and what they run.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process of one of its services.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<u32> {
        let output = self.shipote(&["status", "--json"]).output().context("run shipote status")?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).context("read shipote status")?;
        let services = status["services"].as_array().context("shipote status names no services")?;
        let found = services.iter().find(|s| s["name"] == name);
        let pid = found.and_then(|s| s["pid"].as_u64());
        Ok(u32::try_from(pid.with_context(|| format!("shipote status names no process of {name}"))?)?)
    }

    /// D-Bus address.
    pub(crate) fn address(&self) -> String {
        format!("unix:path={}", self.runtime.join("bus").display())
    }

    /// A command of the appliance's command line, connected to it.
    pub(crate) fn shipote(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.binaries.join("shipote"));
        command.args(words).env("SHIPOTE_BUS_ADDRESS", self.address());
        command
    }

    /// Waits until it ends by itself (Ctrl-C).
    pub(crate) fn wait(mut self) -> anyhow::Result<std::process::ExitStatus> {
        self.child.wait().context("wait for shipote up")
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn end(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait().context("look at shipote up")?.is_some() {
            return Ok(());
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM).context("end shipote up")?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > STOP_TIMEOUT {
                self.child.kill()?;
                self.child.wait()?;
                bail!("shipote up did not end within {STOP_TIMEOUT:?} of SIGTERM and was killed");
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("xtask: {error:#}");
        }
    }
}
