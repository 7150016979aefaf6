//! `shipote plugin`: add, check, list, show, activate, roll back and remove plugins, and read their policy.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use shipote_bus::plugins::{AddOptions, OpenInfo, Options, PluginInfo, PluginManagerProxy, PluginsError};
use shipote_bus::{Service, connect};
use zbus::proxy::CacheProperties;

use crate::output;

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
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show one version: exports, policy, other versions
    Show {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what is at work and how plugins are linked
    Graph {
        /// Form
        #[arg(long, default_value = "text", value_parser = ["text", "mermaid", "dot", "json"])]
        format: String,
        /// The same as --format json
        #[arg(long)]
        json: bool,
    },
    /// Put a version to work
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
    /// Remove a version
    #[command(visible_alias = "remove")]
    Rm {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
        /// Remove it even if it is at work
        #[arg(long, conflicts_with = "dry_run")]
        force: bool,
        /// Say what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show the policy that applies to a plugin
    Policy {
        /// NAME, NAME@1.2.3, NAME@^1.2 or sha256:HEX
        plugin: String,
    },
}

pub(crate) async fn run(args: PluginArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Add { file, auth, name, no_activate, signature, json } => {
            let common = AddOptions { name, activate: Some(!no_activate), ..AddOptions::default() };
            if file.is_dir() {
                return add_folder(&file, &common, json).await;
            }
            let (component, stem) = match file.to_str().filter(|text| text.starts_with("oci://")) {
                Some(reference) => (fetched(reference, auth.as_deref())?, reference_stem(reference)),
                None => (component(&file)?, stem(&file)),
            };
            let signature = signature_of(&file, signature)?;
            let options = AddOptions { stem, signature, ..common };
            let added = manager().await?.add(component.as_fd().into(), &options).await;
            done("added", added, json)?;
        }
        Command::Check { files, policy, json } => return check(&files, policy.as_deref(), json),
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
        Command::Activate { plugin, dry_run: true, json } => return plan("activate", &plugin, json).await,
        Command::Rollback { name, dry_run: true, json } => return plan("rollback", &name, json).await,
        Command::Rm { plugin, dry_run: true, json, .. } => return plan("remove", &plugin, json).await,
        Command::Activate { plugin, json, .. } => {
            done("activated", manager().await?.activate(&plugin, Options::new()).await, json)?;
        }
        Command::Rollback { name, json, .. } => {
            done("back to", manager().await?.rollback(&name, Options::new()).await, json)?;
        }
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
        Command::Policy { plugin } => {
            let policy = manager().await?.policy(&plugin).await.map_err(|error| refusal(&error))?;
            println!("{policy}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a change would do: 0 if it would be done, 1 if it would be refused.
async fn plan(action: &str, reference: &str, json: bool) -> anyhow::Result<ExitCode> {
    let plan = manager().await?.plan(action, reference, Options::new()).await.map_err(|error| refusal(&error))?;
    if json {
        output::json(&plan)?;
    } else if plan.refused.is_empty() {
        let version = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        println!("{}: at work now {}, then {}", plan.name, version(&plan.from), version(&plan.to));
        for (what, names) in [
            ("new exports", &plan.exports_added),
            ("exports that go", &plan.exports_removed),
            ("plugins that call it", &plan.used_by),
        ] {
            if !names.is_empty() {
                println!("  {what}: {}", names.join(", "));
            }
        }
    }
    if plan.refused.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    if json { Ok(ExitCode::FAILURE) } else { Err(anyhow::anyhow!("{}", plan.refused)) }
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

/// The component as a descriptor. Text is turned into the binary form by the registry's own program, so that this one
/// needs no parser for it.
fn component(path: &Path) -> anyhow::Result<OwnedFd> {
    let open = || format!("add plugin {}", path.display());
    let file = File::open(path).with_context(open)?;
    anyhow::ensure!(file.metadata().with_context(open)?.is_file(), "{}: not a file; give a component", open());
    if path.extension().is_none_or(|ending| ending != "wat") {
        return Ok(file.into());
    }
    let binary = memfd_create("component", MemfdFlags::CLOEXEC).with_context(open)?;
    let mut binary = File::from(binary);
    let status = Process::new(registry()?)
        .arg("wat")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(binary.try_clone().with_context(open)?)
        .status()
        .with_context(|| format!("{}: start shipote-plugins", open()))?;
    anyhow::ensure!(status.success(), "{}: not WebAssembly text, see above", open());
    binary.seek(SeekFrom::Start(0)).with_context(open)?;
    Ok(binary.into())
}

fn stem(file: &Path) -> Option<String> {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned())
}

/// The last part of a repository's name, under which a policy may be found.
fn reference_stem(reference: &str) -> Option<String> {
    let last = reference.rsplit('/').next()?;
    last.split(['@', ':']).next().map(str::to_owned)
}

/// Adds every component of a folder, by name; one that is refused does not keep the others out.
async fn add_folder(folder: &Path, common: &AddOptions, json: bool) -> anyhow::Result<ExitCode> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).with_context(|| format!("add plugins of {shown}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "wasm" || ending == "wat"))
        .collect();
    anyhow::ensure!(!files.is_empty(), "add plugins of {shown}: no file ends in .wasm or .wat; name another folder");
    files.sort();
    let manager = manager().await?;
    let mut code = ExitCode::SUCCESS;
    for file in files {
        let added = async {
            let component = component(&file)?;
            let options = AddOptions { stem: stem(&file), signature: signature_of(&file, None)?, ..common.clone() };
            done("added", manager.add(component.as_fd().into(), &options).await, json)
        };
        if let Err(error) = added.await {
            eprintln!("shipote: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// A component from an OCI registry, fetched by the registry's own program with this one's rights: the service has no
/// network and no credentials.
fn fetched(reference: &str, auth: Option<&Path>) -> anyhow::Result<OwnedFd> {
    let component = File::from(memfd_create("component", MemfdFlags::CLOEXEC).context("make a memfd")?);
    let mut command = Process::new(registry()?);
    command.arg("fetch");
    if let Some(auth) = auth {
        command.arg("--auth").arg(auth);
    }
    let status = command
        .arg(reference)
        .stdin(Stdio::null())
        .stdout(component.try_clone().context("hand over the memfd")?)
        .status()
        .with_context(|| format!("add plugin {reference}: start shipote-plugins"))?;
    anyhow::ensure!(status.success(), "add plugin {reference}: not fetched, see above");
    Ok(component.into())
}

/// The text of a component's signature: of the file that is named, else of the one beside it, if there is one.
fn signature_of(component: &Path, named: Option<PathBuf>) -> anyhow::Result<Option<String>> {
    let beside = component.with_file_name(format!("{}.minisig", component.file_name().unwrap_or_default().display()));
    match named {
        None if !beside.exists() => Ok(None),
        named => {
            let path = named.unwrap_or(beside);
            let text = std::fs::read_to_string(&path);
            text.map(Some)
                .with_context(|| format!("add plugin {}: read signature {}", component.display(), path.display()))
        }
    }
}

/// The registry's program: beside this one, else wherever the system finds it.
fn registry() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the path of this program")?;
    let name = Service::Plugins.binary();
    let beside = own.with_file_name(name);
    Ok(if beside.is_file() { beside } else { PathBuf::from(name) })
}

fn check(files: &[PathBuf], policy: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let program = registry()?;
    let mut command = Process::new(&program);
    command.arg("check");
    if json {
        command.arg("--json");
    }
    if let Some(folder) = policy {
        command.arg("--policy").arg(folder);
    }
    // A name that looks like an option is still a name.
    command.args(files.iter().map(|file| if file.is_absolute() { file.clone() } else { Path::new(".").join(file) }));
    let status = command.status().with_context(|| {
        format!("check plugins: start {}; install it, or put it beside this program", program.display())
    })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn done(what: &str, outcome: Result<PluginInfo, PluginsError>, json: bool) -> anyhow::Result<()> {
    let plugin = outcome.map_err(|error| refusal(&error))?;
    if json {
        return output::json(&plugin);
    }
    let state = if plugin.active { "at work" } else { "not at work" };
    println!("{what} {} {} ({}), {state}", plugin.name, plugin.version, plugin.digest);
    Ok(())
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
            if plugin.active { "active".into() } else { "-".into() },
            #[allow(clippy::cast_precision_loss, reason = "for people")]
            output::bytes(plugin.size as f64),
            plugin.digest.chars().take(19).collect(),
            plugin.exports.join(", "),
        ]
    });
    output::print_table(
        &["NAME", "VERSION", "STATE", "SIZE", "DIGEST", "EXPORTS"],
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
        "active": info.active,
        "versions": info.versions,
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
