//! `shipote image`: images in a machine's store. The machine pulls them itself; here is what is said and shown.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use shipote_agent_protocol::{AgentRequest, AgentResponse, ImageInfo, RegistryAuth, read_message, write_message};
use shipote_bus::words::counted;
use tokio::net::UnixStream;

use crate::machine::agent;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have a running machine pull an image from a registry
    #[command(
        after_help = "The machine reaches what its --egress rules allow, and registries on loopback without TLS.\n\n\
        Example:\n  shipote machine create web --disk 4G --egress registry.example.org:443\n  \
        shipote machine start web\n  shipote image pull web registry.example.org/app:1\n  \
        shipote machine exec web --image registry.example.org/app:1 -- /bin/sh -c id"
    )]
    Pull(PullArgs),
    /// List the images of a running machine
    #[command(visible_alias = "list")]
    Ls {
        /// Machine
        machine: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove an image of a running machine, and the layers that no other needs; what runs on it goes on
    #[command(visible_alias = "remove")]
    Rm {
        /// Machine
        machine: String,
        /// Name or digest, as `image ls` shows it
        image: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove what no image of a running machine needs
    Gc {
        /// Machine
        machine: String,
        /// Also images that nothing runs on
        #[arg(long)]
        all: bool,
        /// Only say how much it would be
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct PullArgs {
    /// Machine
    machine: String,
    /// `HOST:PORT/REPOSITORY:TAG@DIGEST`; all but the repository may be left out
    image: String,
    /// os/architecture[/variant] [default: the machine's own]
    #[arg(long)]
    platform: Option<String>,
    /// User at the registry; the password is read from standard input
    #[arg(long)]
    user: Option<String>,
    /// Print JSON: progress, one object a line, then the image
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: ImageArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Pull(args) => pull_for(args).await?,
        Command::Ls { machine, json } => list(&machine, json).await?,
        Command::Rm { machine, image, json } => remove(&machine, image, json).await?,
        Command::Gc { machine, all, dry_run, json } => collect(&machine, all, dry_run, json).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn pull_for(args: PullArgs) -> anyhow::Result<()> {
    let auth = match args.user {
        None => None,
        Some(username) => {
            let mut password = String::new();
            std::io::stdin().take(64 * 1024).read_to_string(&mut password).context("read the password")?;
            Some(RegistryAuth { username, password: password.trim_end_matches(['\r', '\n']).to_owned() })
        }
    };
    let mut stream = agent(&args.machine).await?;
    let info = pull(&mut stream, &args.image, args.platform, auth, args.json).await?;
    if args.json {
        return output::json(&info);
    }
    let layers = counted(info.layer_count, "layer");
    println!("{} {} ({layers}, {} KiB)", info.reference, info.digest, info.size / 1024);
    Ok(())
}

/// Pulls, showing how far it is on standard error, or with `json` on standard output.
pub(crate) async fn pull(
    stream: &mut UnixStream,
    image: &str,
    oci_platform: Option<String>,
    auth: Option<RegistryAuth>,
    json: bool,
) -> anyhow::Result<ImageInfo> {
    // Drawn only where standard error is a terminal.
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new(100) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}").context("draw a bar")?);
    write_message(stream, &AgentRequest::Pull { image: image.to_owned(), oci_platform, auth }).await?;
    loop {
        match read_message(stream).await? {
            Some(AgentResponse::Progress { message, percent, layer }) if json => {
                output::json(&json!({"message": message, "percent": percent, "layer": layer}))?;
            }
            Some(AgentResponse::Progress { message, percent, .. }) => {
                bar.set_position(percent.unwrap_or(0).into());
                bar.set_message(output::readable(&message));
            }
            Some(AgentResponse::Ok { data: Some(data) }) => {
                bar.finish_and_clear();
                return serde_json::from_value(data).context("understand the machine's agent");
            }
            Some(AgentResponse::Error { message, .. }) => {
                bar.finish_and_clear();
                bail!("pull {image}: {message}");
            }
            _ => bail!("pull {image}: the machine went away"),
        }
    }
}

/// The data of an answer.
async fn ask(machine: &str, request: &AgentRequest) -> anyhow::Result<serde_json::Value> {
    let mut stream = agent(machine).await?;
    write_message(&mut stream, request).await?;
    match read_message(&mut stream).await? {
        Some(AgentResponse::Ok { data }) => Ok(data.unwrap_or_default()),
        Some(AgentResponse::Error { message, .. }) => bail!("images of {machine}: {message}"),
        _ => bail!("images of {machine}: the machine went away"),
    }
}

async fn list(machine: &str, json: bool) -> anyhow::Result<()> {
    let data = ask(machine, &AgentRequest::ListImages).await?;
    let images: Vec<ImageInfo> = serde_json::from_value(data).context("understand the machine's agent")?;
    if json {
        return output::json(&json!({"images": images}));
    }
    let row = |image: ImageInfo| {
        let digest = image.digest.trim_start_matches("sha256:").chars().take(12).collect();
        vec![
            image.reference,
            digest,
            format!("{}/{}", image.os, image.architecture),
            image.layer_count.to_string(),
            format!("{} KiB", image.size / 1024),
        ]
    };
    output::print_table(
        &["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE"],
        images.into_iter().map(row).collect(),
        "no images",
    );
    Ok(())
}

async fn remove(machine: &str, image: String, json: bool) -> anyhow::Result<()> {
    let data = ask(machine, &AgentRequest::RemoveImage { image: image.clone() }).await?;
    if json {
        return output::json(&data);
    }
    println!("{image} removed, {} KiB freed", data["freed_bytes"].as_u64().unwrap_or(0) / 1024);
    Ok(())
}

async fn collect(machine: &str, all: bool, dry_run: bool, json: bool) -> anyhow::Result<()> {
    let data = ask(machine, &AgentRequest::GarbageCollect { dry_run, purge_all: all }).await?;
    if json {
        return output::json(&data);
    }
    let freed = data["freed_bytes"].as_u64().unwrap_or(0) / 1024;
    println!("{freed} KiB {}", if dry_run { "could be freed" } else { "freed" });
    Ok(())
}
