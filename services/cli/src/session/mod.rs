//! `shipote session`: a workspace or a machine to work in for a while, made from a template: files in and out, commands, a
//! snapshot that another session goes on from.
//!
//! A session is a workspace or a machine whose label `session` says what it was made from; there is no other state. So
//! whatever is true of those (limits, ttl, published ports, audit, restarts of the service) is true of sessions, and their
//! commands work on them, too.

mod files;
mod machine;
mod snapshot;
mod template;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use shipote_bus::words::counted;
use shipote_bus::workspaces::{ManagerProxy, WorkspaceInfo, WorkspaceProxy, WorkspacesError};

use crate::output;
use crate::publish::PublishArgs;
use crate::run::RunArgs;
use template::Template;

/// The label that makes a workspace a session; its value is the template.
const LABEL: &str = "session";

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a session from a template or a snapshot
    #[command(after_help = "A template is a workspace's spec (TOML). NAME is looked for as sessions/NAME.toml in the \
        configuration folders,\nthen as sessions/NAME.tar, a snapshot that was put there.\n\nExamples:\n  \
        shipote session create box\n  shipote session create box --template python --ttl 1h --publish 8080\n  \
        shipote session create box2 -f box.tar")]
    Create {
        /// Name, unique among living workspaces; one of a-z, 0-9 and `-` also does for a machine
        name: String,
        /// Template, by name [default: an empty spec]
        #[arg(short, long, value_name = "NAME")]
        template: Option<String>,
        /// Template (.toml) or snapshot (.tar), by file
        #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "template")]
        file: Option<PathBuf>,
        #[command(flatten)]
        changes: template::Changes,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the living sessions
    #[command(visible_alias = "list")]
    Ls {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show a session: what it was made from, its spec, what it publishes
    Show {
        /// Name
        name: String,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let the proxy reach more ports of a living session, or fewer
    #[command(
        after_help = "Examples:\n  shipote session publish box 8080\n  shipote session publish box --remove 8080"
    )]
    Publish(PublishArgs),
    /// Run a command in a session; `shipote run --help` explains the options
    #[command(
        after_help = "Examples:\n  shipote session exec box -- python3 work.py\n  shipote session exec box -t -- bash"
    )]
    Exec {
        /// Name
        name: String,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Copy a file or a folder into a session or out of it
    #[command(
        after_help = "Examples:\n  shipote session cp work.py box:/work/work.py\n  shipote session cp -r box:/work/out out"
    )]
    Cp {
        /// FILE, or NAME:PATH
        from: String,
        /// FILE, or NAME:PATH
        to: String,
        /// A whole folder
        #[arg(short, long)]
        recursive: bool,
    },
    /// Write spec and files (/work) of a session into a file, from which others are made
    Snapshot {
        /// Name
        name: String,
        /// File to write (.tar)
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Go on from a snapshot, under the name that it had
    Resume {
        /// Snapshot (.tar)
        file: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// End a session; its files go, unless its spec says otherwise (`on_exit`)
    #[command(visible_alias = "remove")]
    Rm {
        /// Name
        name: String,
        /// Time between SIGTERM and SIGKILL: 5s, or milliseconds
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::units::milliseconds)]
        grace: u64,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(args: SessionArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Create { name, template, file, changes, json } => {
            let mut template = match (template, file) {
                (Some(name), _) => Template::named(&name)?,
                (None, Some(file)) => Template::read(&file)?,
                (None, None) => Template::empty(),
            };
            template.change(&changes)?;
            create(&name, template, json).await?;
        }
        Command::Resume { file, json } => {
            let template = Template::read(&file)?;
            let Some(name) = template.name().map(str::to_owned) else {
                bail!(
                    "resume {}: it does not say what it was called; use `shipote session create NAME -f`",
                    file.display()
                );
            };
            create(&name, template, json).await?;
        }
        Command::Publish(args) => {
            if machine::find(&args.name).await?.is_some() {
                crate::publish::in_machine(&args).await?;
            } else {
                find(&output::workspaces().await?, &args.name).await?;
                crate::publish::in_workspace(&args).await?;
            }
        }
        Command::Ls { json } => list(json).await?,
        Command::Show { name, json } => show(&name, json).await?,
        Command::Exec { name, mut run } => {
            if machine::find(&name).await?.is_some() {
                return machine::exec(&name, &run).await;
            }
            if run.workspace.replace(name).is_some() {
                bail!("session exec: -w is for `shipote run`; a session is its own workspace");
            }
            return crate::run::run(run).await;
        }
        Command::Cp { from, to, recursive } => match machine_of(&[&from, &to]).await? {
            Some(name) if recursive => {
                bail!("session cp: {name} is a machine, which takes files one by one; pack the folder")
            }
            Some(_) => crate::machine::copy_file(&from, &to).await?,
            None => files::copy(&from, &to, recursive).await?,
        },
        Command::Snapshot { name, file, json } => {
            if machine::find(&name).await?.is_some() {
                bail!("snapshot {name}: it is a machine, whose disk is no tar archive; not available yet");
            }
            let manager = output::workspaces().await?;
            find(&manager, &name).await?;
            let bytes = snapshot::write(&manager, &name, &spec_of(&manager, &name).await?, &file).await?;
            if json {
                output::json(&json!({"name": name, "file": file, "bytes": bytes}))?;
            } else {
                println!("wrote {name} to {} ({bytes} bytes)", file.display());
            }
        }
        Command::Rm { name, grace, json } => {
            if machine::find(&name).await?.is_some() {
                machine::remove(&name, grace).await?;
                if json {
                    output::json(&json!({"name": name}))?;
                } else {
                    println!("removed {name}");
                }
                return Ok(ExitCode::SUCCESS);
            }
            let manager = output::patient_workspaces(grace).await?;
            find(&manager, &name).await?;
            let reaped =
                manager.stop_workspace(&name, grace, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
            if json {
                output::json(&json!({"name": name, "reaped": reaped}))?;
            } else {
                println!("removed {name}, {} ended", counted(reaped, "process"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The machine that one end of a copy is in.
async fn machine_of(ends: &[&str]) -> anyhow::Result<Option<String>> {
    for end in ends {
        if let Some((name, _)) = end.split_once(':')
            && machine::find(name).await?.is_some()
        {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

async fn create(name: &str, mut template: Template, json: bool) -> anyhow::Result<()> {
    if template.is_machine() {
        machine::create(name, &template.spec()?, template.file()).await?;
        if json {
            return output::json(&json!({"name": name, "template": template.source(), "machine": true}));
        }
        println!("created {name}, a machine, from {}", template.source());
        return Ok(());
    }
    let manager = output::workspaces().await?;
    let (_, id, isolation) =
        manager.create_workspace(name, &template.spec()?, BTreeMap::new()).await.map_err(|error| {
            match (&error, template.file()) {
                // It was written anew, so its lines are not those of the file.
                (WorkspacesError::InvalidSpec(said), Some(file)) => {
                    anyhow::anyhow!("{}", crate::spec::in_changed_source(said, "workspace", file))
                }
                _ => output::refusal(&error),
            }
        })?;
    if let Some(files) = template.files()
        && let Err(error) = snapshot::restore(&manager, name, files).await
    {
        // half of its files is no session; what went wrong matters more than whether this succeeds
        let _ = manager.stop_workspace(name, 0, BTreeMap::new()).await;
        return Err(error);
    }
    if json {
        return output::json(&json!({
            "id": id, "name": name, "template": template.source(), "isolation": isolation,
        }));
    }
    println!("created {name} ({id}) from {}", template.source());
    Ok(())
}

/// The living session of this name.
async fn find(manager: &ManagerProxy<'_>, name: &str) -> anyhow::Result<WorkspaceInfo> {
    let all = manager.list_workspaces(BTreeMap::new()).await.map_err(|error| output::refusal(&error))?;
    match all.into_iter().find(|workspace| workspace.name == name || workspace.id == name) {
        Some(workspace) if workspace.labels.contains_key(LABEL) => Ok(workspace),
        Some(_) => bail!("session {name:?} is a workspace that is none; use `shipote workspace`"),
        None => bail!("session {name:?} does not exist; `shipote session ls` shows those that do"),
    }
}

async fn spec_of(manager: &ManagerProxy<'_>, name: &str) -> anyhow::Result<String> {
    let path = manager.get_workspace(name).await.map_err(|error| output::refusal(&error))?;
    let object = WorkspaceProxy::builder(manager.inner().connection()).path(path).build().await?;
    Ok(object.spec().await?)
}

async fn list(json: bool) -> anyhow::Result<()> {
    let manager = output::workspaces().await?;
    let all = manager.list_workspaces(BTreeMap::new()).await.map_err(|error| output::refusal(&error))?;
    let sessions: Vec<_> = all.into_iter().filter(|workspace| workspace.labels.contains_key(LABEL)).collect();
    let in_machines = match machine::all().await {
        Ok(all) => all,
        Err(error) => {
            eprintln!("shipote: sessions in machines are not shown: {:#}", crate::machine::refusal(&error));
            Vec::new()
        }
    };
    if json {
        return output::json(&json!({"sessions": sessions, "machines": in_machines}));
    }
    let rows = sessions.into_iter().map(|mut session| {
        let from = session.labels.remove(LABEL).unwrap_or_default();
        let uptime = output::duration(session.uptime_ms / 1000);
        vec![session.name, session.state, from, session.commands.to_string(), uptime, session.uid.to_string()]
    });
    let machines = in_machines.into_iter().map(|mut machine| {
        let from = machine.labels.remove(LABEL).unwrap_or_default();
        vec![machine.name, format!("{} (machine)", machine.state), from]
    });
    output::print_table(
        &["NAME", "STATE", "FROM", "COMMANDS", "UPTIME", "UID"],
        rows.chain(machines).collect(),
        "no session lives; `shipote session create NAME` makes one",
    );
    Ok(())
}

async fn show(name: &str, json: bool) -> anyhow::Result<()> {
    if let Some(machine) = machine::find(name).await? {
        let ports = machine.publish.iter().filter_map(|text| text.rsplit(':').next());
        let endpoints: Vec<String> = ports.map(|port| format!("machine:{name}:{port}")).collect();
        if json {
            let mut object = output::plain(serde_json::to_value(&machine)?);
            if let Some(fields) = object.as_object_mut() {
                fields.insert("endpoints".to_owned(), json!(endpoints));
            }
            return output::json(&object);
        }
        let from = machine.labels.get(LABEL).map_or("", String::as_str);
        println!("{name} is {}, a machine made from {from}", machine.state);
        endpoints.iter().for_each(|endpoint| println!("the proxy reaches it as {endpoint}"));
        return Ok(());
    }
    let manager = output::workspaces().await?;
    let session = find(&manager, name).await?;
    let spec = spec_of(&manager, name).await?;
    let parsed: toml::Table = toml::from_str(&spec)?;
    let ports: Vec<i64> = parsed
        .get("publish")
        .and_then(toml::Value::as_array)
        .map(|ports| ports.iter().filter_map(toml::Value::as_integer).collect())
        .unwrap_or_default();
    let endpoints: Vec<String> = ports.iter().map(|port| format!("workspace:{}:{port}", session.name)).collect();
    if json {
        let mut object = output::plain(serde_json::to_value(&session)?);
        if let Some(fields) = object.as_object_mut() {
            fields.insert("spec".to_owned(), json!(spec));
            fields.insert("endpoints".to_owned(), json!(endpoints));
        }
        return output::json(&object);
    }
    let from = session.labels.get(LABEL).map_or("", String::as_str);
    println!("{} ({}) is {}, made from {from}", session.name, session.id, session.state);
    for endpoint in endpoints {
        println!("the proxy reaches it as {endpoint}");
    }
    println!("\nSpec:");
    spec.lines().for_each(|line| println!("  {line}"));
    Ok(())
}
