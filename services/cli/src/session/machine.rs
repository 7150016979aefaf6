//! Sessions that are machines: a microVM from a template, instead of a workspace.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::bail;
use shipote_agent_protocol::session::Session;
use shipote_bus::machines::{MachineInfo, MachinesError};

use super::LABEL;
use crate::machine::{self, machines, refusal};
use crate::run::RunArgs;

/// Makes one of a spec, from `file` if from any, and waits until it runs; half of one is none.
pub(super) async fn create(name: &str, spec: &str, file: Option<&str>) -> anyhow::Result<()> {
    let machines = machines().await?;
    let created = machines.create(name, spec, BTreeMap::new()).await;
    created.map_err(|e| machine::spec_refusal(&e, file, true))?;
    if let Err(error) = machine::begin(&machines, name).await {
        // What went wrong matters more than whether this succeeds.
        let _ = machine::end(&machines, name, 0).await;
        let _ = machines.delete(name, BTreeMap::new()).await;
        return Err(error);
    }
    Ok(())
}

/// All of them.
pub(super) async fn all() -> Result<Vec<MachineInfo>, MachinesError> {
    let all = machines().await.map_err(|error| MachinesError::Failed(error.to_string()))?.list(BTreeMap::new()).await?;
    Ok(all.into_iter().filter(|machine| machine.labels.contains_key(LABEL)).collect())
}

/// One of them. Where the machines service is not there, whatever is asked for is none of its.
pub(super) async fn find(name: &str) -> anyhow::Result<Option<MachineInfo>> {
    match all().await {
        Ok(all) => Ok(all.into_iter().find(|machine| machine.name == name)),
        Err(MachinesError::ZBus(_)) => Ok(None),
        Err(error) => Err(refusal(&error)),
    }
}

/// Ends it, with its disk.
pub(super) async fn remove(name: &str, grace: u64) -> anyhow::Result<()> {
    let machines = machines().await?;
    // One that does not run needs no end; removing it says whatever else is wrong.
    let _ = machine::end(&machines, name, grace).await;
    machines.delete(name, BTreeMap::new()).await.map_err(|e| refusal(&e))
}

/// A command in it.
pub(super) async fn exec(name: &str, run: &RunArgs) -> anyhow::Result<ExitCode> {
    if let Some(option) = run.only_in_workspaces()? {
        bail!("session exec {name}: it is a machine, and {option} is for sessions that are workspaces");
    }
    let timeout_ms = run.timeout.and_then(crate::units::millis);
    let (command, env, workdir) = (run.command.clone(), run.env.clone(), run.cwd.clone());
    Ok(machine::exec_session(name, Session { command, image: None, env, workdir, timeout_ms, tty: run.tty }).await)
}
