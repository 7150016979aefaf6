//! `cargo xtask vm`: a Debian 13 system virtual machine under QEMU.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the machine's image and store it in the cache.
    Build,
}

/// Runs one action; the exit code is the command's own where a command ran in the machine.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Build => anyhow::bail!("the image builder is not available yet"),
    }
}
