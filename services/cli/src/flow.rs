//! `shipote flow`: tapped edges of pipelines, while they run and for a while after, and what workspaces share.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use shipote_bus::workspaces::FlowInfo;

use crate::output;

#[derive(Debug, Args)]
pub(crate) struct FlowArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the tapped edges: type, throughput, socket
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this pipeline
        #[arg(long, value_name = "ID")]
        pipeline: Option<String>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what each flow socket has carried, and carries now
    #[command(after_help = "Example:\n  shipote flow throughput --json | jq '.flows[].bytes_per_sec'")]
    Throughput {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Close the flow sockets of a pipeline or of a workspace; what flows goes on
    Drop {
        /// Pipeline's id, or the last six characters or more of it; or a workspace's name or id
        id: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Copy an edge's bytes to standard output: replay first, then live, until the producer ends
    #[command(after_help = "Example:\n  shipote flow tail \"$(shipote flow ls --json | jq -r .flows[0].socket)\"\n\n\
        Who reads too slowly is cut off where the edge is not lossless: that is said, with the bytes\nthat were lost, \
        and the exit status is 1.")]
    Tail {
        /// Flow socket, as listed
        socket: PathBuf,
    },
}

pub(crate) async fn run(args: FlowArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Ls { pipeline, json } => {
            let manager = output::workspaces().await?;
            let mut flows = manager.list_flows(BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            flows.retain(|f| pipeline.as_ref().is_none_or(|p| f.pipeline.ends_with(&p.to_ascii_uppercase())));
            if json {
                output::json(&json!({"flows": flows}))?;
            } else {
                let socket = |f: &FlowInfo| f.socket.clone();
                let rows = flows.iter().map(|f| row(f).into_iter().chain([socket(f)]).collect()).collect();
                let head: Vec<&str> = HEAD.iter().copied().chain(["SOCKET"]).collect();
                output::print_table(
                    &head,
                    rows,
                    "no edge is tapped; `shipote pipeline run --tap FILE` taps all of them",
                );
            }
        }
        Command::Throughput { json } => {
            let flows = output::workspaces().await?.list_flows(BTreeMap::new()).await;
            let flows = flows.map_err(|e| output::refusal(&e))?;
            if json {
                let one = |f: &FlowInfo| json!({"socket": f.socket, "bytes_total": f.bytes_total, "bytes_per_sec": f.bytes_per_sec});
                output::json(&json!({"flows": flows.iter().map(one).collect::<Vec<_>>()}))?;
            } else {
                let one = |f: &FlowInfo| {
                    vec![f.socket.clone(), output::bytes(f.bytes_total as f64), output::bytes(f.bytes_per_sec)]
                };
                let head = ["SOCKET", "BYTES", "PER SECOND"];
                output::print_table(&head, flows.iter().map(one).collect(), "nothing flows");
            }
        }
        Command::Drop { id, json } => {
            let manager = output::workspaces().await?;
            let existed = manager.drop_flows(&id, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            if json {
                output::json(&json!({"id": id, "existed": existed}))?;
            } else if existed {
                println!("dropped the flows of {id}");
            } else {
                anyhow::bail!("drop the flows of {id}: it has none; `shipote flow ls` shows them");
            }
        }
        Command::Tail { socket } => {
            let stream = UnixStream::connect(&socket).with_context(|| {
                format!("subscribe to {}; `shipote flow ls` shows the living sockets", socket.display())
            })?;
            crate::logs::copy(stream.into()).await?;
            whole(&socket).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells an end that was the producer's from one that came because this process had fallen behind.
async fn whole(socket: &Path) -> anyhow::Result<()> {
    // a flow that somebody dropped is in no list any more, and its socket is no appliance's where there is none
    let Ok(manager) = output::workspaces().await else { return Ok(()) };
    let Ok(flows) = manager.list_flows(BTreeMap::new()).await else { return Ok(()) };
    let socket = socket.canonicalize().unwrap_or_else(|_| socket.to_owned());
    let flow = flows.iter().find(|flow| Path::new(&flow.socket) == socket);
    let own = std::process::id();
    if let Some((_, lost)) = flow.and_then(|flow| flow.cut_off.iter().rev().find(|(pid, _)| *pid == own)) {
        anyhow::bail!(
            "flow tail {}: it was read too slowly and cut off, {lost} bytes are lost; read faster, or declare the edge \
             `lossless` or a larger replay under [discern]",
            socket.display()
        );
    }
    Ok(())
}

pub(crate) const HEAD: &[&str] = &["EDGE", "STATE", "TYPE", "MIME", "LENS", "CONFIDENCE", "BYTES", "PER SECOND"];

/// Where a flow comes from and where it goes: `list.errors -> sort`. What is everybody's output or input has no name.
pub(crate) fn edge(flow: &FlowInfo) -> String {
    let end = |node: &str, name: &str, usual: &str| match name {
        "" => node.to_owned(),
        name if name == usual => node.to_owned(),
        name => format!("{node}.{name}"),
    };
    format!("{} -> {}", end(&flow.from, &flow.from_output, "stdout"), end(&flow.to, &flow.to_input, "stdin"))
}

pub(crate) fn row(flow: &FlowInfo) -> Vec<String> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    vec![
        edge(flow),
        flow.state.clone(),
        or_dash(output::type_name(&flow.ty)),
        or_dash(&flow.mime),
        or_dash(&flow.lens),
        format!("{:.2}", flow.confidence),
        output::bytes(flow.bytes_total as f64),
        output::bytes(flow.bytes_per_sec),
    ]
}
