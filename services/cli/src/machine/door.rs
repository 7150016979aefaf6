//! A local socket that speaks a port of a guest raw, so that any client of the agent's protocol can drive a machine.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;
use shipote_agent_protocol::ports;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use super::{machines, open, refusal};
use crate::output;

pub(super) async fn serve(name: &str, port: u32, socket: Option<PathBuf>) -> anyhow::Result<()> {
    let machines = machines().await?;
    // Asked for once before anybody waits: a machine that isn't there is said at once.
    drop(open(&machines, name, port).await?);
    // Removed with all in it when this ends.
    let folder = match &socket {
        Some(_) => None,
        None => {
            let runtime = shipote_bus::paths::embedded_runtime();
            let parent = if runtime.is_dir() { runtime } else { std::env::temp_dir() };
            Some(
                tempfile::Builder::new()
                    .prefix("machine-")
                    .tempdir_in(parent)
                    .context("make a folder for the socket")?,
            )
        }
    };
    let path = match (&folder, socket) {
        (Some(folder), _) => folder.path().join("agent.sock"),
        (None, socket) => std::path::absolute(socket.unwrap_or_default())?,
    };
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let mut said = json!({"socket": path.display().to_string()});
    if matches!(port, ports::WORKLOAD_CONTROL | ports::WORKLOAD_LOGS) {
        let token = machines.workload_token(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
        said["token"] = token.into();
    }
    output::json(&said)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.context("accept a connection")?;
                match open(&machines, name, port).await {
                    Ok(guest) => drop(tokio::spawn(relay(client, guest))),
                    // The client sees its connection end.
                    Err(error) => eprintln!("shipote: {error:#}"),
                }
            }
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        }
    }
    // Whether somebody else has removed it already does not matter.
    let _ = std::fs::remove_file(&path);
    Ok(())
}

/// Passes bytes both ways until both sides have ended.
async fn relay(mut client: UnixStream, mut guest: UnixStream) {
    // A side that breaks off ends the other with it.
    let _ = tokio::io::copy_bidirectional(&mut client, &mut guest).await;
}
