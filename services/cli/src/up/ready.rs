//! Telling people, scripts and an outer service manager that the appliance is ready, and how to reach it.

use std::{
    fs,
    io::{self, Write},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use sd_notify::NotifyState;
use serde_json::json;
use shipote_bus::paths;

use super::folders::Folders;

pub(super) struct Ready {
    /// Address of the bus.
    pub(super) address: String,
    pub(super) json: bool,
}

impl Ready {
    /// Writes `appliance.json`, prints, notifies.
    pub(super) fn announce(&self, folders: &Folders) -> Result<()> {
        let socket = paths::embedded_socket(&folders.runtime);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let appliance = json!({
            "pid": std::process::id(),
            "bus_address": self.address,
            "socket": socket,
            "runtime": folders.runtime,
            "state": folders.state,
            "since": since,
            "version": env!("CARGO_PKG_VERSION"),
        });
        let file = folders.runtime.join(paths::APPLIANCE_FILE);
        let new = folders.runtime.join("appliance.json.new");
        fs::write(&new, format!("{appliance}\n"))
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("write {}", file.display()))?;

        let mut text = String::new();
        if self.json {
            text.push_str(&format!("{appliance}\n"));
        } else {
            text.push_str(&format!("bus     {}\n", self.address));
            text.push_str(&format!("socket  {}\n", socket.display()));
            text.push_str(&format!("logs    {}\n", folders.state.join("log").display()));
            if folders.runtime != paths::embedded_runtime() {
                text.push_str(&format!("First   export {}='{}'\n", paths::BUS_ADDRESS_ENV, self.address));
            }
            text.push_str("Try     shipote status\n");
            text.push_str("        shipote run -- uname -a\n");
            text.push_str(&format!("        busctl --address='{}' tree org.shipote.Workspaces1\n", self.address));
        }
        text.push_str("ready\n");
        // Nobody may be listening; that is no reason to stop.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("all services are ready")]);
        Ok(())
    }

    pub(super) fn stopping(&self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
    }
}
