//! Has the programs that rules name (CGI) run by the workspaces service.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use shipote_bus::spec::{CgroupLimits, Soma};
use shipote_bus::workspaces::{ManagerProxy, RunOptions, WorkspacesError};
use shipote_proxy::Start;
use tokio::sync::{Semaphore, mpsc};
use zbus::proxy::CacheProperties;

/// Programs that are being started at once.
const AT_ONCE: usize = 64;

/// Runs what the engine asks for, as long as it asks.
pub(crate) async fn run(connection: zbus::Connection, mut starts: mpsc::Receiver<Start>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(mut start) = starts.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // Whoever asked may have lost its patience meanwhile.
        if start.answer.is_closed() {
            continue;
        }
        let connection = connection.clone();
        tokio::spawn(async move {
            let started = serve(&connection, &mut start).await;
            let Start { answer, stdio, .. } = start;
            // The program's ends are its own from here on: it is by their closing that others see its end.
            drop(stdio);
            // Whoever asked may be gone by now; then the program writes to nobody.
            let _ = answer.send(started);
            drop(place);
        });
    }
}

async fn serve(connection: &zbus::Connection, start: &mut Start) -> Result<OwnedFd, String> {
    let workspaces = ManagerProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await
        .map_err(|e| format!("reach the workspaces service: {e}"))?;
    let argv: Vec<&str> = start.argv.iter().map(String::as_str).collect();
    let options = RunOptions {
        env: Some(std::mem::take(&mut start.env)),
        cwd: start.cwd.take(),
        timeout_ms: Some(u64::try_from(start.time_limit.as_millis()).unwrap_or(u64::MAX)),
        soma: limits(start)?,
        ..RunOptions::default()
    };
    let stdio = start.stdio.iter().map(|fd| zbus::Fd::from(fd.as_fd())).collect();
    let (_, _, descriptors) =
        workspaces.serve(&start.workspace, &argv, &options, stdio).await.map_err(|e| match e {
            WorkspacesError::ZBus(error) => shipote_bus::error::describe(&error),
            error => zbus::DBusError::description(&error).unwrap_or("refused without a reason").to_owned(),
        })?;
    descriptors.into_iter().next().map(OwnedFd::from).ok_or_else(|| "the workspaces service says no end".to_owned())
}

fn limits(start: &Start) -> Result<Option<String>, String> {
    let Start { memory_bytes, processes, .. } = start;
    if memory_bytes.is_none() && processes.is_none() {
        return Ok(None);
    }
    let cgroup = CgroupLimits { memory_max: *memory_bytes, pids_max: *processes, ..CgroupLimits::default() };
    let soma = Soma { cgroup, ..Soma::default() };
    toml::to_string(&soma).map(Some).map_err(|e| format!("write the limits of a program: {e}"))
}
