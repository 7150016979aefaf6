//! The private bus: `dbus-daemon` with a configuration of our own (`bus.conf`). Why this one: `docs/bus.md`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use tokio::process::Command;

use super::{folders, process, process::Lifeline};

const CONFIG: &str = include_str!("bus.conf");

/// Finds the program.
pub(super) fn program() -> Result<PathBuf> {
    folders::search("dbus-daemon").ok_or_else(|| {
        anyhow!(
            "start the bus: dbus-daemon is not installed; install the package dbus-daemon (Debian, Ubuntu) or dbus \
             (other distributions)"
        )
    })
}

/// Writes the configuration and makes the command. The bus prints its address on stdout once it listens.
pub(super) fn command(program: &Path, runtime: &Path, address: &str, lifeline: &Lifeline) -> Result<Command> {
    let config = runtime.join("bus.conf");
    // An address holds no character that XML would see: all but plain ones are escaped in it.
    std::fs::write(&config, CONFIG.replace("@LISTEN@", address))
        .with_context(|| format!("write bus configuration {}", config.display()))?;
    // A bus that was killed leaves its socket, and would not listen on it again.
    let _ = std::fs::remove_file(runtime.join("bus"));
    let mut command = process::command(program, lifeline, Vec::new());
    command.arg("--nofork").arg("--nopidfile").arg("--print-address").arg("--config-file").arg(config);
    Ok(command)
}
