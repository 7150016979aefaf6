//! `shipote capabilities`: what this host lets Shipote enforce.

use std::process::ExitCode;

use serde_json::json;
use shipote_bus::words::counted;

use crate::output;
use crate::workspace::isolation_rows;

#[derive(Debug, clap::Args)]
pub(crate) struct CapabilitiesArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Fail (exit status 1) where anything is degraded or missing
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(args: CapabilitiesArgs) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let mut all = manager.capabilities().await.map_err(|e| output::refusal(&e))?;
    all.extend(crate::machine::capabilities().await);
    let weak = all.iter().filter(|m| m.state != "enforced").count();
    if args.json {
        output::json(&json!({"mechanisms": all}))?;
    } else {
        output::print_table(&["MECHANISM", "STATE", "DETAIL"], isolation_rows(all), "none is reported");
    }
    if args.strict && weak > 0 {
        let weak = counted(weak, "mechanism");
        anyhow::bail!("check capabilities: not enforced in full: {weak}; the table says which and why");
    }
    Ok(ExitCode::SUCCESS)
}
