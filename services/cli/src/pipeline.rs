//! `shipote pipeline`: commands joined by pipes.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use shipote_bus::words::counted;
use shipote_bus::workspaces::{ManagerProxy, SavedProxy, WorkspacesError};

use crate::output;
use crate::run::{on_terminal, read_completion};
use crate::signals::Forwarded;
use crate::spec::{key_value, read_spec, source};

/// Between SIGTERM and SIGKILL after Ctrl-C.
const GRACE_MS: u64 = 1000;

#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline: input goes to its first node, output comes from those without an edge
    #[command(after_help = "Example:\n  shipote pipeline run --tap sections.toml < /var/lib/dpkg/status\n\n\
        A spec:\n  label = \"count\"\n  [[nodes]]\n  label = \"fields\"\n  command = [\"grep\", \"^Section:\"]\n  \
        [[nodes]]\n  label = \"sort\"\n  command = [\"sort\"]\n  [[edges]]\n  from = \"fields\"\n  to = \"sort\"")]
    Run(RunArgs),
    /// Keep a pipeline under a name, in place of an earlier one; `${KEY}` stays as it is until it is run
    #[command(
        after_help = "Example:\n  shipote pipeline save nightly nightly.toml\n  shipote pipeline run-saved nightly --var DIR=/srv"
    )]
    Save {
        /// Name
        name: String,
        /// Spec (TOML); `-` is standard input
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the names of saved pipelines
    Saved {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a saved pipeline, as `run` does, by the name that it was saved under
    RunSaved {
        /// Name
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// Forget a saved pipeline
    #[command(visible_aliases = ["rm", "remove"])]
    Drop {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List pipelines, running and ended; `saved` lists those that are kept
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// End every node of a pipeline
    Stop {
        /// Pipeline's id, or the last six characters or more of it; or its name, where no other runs by that
        #[arg(value_name = "ID|NAME")]
        id: String,
        /// Time between SIGTERM and SIGKILL: 5s, or milliseconds; 0 kills at once
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::units::milliseconds)]
        grace: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Spec (TOML); `-` is standard input
    file: PathBuf,
    #[command(flatten)]
    how: How,
}

/// How a pipeline is run.
#[derive(Debug, Args)]
struct How {
    /// Workspace, by name or id; without it the spec's, else one of its own that ends with it
    #[arg(short, long, value_name = "WS")]
    workspace: Option<String>,
    /// Sample, meter and offer every edge; a table of them follows on standard error
    #[arg(long)]
    tap: bool,
    /// Put VALUE for `${KEY}` in the spec
    #[arg(long = "var", value_name = "K=V", value_parser = key_value)]
    vars: Vec<(String, String)>,
    /// Leave it running, print its id; `shipote logs` shows its nodes' output
    #[arg(short, long)]
    detach: bool,
    /// Refuse where a mechanism of isolation is degraded or missing
    #[arg(long)]
    strict: bool,
    /// Print one JSON object when it has ended (detached: when it has started)
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: PipelineArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run(args) => {
            let spec = read_spec(&args.file)?;
            run_pipeline(&source(&args.file), &spec, None, &args.how).await
        }
        Command::Save { name, file, json } => {
            let spec = read_spec(&file)?;
            let saved = saved().await?.save(&name, &spec, BTreeMap::new()).await;
            saved.map_err(|e| output::spec_refusal(&e, "pipeline", Some(&source(&file))))?;
            said(json, &json!({"name": name, "saved": true}), &format!("saved {name}"))
        }
        Command::Saved { json } => {
            let names = saved().await?.list(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            said(json, &json!({"names": names}), &names.join("\n"))
        }
        Command::RunSaved { name, how } => {
            let spec = saved().await?.get(&name, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            run_pipeline(&format!("saved pipeline {name}"), &spec, Some(&name), &how).await
        }
        Command::Drop { name, json } => {
            let existed = saved().await?.drop(&name, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            if !existed && !json {
                anyhow::bail!("drop pipeline {name}: there is none of that name; `shipote pipeline saved` lists them");
            }
            said(json, &json!({"name": name, "existed": existed}), &format!("dropped {name}"))
        }
        Command::Ls { json } => list(json).await,
        Command::Stop { id, grace, json } => {
            let manager = output::patient_workspaces(grace).await?;
            let reaped = manager.stop_pipeline(&id, grace, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            if json {
                output::json(&json!({"id": id, "reaped": reaped}))?;
            } else {
                println!("stopped {id}, {}", counted(reaped, "node"));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Client of the saved pipelines.
async fn saved() -> anyhow::Result<SavedProxy<'static>> {
    let connection = shipote_bus::connect::client().await?;
    Ok(SavedProxy::builder(&connection).cache_properties(zbus::proxy::CacheProperties::No).build().await?)
}

/// Says what was done.
fn said(json: bool, object: &serde_json::Value, line: &str) -> anyhow::Result<ExitCode> {
    if json {
        output::json(object)?;
    } else if !line.is_empty() {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a pipeline, whose spec is from `source`; `label` is its name, instead of the spec's.
async fn run_pipeline(source: &str, spec: &str, label: Option<&str>, args: &How) -> anyhow::Result<ExitCode> {
    let vars = args.vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mut options = BTreeMap::from([("tap", args.tap.into()), ("strict", args.strict.into())]);
    if let Some(label) = label {
        options.insert("label", label.into());
    }
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio =
        if args.detach { Vec::new() } else { vec![stdin.as_fd().into(), stdout.as_fd().into(), stderr.as_fd().into()] };
    let mut signals = Forwarded::listen()?;
    let manager = output::workspaces().await?;
    let workspace = args.workspace.as_deref().unwrap_or_default();
    let (_, id, pids, descriptors) =
        manager.run_pipeline(workspace, spec, vars, options, stdio).await.map_err(|e| match e {
            WorkspacesError::InvalidSpec(_) => output::spec_refusal(&e, "pipeline", Some(source)),
            _ if label.is_some() => output::refusal(&e).context(source.to_owned()),
            _ => output::refusal(&e).context(format!("pipeline {source}")),
        })?;
    let nodes: Vec<_> = pids.iter().map(|(label, pid)| json!({"label": label, "pid": pid})).collect();
    if args.detach {
        if args.json {
            output::json(&json!({"id": id, "nodes": nodes}))?;
        } else {
            println!("{id}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let completion = descriptors.into_iter().next().ok_or_else(|| anyhow::anyhow!("the service sent no completion"))?;
    let reader = read_completion(completion.into());
    tokio::pin!(reader);
    let ended = loop {
        tokio::select! {
            ended = &mut reader => break ended?,
            _ = signals.next() => {
                // whether it is still there the completion will say
                let _ = manager.stop_pipeline(&id, GRACE_MS, BTreeMap::new()).await;
            }
        }
    };
    if !ended.message.is_empty() {
        eprintln!("shipote: {}", ended.message);
    }
    report(&manager, args, &id, &nodes, ended.exit_status, &ended.reason).await?;
    Ok(ExitCode::from((ended.exit_status & 0xff) as u8))
}

async fn report(
    manager: &ManagerProxy<'_>,
    args: &How,
    id: &str,
    nodes: &[serde_json::Value],
    status: i32,
    reason: &str,
) -> anyhow::Result<()> {
    let flows = if args.tap {
        // it may be on its way back after a restart, which the pipeline has not noticed
        let mut listed = manager.list_flows(BTreeMap::new()).await;
        for _ in 0..50 {
            if !matches!(listed, Err(WorkspacesError::ZBus(_))) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            listed = manager.list_flows(BTreeMap::new()).await;
        }
        let mut all = listed.map_err(|e| output::refusal(&e))?;
        all.retain(|f| f.pipeline == id);
        all
    } else {
        Vec::new()
    };
    if args.json {
        return output::json(
            &json!({"id": id, "exit_status": status, "reason": reason, "nodes": nodes, "edges": flows}),
        );
    }
    if args.tap {
        let mut err = std::io::stderr().lock();
        if on_terminal() {
            let _ = writeln!(err);
        }
        for line in output::table(crate::flow::HEAD, flows.iter().map(crate::flow::row)).lines() {
            let _ = writeln!(err, "{}", line.trim_end());
        }
    }
    Ok(())
}

async fn list(json: bool) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let all = manager.list_pipelines(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    if json {
        output::json(&json!({"pipelines": all}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = all
        .into_iter()
        .map(|p| {
            let status = p.exit_status.map(|s| s.to_string()).unwrap_or_default();
            let nodes: Vec<String> = p.nodes.into_iter().map(|(label, ..)| label).collect();
            vec![p.id, p.label, p.workspace, p.state, status, p.taps.to_string(), nodes.join(" ")]
        })
        .collect();
    output::print_table(&["ID", "LABEL", "WORKSPACE", "STATE", "STATUS", "TAPS", "NODES"], rows, "no pipeline ran yet");
    Ok(ExitCode::SUCCESS)
}
