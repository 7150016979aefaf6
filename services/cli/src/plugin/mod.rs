//! `shipote plugin`: what there is, what each version is, and which one works.

mod add;
mod change;
mod stats;

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shipote_bus::connect;
use shipote_bus::plugins::{AddOptions, OpenInfo, Options, PluginManagerProxy, PluginsError};
use zbus::proxy::CacheProperties;

use crate::output;
use change::{done, percent, plan};

/// Longest that adding a plugin may take: it is compiled meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, Args)]
pub(crate) struct PluginArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add components: each is checked, compiled, kept, and put to work
    #[command(
        after_help = "Examples:\n  shipote plugin add stamp.wasm\n  shipote plugin add oci://ghcr.io/example/stamp:1.0.0"
    )]
    Add {
        /// Component (text, .wat, is accepted for development), folder of components, or oci://REGISTRY/REPOSITORY:TAG
        #[arg(value_name = "FILE|DIR|oci://…")]
        file: PathBuf,
        /// Credentials for the registry, as `docker login` writes them
        #[arg(long, value_name = "FILE")]
        auth: Option<PathBuf>,
        /// Name that the plugin must give itself
        #[arg(long)]
        name: Option<String>,
        /// Version of a command or filter, which says none of itself [default: 1.0.0]
        #[arg(long)]
        version: Option<String>,
        /// Keep it without putting it to work
        #[arg(long)]
        no_activate: bool,
        /// Its signature, made by minisign; without this, FILE.minisig if there is one
        #[arg(long, value_name = "FILE")]
        signature: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say whether components would be taken, and if not why; no service is needed
    #[command(
        after_help = "Examples:\n  shipote plugin check stamp.wasm\n  shipote plugin check --policy policies/plugins *.wasm --json"
    )]
    Check {
        /// Components
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Folder with policy.json or policy.toml; without it everything is denied
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
        /// Print one JSON object a file
        #[arg(long)]
        json: bool,
    },
    /// List plugins and versions
    #[command(visible_alias = "list", after_help = "Examples:\n  shipote plugin ls\n  shipote plugin ls --json")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show one version: exports, policy, other versions
    #[command(after_help = "Examples:\n  shipote plugin show stamp\n  shipote plugin show stamp@^1.2 --json")]
    Show {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what is at work and how plugins are linked
    #[command(
        after_help = "Examples:\n  shipote plugin graph\n  shipote plugin graph --format dot | dot -Tsvg > plugins.svg"
    )]
    Graph {
        /// Form
        #[arg(long, default_value = "text", value_parser = ["text", "mermaid", "dot", "json"])]
        format: String,
        /// The same as --format json
        #[arg(long)]
        json: bool,
    },
    /// Put a version to work
    #[command(
        after_help = "Examples:\n  shipote plugin activate --dry-run stamp@1.3.0\n  shipote plugin activate stamp@^1.2"
    )]
    Activate {
        /// NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Go back to the version that was at work before
    #[command(after_help = "Examples:\n  shipote plugin rollback stamp")]
    Rollback {
        /// Name
        name: String,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give a version a share of the calls, on trial
    Canary(change::CanaryArgs),
    /// Put the canary of a plugin to work
    Promote(change::EndArgs),
    /// Take the share of a plugin's canary away
    Abort(change::EndArgs),
    /// Show how plugins fare: calls, failures, time, fuel
    Stats(stats::StatsArgs),
    /// Remove a version
    #[command(
        visible_alias = "remove",
        after_help = "Examples:\n  shipote plugin rm stamp@1.2.0\n  shipote plugin rm --force stamp"
    )]
    Rm {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Remove it even if it is at work
        #[arg(long)]
        force: bool,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the policy that applies to a plugin
    #[command(after_help = "Examples:\n  shipote plugin policy stamp\n  shipote plugin policy stamp@1.2.0 --json")]
    Policy {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Print one JSON object on one line
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(args: PluginArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Add { file, auth, name, version, no_activate, signature, json } => {
            let common = AddOptions { name, version, activate: Some(!no_activate), ..AddOptions::default() };
            if file.is_dir() {
                return add::add_folder(&file, &common, json).await;
            }
            let (component, stem) = match file.to_str().filter(|text| text.starts_with("oci://")) {
                Some(reference) => (add::fetched(reference, auth.as_deref())?, add::reference_stem(reference)),
                None => (add::component(&file)?, add::stem(&file)),
            };
            let signature = add::signature_of(&file, signature)?;
            let options = AddOptions { stem, signature, ..common };
            let added = manager().await?.add(component.as_fd().into(), &options).await;
            done("added", added, json)?;
        }
        Command::Check { files, policy, json } => return add::check(&files, policy.as_deref(), json),
        Command::Ls { json } => list(json).await?,
        Command::Show { plugin, json } => {
            let info = manager().await?.show(&plugin).await.map_err(|error| refusal(&error))?;
            show(&info, json)?;
        }
        Command::Graph { format, json } => {
            let format = if json { "json" } else { format.as_str() };
            let graph = manager().await?.graph(format).await.map_err(|error| refusal(&error))?;
            let empty = format == "text" && graph.is_empty();
            println!("{}", if empty { "no plugin is at work" } else { graph.trim_end() });
        }
        Command::Activate { plugin, dry_run: true, json } => {
            return plan("activate", &plugin, Options::new(), json).await;
        }
        Command::Rollback { name, dry_run: true, json } => return plan("rollback", &name, Options::new(), json).await,
        Command::Rm { plugin, force, dry_run: true, json } => {
            // A registry of an older release knows no such option; without it none need be told.
            let options = if force { Options::from([("force", true.into())]) } else { Options::new() };
            return plan("remove", &plugin, options, json).await;
        }
        Command::Activate { plugin, json, .. } => {
            done("activated", manager().await?.activate(&plugin, Options::new()).await, json)?;
        }
        Command::Rollback { name, json, .. } => {
            done("back to", manager().await?.rollback(&name, Options::new()).await, json)?;
        }
        Command::Canary(args) => return change::canary(&args).await,
        Command::Promote(args) => return change::end(true, &args).await,
        Command::Abort(args) => return change::end(false, &args).await,
        Command::Stats(args) => stats::stats(&args).await?,
        Command::Rm { plugin, force, json, .. } => {
            let options = Options::from([("force", force.into())]);
            let gone = manager().await?.remove(&plugin, options).await.map_err(|error| refusal(&error))?;
            let [name, version, digest] = gone.try_into().unwrap_or_default();
            if json {
                output::json(&json!({"name": name, "version": version, "digest": digest}))?;
            } else {
                println!("removed {name} {version} ({digest})");
            }
        }
        Command::Policy { plugin, json } => {
            let policy = manager().await?.policy(&plugin).await.map_err(|error| refusal(&error))?;
            let policy: Value = serde_json::from_str(&policy)?;
            if json {
                output::json(&policy)?;
            } else {
                println!("{}", serde_json::to_string_pretty(&policy)?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn manager() -> anyhow::Result<PluginManagerProxy<'static>> {
    let connection = connect::patient_client(PATIENCE).await?;
    Ok(PluginManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

fn refusal(error: &PluginsError) -> anyhow::Error {
    match error {
        PluginsError::ZBus(error) => {
            anyhow::anyhow!("ask the plugin registry: {}", shipote_bus::error::describe(error))
        }
        other => anyhow::anyhow!("{}", zbus::DBusError::description(other).unwrap_or("refused without a reason")),
    }
}

async fn list(json: bool) -> anyhow::Result<()> {
    let plugins = manager().await?.list(Options::new()).await.map_err(|error| refusal(&error))?;
    if json {
        return output::json(&json!({"plugins": plugins}));
    }
    let rows = plugins.into_iter().map(|plugin| {
        vec![
            plugin.name,
            plugin.version,
            plugin.kind,
            match plugin.share {
                0 if plugin.active => "active".into(),
                0 => "-".into(),
                share => format!("canary {}", percent(share)),
            },
            #[allow(clippy::cast_precision_loss, reason = "for people")]
            output::bytes(plugin.size as f64),
            plugin.digest.chars().take(19).collect(),
            plugin.exports.join(", "),
        ]
    });
    output::print_table(
        &["NAME", "VERSION", "KIND", "STATE", "SIZE", "DIGEST", "EXPORTS"],
        rows.collect(),
        "no plugins; `shipote plugin add FILE` adds one",
    );
    Ok(())
}

fn show(info: &OpenInfo, as_json: bool) -> anyhow::Result<()> {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_default();
    let whole = json!({
        "name": info.name,
        "version": info.version,
        "kind": info.kind,
        "active": info.active,
        "versions": info.versions,
        "canary": (!info.canary.is_empty()).then(|| json!({"version": info.canary, "share": f64::from(info.share) / 100.0, "since": info.canary_since})),
        "digest": info.digest,
        "size": info.size,
        "added": info.added,
        "engine": info.engine,
        "links": info.links,
        "metadata": parsed(&info.metadata),
        "policy": parsed(&info.policy),
    });
    if as_json {
        return output::json(&whole);
    }
    println!("{}", serde_json::to_string_pretty(&whole)?);
    Ok(())
}
