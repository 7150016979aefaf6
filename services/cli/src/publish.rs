//! What a living workspace or machine publishes: more of it, and less.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use crate::{machine, output};

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Name
    pub(crate) name: String,
    /// What is published from now on
    #[arg(value_name = "PORT", required_unless_present = "remove")]
    ports: Vec<String>,
    /// What is published no more; open connections go on
    #[arg(long, value_name = "PORT")]
    remove: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// In a workspace: ports of its own network.
pub(crate) async fn in_workspace(args: &PublishArgs) -> anyhow::Result<()> {
    let ports = |texts: &[String]| {
        let port = |text: &String| text.parse::<u16>().with_context(|| format!("publish {text:?}: it is no port"));
        texts.iter().map(port).collect::<anyhow::Result<Vec<_>>>()
    };
    let (add, remove) = (ports(&args.ports)?, ports(&args.remove)?);
    let published = output::workspaces().await?.publish(&args.name, &add, &remove, BTreeMap::new()).await;
    let published = published.map_err(|e| output::refusal(&e))?;
    told(args, "workspace", &published.iter().map(u16::to_string).collect::<Vec<_>>())
}

/// In a machine: ports of its loopback; one that does not run may also publish on ports of the host.
pub(crate) async fn in_machine(args: &PublishArgs) -> anyhow::Result<()> {
    let machines = machine::machines().await?;
    let published = machines.publish(&args.name, &words(&args.ports), &words(&args.remove), BTreeMap::new()).await;
    told(args, "machine", &published.map_err(|e| machine::refusal(&e))?)
}

fn words(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn told(args: &PublishArgs, kind: &str, published: &[String]) -> anyhow::Result<()> {
    if args.json {
        return output::json(&json!({"name": args.name, "publish": published}));
    }
    if published.is_empty() {
        println!("{} publishes nothing", args.name);
    }
    for port in published.iter().filter_map(|text| text.rsplit(':').next()) {
        println!("the proxy reaches it as {kind}:{}:{port}", args.name);
    }
    Ok(())
}
