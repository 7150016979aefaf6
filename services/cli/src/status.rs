//! `shipote status`: what runs, since when, with what confinement.

use std::process::ExitCode;

/// Arguments of `shipote status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let _ = args.json;
    anyhow::bail!("show status: not available yet; use `busctl --address=ADDRESS list`")
}
