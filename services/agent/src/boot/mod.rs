//! From the kernel's hand to a listening agent.
//!
//! What stands between power-on and the first answer is kept short: the few mounts and modules that vsock and commands
//! need come first, the rest once the host has been told.

mod modules;
mod mounts;
mod settings;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use shipote_agent_protocol::ports;

use crate::agent::{Agent, Features};
use crate::exec::Cgroups;
use crate::images::Store;
use crate::listen::Door;
use crate::power::Power;
use crate::{listen, reaper, runtime};

/// Runs as PID 1. Does not return unless the machine cannot be served, which ends it.
pub(crate) fn run() -> anyhow::Result<()> {
    let result = serve();
    if let Err(error) = &result {
        eprintln!("shipote-agent: {error:#}; the machine ends");
        Power::Machine.off();
    }
    result
}

fn serve() -> anyhow::Result<()> {
    mounts::first()?;
    modules::load_pci()?;
    modules::load(Path::new(modules::FIRST))?;
    let settings = settings::take(Path::new(settings::PATH))?;
    if let Some(name) = &settings.hostname {
        rustix::system::sethostname(name.as_bytes()).context("set the host name")?;
    }
    let cgroups = match mounts::cgroups() {
        Ok(()) => Cgroups::beneath(PathBuf::from(mounts::CGROUPS)),
        Err(error) => {
            eprintln!("shipote-agent: mount cgroups: {error:#}; commands are ended by process group only");
            Cgroups::none()
        }
    };
    // Before the first connection, which may put a file there.
    let disk = settings.disk && attach_disk();
    let features = Features { disk, egress: settings.egress, ssh: settings.ssh };
    // One that cannot be had ends the machine: what it runs would write beside the folder, not into it.
    for volume in &settings.volumes {
        volume.mount(Path::new("/")).with_context(|| format!("mount volume {}", volume.path))?;
    }
    let store = Store::new(mounts::STORAGE.into());
    runtime()?.block_on(async {
        let images = Some(Arc::clone(&store));
        let agent =
            Agent::new(Path::new("/"), settings.secret, cgroups, Power::Machine, images, features, settings.volumes)?;
        tokio::spawn(Arc::clone(&agent.reaper).run(reaper::signal()?));
        let listener = listen::vsock(ports::AGENT_CONTROL).context("listen on vsock")?;
        let doors = [
            (ports::WORKLOAD_CONTROL, Door::Workload),
            (ports::WORKLOAD_LOGS, Door::Logs),
            (ports::REACH, Door::Reach),
            (ports::FILES, Door::Files),
        ];
        for (port, door) in doors {
            let (listener, agent) = (listen::vsock(port).context("listen on vsock")?, Arc::clone(&agent));
            tokio::spawn(async move { listen::serve(&listener, &agent, door).await });
        }
        let serving = tokio::spawn(async move { listen::serve(&listener, &agent, Door::Control).await });
        let after = tokio::runtime::Handle::current();
        // What follows may block for a moment; connections wait in the socket's queue meanwhile.
        tokio::task::spawn_blocking(move || {
            let knock = || {
                if let Err(error) = listen::knock(ports::AGENT_READY) {
                    eprintln!("shipote-agent: tell the host: {error}; it will find out by asking");
                }
            };
            // Programs that count on what the host offers find it from the first command on.
            let offers = features.egress || features.ssh;
            if !offers {
                knock();
            }
            if let Err(error) = later() {
                eprintln!("shipote-agent: {error:#}");
            }
            let _in_runtime = after.enter();
            offer(features);
            if offers {
                knock();
            }
            // Even where something failed: a request then fails with its own reason.
            store.open();
        });
        serving.await.context("serve")
    })
}

/// What the host offers to the guest's programs.
fn offer(features: Features) {
    let said = |what: &'static str| move |error: std::io::Error| eprintln!("shipote-agent: {what}: {error}");
    if features.egress {
        tokio::spawn(async move { crate::egress::serve().await.unwrap_or_else(said("the way out")) });
        tokio::spawn(async move { crate::names::serve().await.unwrap_or_else(said("names")) });
        std::fs::write("/etc/resolv.conf", crate::names::RESOLV_CONF).unwrap_or_else(said("write /etc/resolv.conf"));
    }
    if features.ssh {
        match crate::ssh::offer(Path::new("/"), 0, 0) {
            // As long as the machine.
            Ok(offer) => std::mem::forget(offer),
            Err(error) => said("the SSH agent")(error),
        }
    }
}

/// What no first answer needs.
fn later() -> anyhow::Result<()> {
    mounts::rest()?;
    modules::load(Path::new(modules::LATER))?;
    // Loopback comes up with its address; no library is worth this one call at boot.
    // It may have been reaped as an orphan by the time it is waited for, which is as good.
    let _ = Command::new("/bin/busybox").args(["ip", "link", "set", "lo", "up"]).spawn().context("bring up lo")?.wait();
    Ok(())
}

/// Puts the disk in its place; without it the machine goes on in memory, and says so.
fn attach_disk() -> bool {
    let attached = modules::load(Path::new(modules::LATER)).and_then(|()| mounts::disk());
    if let Err(error) = &attached {
        eprintln!("shipote-agent: {error:#}; images are kept in memory");
    }
    attached.is_ok()
}
