//! `shipote proxy`: rules compiled and shown, and the running proxy asked and reloaded.

pub(crate) mod ask;
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
    /// Compile a directory of rules and print the flow graph, without touching any traffic; plugins are not looked up
    Compile(compile::CompileArgs),
    /// List the listeners and their rules, in the order in which they are tried
    #[command(visible_aliases = ["ls", "list"])]
    Rules(ask::JsonArgs),
    /// Print the flow graph that holds now
    Graph(ask::GraphArgs),
    /// Read the rule files again and go over to them, whole or not at all
    Reload(ask::JsonArgs),
    /// List the open connections
    Connections(ask::JsonArgs),
    /// List the upstreams and how they fare
    Upstreams(ask::JsonArgs),
    /// List the call sites of plugins and their instances
    Pools(ask::JsonArgs),
    /// List the certificates of the listeners
    Certs(ask::JsonArgs),
    /// Show the last flows; with --follow, those to come
    Tail(ask::TailArgs),
    /// Print the figures as OpenMetrics text
    Metrics,
}

pub(crate) async fn run(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Compile(args) => return compile::run(&args),
        Command::Rules(args) => ask::rules(&args).await?,
        Command::Graph(args) => ask::graph(&args).await?,
        Command::Reload(args) => ask::reload(&args).await?,
        Command::Connections(args) => ask::connections(&args).await?,
        Command::Upstreams(args) => ask::upstreams(&args).await?,
        Command::Pools(args) => ask::pools(&args).await?,
        Command::Certs(args) => ask::certs(&args).await?,
        Command::Tail(args) => ask::tail(&args).await?,
        Command::Metrics => ask::metrics().await?,
    }
    Ok(ExitCode::SUCCESS)
}
