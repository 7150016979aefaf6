//! `shipote egress`: what workspaces and machines may reach.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::output;
use crate::proxy::ask::{manager, refusal};

#[derive(Debug, Args)]
pub(crate) struct EgressArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a client out to some hosts, or change which; prints the socket that leads out
    Set(SetArgs),
    /// Take a client's way out away, with its open connections
    Remove(RemoveArgs),
    /// List the clients, what they may reach and what they were refused
    List(ListArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// workspace:NAME, machine:NAME or session:NAME
    client: String,
    /// A host such as example.com, *.example.com:8443 or 10.0.0.0/8:5432; none: nothing may be reached
    #[arg(long = "allow", value_name = "HOST")]
    allow: Vec<String>,
    /// An address for the client besides its socket
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The client
    client: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Show the last refusals and how to allow what was refused
    #[arg(long)]
    denials: bool,
}

pub(crate) async fn run(args: EgressArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Set(args) => set(&args).await?,
        Command::Remove(args) => remove(&args).await?,
        Command::List(args) => list(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn set(args: &SetArgs) -> anyhow::Result<()> {
    let allow: Vec<&str> = args.allow.iter().map(String::as_str).collect();
    let mut options = BTreeMap::new();
    if let Some(listen) = &args.listen {
        options.insert("listen", zbus::Variant::from(listen.as_str()));
    }
    let socket = manager().await?.set_egress(&args.client, &allow, options).await;
    let socket = socket.map_err(|e| refusal(&e)).with_context(|| format!("let {} out", args.client))?;
    if args.json {
        return output::json(&json!({"client": args.client, "socket": socket}));
    }
    println!("{socket}");
    Ok(())
}

async fn remove(args: &RemoveArgs) -> anyhow::Result<()> {
    let removed = manager().await?.remove_egress(&args.client, BTreeMap::new()).await;
    let removed = removed.map_err(|e| refusal(&e)).with_context(|| format!("remove {}", args.client))?;
    if args.json {
        return output::json(&json!({"client": args.client, "removed": removed}));
    }
    if !removed {
        anyhow::bail!("remove {}: it has no way out; see `shipote egress list`", args.client);
    }
    Ok(())
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    let all = manager().await?.list_egress(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"clients": all}));
    }
    if args.denials {
        for client in &all {
            for (unix_ms, why) in &client.denials {
                let at = i64::try_from(*unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
                println!("{} {} {why}", at.map(|t| t.to_string()).unwrap_or_default(), client.client);
            }
        }
        return Ok(());
    }
    let row = |c: shipote_bus::proxy::EgressInfo| {
        let (allowed, denied, open) = (c.allowed.to_string(), c.denied.to_string(), c.open.to_string());
        vec![c.client, c.allow.join(" "), allowed, denied, open, c.socket]
    };
    let rows = all.into_iter().map(row).collect();
    output::print_table(
        &["CLIENT", "ALLOWED HOSTS", "LET OUT", "REFUSED", "OPEN", "SOCKET"],
        rows,
        "nobody is let out",
    );
    Ok(())
}
