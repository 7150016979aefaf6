//! `shipote proxy`: rules compiled and shown, and the running proxy asked and reloaded.

mod compile;

use std::process::ExitCode;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compile a directory of rules and print the flow graph, without touching any traffic
    Compile(compile::CompileArgs),
}

pub(crate) async fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Compile(args) => compile::run(&args),
    }
}
