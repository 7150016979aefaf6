//! `shipote egress`: what workspaces and machines may reach.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use serde_json::json;
use shipote_bus::connect;
use shipote_bus::egress::{Keeper, Lists};
use shipote_bus::error::describe;
use shipote_bus::proxy::{DenialInfo, EgressProxy};
use zbus::proxy::CacheProperties;

use crate::output;
use crate::proxy::ask::{manager, refusal};

#[derive(Debug, Args)]
pub(crate) struct EgressArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Let a workspace or a machine reach more hosts, from its next connection on: a workspace for as long as it lives, a
    /// machine also in its next lives
    #[command(after_help = "Examples:\n  shipote egress allow workspace:web example.com '*.example.org:8443'\n  \
        shipote egress allow machine:build 'mirror.internal' 10.0.0.5:80\n\n\
        HOST is a name, *.NAME for what is below it, an address or a network; :PORT, :* for all ports, or\n\
        nothing for 80 and 443. A name that leads to an address which is not public needs that listed, too.")]
    Allow(ListChange),
    /// Take hosts off a list, or refuse what `shipote egress pending` shows under a number
    #[command(after_help = "Examples:\n  shipote egress deny workspace:web example.com\n  shipote egress deny 7")]
    Deny(DenyArgs),
    /// List what connections are held for: the specs of whose they are have `egress_ask = true`
    Pending(PendingArgs),
    /// Let out what `pending` shows under a number, and put it on the list of whose it is
    #[command(after_help = "Examples:\n  shipote egress approve 7\n  shipote egress approve --once 8")]
    Approve(ApproveArgs),
    /// Give somebody else than a workspace or a machine a socket that leads out to some hosts, or change which
    Set(SetArgs),
    /// Take a client's way out away, with its open connections
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
    /// List the clients, what they may reach and what they were refused
    #[command(visible_alias = "list")]
    Ls(ListArgs),
}

#[derive(Debug, Args)]
struct SetArgs {
    /// session:NAME, or the name of a workspace or a machine that has no way out of its own
    client: String,
    /// A host such as example.com, *.example.com:8443 or 10.0.0.0/8:5432; none: nothing may be reached
    #[arg(long = "allow", value_name = "HOST")]
    allow: Vec<String>,
    /// A user that may use the socket, by uid, besides root and who asks for this
    #[arg(long = "user", value_name = "UID")]
    users: Vec<u32>,
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
    /// Show the last refusals, also of clients that are gone, and how to allow what was refused
    #[arg(long)]
    denials: bool,
}

#[derive(Debug, Args)]
struct ListChange {
    /// workspace:NAME or machine:NAME
    client: String,
    /// What it may reach
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct DenyArgs {
    /// workspace:NAME or machine:NAME, or a number of `shipote egress pending`
    #[arg(value_name = "CLIENT|NUMBER")]
    what: String,
    /// What it may not reach any more, as its list has it
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PendingArgs {
    /// Print one JSON object; with --follow one a line
    #[arg(long)]
    json: bool,
    /// Go on with what is asked from now on
    #[arg(short, long)]
    follow: bool,
}

#[derive(Debug, Args)]
struct ApproveArgs {
    /// Its number
    number: u64,
    /// Only what waits now; the list stays as it is
    #[arg(long)]
    once: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: EgressArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Allow(args) => change(&args.client, &args.hosts, &[], args.json).await?,
        Command::Deny(args) => match args.what.parse() {
            Ok(id) if args.hosts.is_empty() => answer(id, false, args.json).await?,
            _ if args.hosts.is_empty() => anyhow::bail!("deny {}: which hosts? See `shipote egress ls`", args.what),
            _ => change(&args.what, &[], &args.hosts, args.json).await?,
        },
        Command::Pending(args) => pending(&args).await?,
        Command::Approve(args) => approve(&args).await?,
        Command::Set(args) => set(&args).await?,
        Command::Remove(args) => remove(&args).await?,
        Command::Ls(args) => list(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn change(client: &str, allow: &[String], deny: &[String], as_json: bool) -> anyhow::Result<()> {
    let (keeper, name) = Keeper::of(client).with_context(|| {
        format!(
            "change the list of {client:?}: write workspace:NAME or machine:NAME; for others there is `shipote egress set`"
        )
    })?;
    let allow: Vec<&str> = allow.iter().map(String::as_str).collect();
    let deny: Vec<&str> = deny.iter().map(String::as_str).collect();
    let connection = connect::client().await?;
    let list = Lists::of(&connection, keeper).await?.change(name, &allow, &deny).await;
    let list = list.map_err(|e| anyhow::anyhow!("{}", describe(&e)))?;
    if as_json {
        return output::json(&json!({"client": client, "allow": list}));
    }
    let list = if list.is_empty() { "nothing".to_owned() } else { list.join(" ") };
    println!("{client} may reach {list}");
    Ok(())
}

async fn questions() -> anyhow::Result<EgressProxy<'static>> {
    let connection = connect::client().await?;
    Ok(EgressProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

async fn pending(args: &PendingArgs) -> anyhow::Result<()> {
    let egress = questions().await?;
    // Before the list is read, so that nothing is asked unseen in between.
    let mut asked = egress.receive_pending().await?;
    let all = egress.list_pending(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if !args.follow {
        if args.json {
            return output::json(&json!({"pending": all}));
        }
        let now = jiff::Timestamp::now().as_millisecond();
        let since = |ms: u64| u64::try_from(now).unwrap_or(0).saturating_sub(ms) / 1000;
        let rows =
            all.into_iter().map(|q| vec![q.id.to_string(), q.client, q.entry, output::duration(since(q.unix_ms))]);
        output::print_table(&["NUMBER", "CLIENT", "WANTS", "FOR"], rows.collect(), "no connection waits");
        return Ok(());
    }
    let show = |id: u64, client: &str, entry: &str| {
        if args.json {
            return output::json(&json!({"id": id, "client": client, "entry": entry}));
        }
        println!("{id} {client} {entry}");
        Ok(())
    };
    let mut last = 0;
    for question in all {
        last = last.max(question.id);
        show(question.id, &question.client, &question.entry)?;
    }
    while let Some(signal) = asked.next().await {
        let question = signal.args()?;
        if question.id > last {
            show(question.id, &question.client, &question.entry)?;
        }
    }
    Ok(())
}

async fn approve(args: &ApproveArgs) -> anyhow::Result<()> {
    let all = questions().await?.list_pending(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    let Some(question) = all.into_iter().find(|q| q.id == args.number) else {
        anyhow::bail!("approve {}: no connection waits under that number; see `shipote egress pending`", args.number);
    };
    if args.once || Keeper::of(&question.client).is_none() {
        return answer(args.number, true, args.json).await;
    }
    // Another list lets out what waits for it.
    change(&question.client, &[question.entry], &[], args.json).await
}

async fn answer(id: u64, allow: bool, as_json: bool) -> anyhow::Result<()> {
    let answered = questions().await?.answer(id, allow, BTreeMap::new()).await;
    let (client, entry) = answered.map_err(|e| refusal(&e)).with_context(|| format!("answer {id}"))?;
    if as_json {
        return output::json(&json!({"id": id, "client": client, "entry": entry, "allowed": allow}));
    }
    println!(
        "{client} {} {entry}{}",
        if allow { "reaches" } else { "does not reach" },
        if allow { " this once" } else { "" }
    );
    Ok(())
}

/// The last refusals of one client since a time, or of all.
pub(crate) async fn denials(client: Option<&str>, since_ms: u64) -> anyhow::Result<Vec<DenialInfo>> {
    let mut all = questions().await?.list_denials(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    all.retain(|d| d.unix_ms >= since_ms && client.is_none_or(|client| d.client == client));
    Ok(all)
}

async fn set(args: &SetArgs) -> anyhow::Result<()> {
    let allow: Vec<&str> = args.allow.iter().map(String::as_str).collect();
    let mut options = BTreeMap::new();
    if !args.users.is_empty() {
        options.insert("users", zbus::Variant::from(args.users.clone()));
    }
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
        anyhow::bail!("remove {}: it has no way out; see `shipote egress ls`", args.client);
    }
    Ok(())
}

/// What a client chose, without what would move the terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

async fn list(args: &ListArgs) -> anyhow::Result<()> {
    if args.denials {
        let all = denials(None, 0).await?;
        if args.json {
            return output::json(&json!({"denials": all}));
        }
        for denial in all {
            let at = i64::try_from(denial.unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            println!(
                "{} {} {}",
                at.map(|t| t.to_string()).unwrap_or_default(),
                denial.client,
                printable(&denial.reason)
            );
        }
        return Ok(());
    }
    let all = manager().await?.list_egress(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"clients": all}));
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
