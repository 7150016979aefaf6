//! Snapshots of machines' disks.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{machines, patient_machines, refusal};
use crate::output;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "What is kept is the machine's disk (images, overlays) and its spec; not its memory, what runs in it, its own\n\
        root, or its volumes. A machine that runs writes what it has to write first, and stands still for the copy.\n\n\
        Examples:\n  shipote machine snapshot web clean\n  shipote machine create second --from clean\n  \
        shipote machine snapshot ls\n  shipote machine snapshot rm clean"
)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Machine
    #[arg(required = true)]
    name: Option<String>,
    /// Name of the snapshot, which is as that of a machine: 1 to 48 of a-z, 0-9 and `-`
    #[arg(required = true)]
    snapshot: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove a snapshot
    #[command(visible_alias = "remove")]
    Rm {
        /// Name of the snapshot
        snapshot: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: SnapshotArgs) -> anyhow::Result<()> {
    match (args.command, args.name, args.snapshot) {
        (Some(Command::Ls { json }), ..) => list(json).await,
        (Some(Command::Rm { snapshot, json }), ..) => remove(&snapshot, json).await,
        (None, Some(name), Some(snapshot)) => take(&name, &snapshot, args.json).await,
        (None, ..) => anyhow::bail!("snapshot: give a machine and a name"),
    }
}

async fn take(name: &str, snapshot: &str, json: bool) -> anyhow::Result<()> {
    let taken = patient_machines().await?.snapshot(name, snapshot, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&taken);
    }
    println!("{} taken of {} ({}), {} MiB", taken.name, taken.machine, taken.consistency, taken.bytes >> 20);
    Ok(())
}

async fn list(json: bool) -> anyhow::Result<()> {
    let list = machines().await?.list_snapshots(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&json!({"snapshots": list}));
    }
    let row = |snapshot: shipote_bus::machines::SnapshotInfo| {
        let created = i64::try_from(snapshot.created).ok().and_then(|at| jiff::Timestamp::from_second(at).ok());
        let created = created.map(|at| at.to_string()).unwrap_or_default();
        let size = format!("{} of {} MiB", snapshot.bytes >> 20, snapshot.disk_mib);
        vec![snapshot.name, snapshot.machine, created, snapshot.consistency, size]
    };
    let rows = list.into_iter().map(row).collect();
    output::print_table(&["NAME", "MACHINE", "TAKEN", "DISK WAS", "SIZE"], rows, "no snapshots");
    Ok(())
}

async fn remove(snapshot: &str, json: bool) -> anyhow::Result<()> {
    machines().await?.delete_snapshot(snapshot, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&json!({"name": snapshot, "state": "removed"}));
    }
    println!("{snapshot} removed");
    Ok(())
}
