//! `shipote up`: the embedded appliance, one foreground process that starts a private bus and the services.

use std::{path::PathBuf, process::ExitCode};

/// Arguments of `shipote up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Where state is kept [default: $XDG_STATE_HOME/shipote]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where sockets and other runtime files are kept [default: $XDG_RUNTIME_DIR/shipote]
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// Start only these services
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    services: Vec<String>,
}

pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let _ = (args.state, args.runtime, args.services);
    anyhow::bail!("start the appliance: not available yet; start the services from their units")
}
