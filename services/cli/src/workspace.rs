//! `shipote workspace`: create, list, show and stop workspaces.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use shipote_bus::service::MechanismInfo;
use shipote_bus::words::counted;
use shipote_bus::workspaces::WorkspaceProxy;

use crate::output;
use crate::spec::{read_spec, source};

#[derive(Debug, Args)]
pub(crate) struct WorkspaceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a workspace: namespaces, a root of its own, private scratch
    #[command(
        after_help = "Examples:\n  shipote workspace create build -f build.toml\n  shipote workspace create web --publish 8080\n  shipote workspace create cgi --serve /usr/lib/git-core/git-http-backend\n  shipote workspace create ci --egress crates.io --egress '*.crates.io'"
    )]
    Create {
        /// Name, unique among the living: at most 128 bytes of any text but control characters, `/` and `~`, and no `-` in
        /// front; a machine's name is a host name, and so narrower
        name: String,
        /// Spec (TOML); `-` is standard input
        #[arg(short = 'f', long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Give it a loopback of its own, and let the proxy reach this port of it as `workspace:NAME:PORT`
        #[arg(long, value_name = "PORT", conflicts_with = "file")]
        publish: Vec<u16>,
        /// Let the proxy run this program in it for requests, by rules that say `cgi`
        #[arg(long, value_name = "PROGRAM", conflicts_with = "file")]
        serve: Vec<PathBuf>,
        /// Let it reach this host (example.com, *.example.org:8443, 10.0.0.0/8:5432) through the proxy, and nothing else
        #[arg(long, value_name = "HOST", conflicts_with = "file")]
        egress: Vec<String>,
        /// Hold connections to other hosts for `shipote egress approve`
        #[arg(long, conflicts_with = "file")]
        egress_ask: bool,
        /// Let it sleep after this time in which nobody needed it (5m, 1h, or seconds); a connection or a command wakes it
        #[arg(long, value_name = "TIME", conflicts_with = "file", value_parser = crate::units::some_seconds)]
        idle: Option<Duration>,
        /// Refuse where a mechanism of isolation is degraded or missing
        #[arg(long)]
        strict: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let the proxy reach more ports of a living workspace, or fewer
    #[command(
        after_help = "Examples:\n  shipote workspace publish web 8080\n  shipote workspace publish web --remove 8080"
    )]
    Publish(crate::publish::PublishArgs),
    /// List the living workspaces
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show one workspace: spec, isolation, commands
    Show {
        /// Name or id
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what a workspace uses: memory, processor time, disk traffic, processes, pressure
    #[command(after_help = "Examples:\n  shipote workspace stats\n  shipote workspace stats build --history")]
    Stats {
        /// Name or id; without it all of them
        #[arg(required_if_eq("history", "true"))]
        name: Option<String>,
        /// The samples of the last two minutes
        #[arg(long)]
        history: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the limits of a workspace, what happens at them, and what has
    Quota {
        /// Name or id
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// End every command of a workspace, and the workspace
    #[command(visible_aliases = ["rm", "remove"])]
    Stop {
        /// Name or id
        name: String,
        /// Time between SIGTERM and SIGKILL: 5s, or milliseconds; 0 kills at once
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::units::milliseconds)]
        grace: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(args: WorkspaceArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Create { name, file, publish, serve, egress, egress_ask, idle, strict, json } => {
            let source = file.as_deref().map(source);
            let spec = match file {
                Some(file) => read_spec(&file)?,
                None => crate::spec::network(&publish, &serve, &egress, egress_ask, idle)?,
            };
            create(&name, spec, source.as_deref(), strict, json).await?;
        }
        Command::Publish(args) => crate::publish::in_workspace(&args).await?,
        Command::Ls { json } => list(json).await?,
        Command::Show { name, json } => show(&name, json).await?,
        Command::Stats { name, history, json } => crate::figures::stats(name.as_deref(), history, json).await?,
        Command::Quota { name, json } => crate::figures::quota(&name, json).await?,
        Command::Stop { name, grace, json } => {
            let manager = output::patient_workspaces(grace).await?;
            let reaped =
                manager.stop_workspace(&name, grace, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            if json {
                output::json(&json!({"name": name, "reaped": reaped}))?;
            } else {
                println!("stopped {name}, {} ended", counted(reaped, "process"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(name: &str, spec: String, source: Option<&str>, strict: bool, json: bool) -> anyhow::Result<()> {
    let manager = output::workspaces().await?;
    let options = BTreeMap::from([("strict", strict.into())]);
    let created = manager.create_workspace(name, &spec, options).await;
    let (_, id, isolation) = created.map_err(|e| output::spec_refusal(&e, "workspace", source))?;
    if json {
        return output::json(&json!({"id": id, "name": name, "isolation": isolation}));
    }
    println!("created {name} ({id})");
    for weak in isolation.iter().filter(|m| m.state != "enforced") {
        eprintln!("shipote: {} is {}: {}", weak.name, weak.state, weak.reason);
    }
    Ok(())
}

async fn list(json: bool) -> anyhow::Result<()> {
    let manager = output::workspaces().await?;
    let all = manager.list_workspaces(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    if json {
        return output::json(&json!({"workspaces": all}));
    }
    let rows = all
        .into_iter()
        .map(|w| {
            vec![w.name, w.state, w.commands.to_string(), output::duration(w.uptime_ms / 1000), w.uid.to_string(), w.id]
        })
        .collect();
    output::print_table(
        &["NAME", "STATE", "COMMANDS", "UPTIME", "UID", "ID"],
        rows,
        "no workspace lives; `shipote workspace create NAME` makes one",
    );
    Ok(())
}

async fn show(name: &str, json: bool) -> anyhow::Result<()> {
    let manager = output::workspaces().await?;
    let path = manager.get_workspace(name).await.map_err(|e| output::refusal(&e))?;
    let object = WorkspaceProxy::builder(manager.inner().connection()).path(path).build().await?;
    let commands = manager.list_commands(name, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    let (sleeps, wake_usec, given_back) =
        (object.sleeps().await?, object.wake_usec().await?, object.memory_given_back().await?);
    let isolation: Vec<MechanismInfo> = object.isolation().await?;
    let (id, label, state, spec) =
        (object.id().await?, object.name().await?, object.state().await?, object.spec().await?);
    if json {
        return output::json(&json!({
            "id": id, "name": label, "state": state, "spec": spec, "isolation": isolation, "commands": commands,
            "sleeps": sleeps, "wake_usec": wake_usec, "given_back": given_back,
        }));
    }
    println!("{label} ({id}) is {state}\n\nSpec:");
    spec.lines().for_each(|line| println!("  {line}"));
    if sleeps > 0 {
        let back = output::bytes(given_back as f64);
        println!(
            "\nIt has slept {}; the last time {back} were given back. The last waking took {wake_usec} us.",
            counted(sleeps, "time")
        );
    }
    println!("\nIsolation:");
    output::print_table(&["MECHANISM", "STATE", "DETAIL"], isolation_rows(isolation), "none is reported");
    println!("\nCommands:");
    output::print_table(crate::ps::HEAD, commands.into_iter().map(crate::ps::row).collect(), "none yet");
    Ok(())
}

/// Rows of a table of mechanisms.
pub(crate) fn isolation_rows(all: Vec<MechanismInfo>) -> Vec<Vec<String>> {
    all.into_iter().map(|m| vec![m.name, m.state, m.reason]).collect()
}
