//! `shipote ps`: commands, living and ended.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;
use shipote_bus::workspaces::CommandInfo;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Only the commands of this workspace, by name or id
    #[arg(short, long, value_name = "WS")]
    workspace: Option<String>,
    /// Ended commands too
    #[arg(short, long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: PsArgs) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let workspace = args.workspace.unwrap_or_default();
    let mut commands = manager.list_commands(&workspace, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    if !args.all {
        commands.retain(|c| c.state != "ended");
    }
    if args.json {
        output::json(&json!({"commands": commands}))?;
    } else {
        let none = if args.all { "no command ran yet" } else { "no command runs; --all lists those that ended" };
        output::print_table(HEAD, commands.into_iter().map(row).collect(), none);
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) const HEAD: &[&str] = &["ID", "WORKSPACE", "LABEL", "STATE", "STATUS", "PID", "TIME", "COMMAND"];

pub(crate) fn row(command: CommandInfo) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(0));
    let seconds = command.ended.unwrap_or(now).saturating_sub(command.started) / 1_000_000;
    let status = match command.exit_status {
        Some(status) if command.reason == "exited" => status.to_string(),
        Some(status) => format!("{status} ({})", command.reason),
        None => String::new(),
    };
    vec![
        command.id,
        command.workspace,
        command.label,
        command.state,
        status,
        command.pid.to_string(),
        output::duration(seconds),
        command.argv.join(" ").chars().take(60).collect(),
    ]
}
