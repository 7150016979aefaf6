//! The command line of Shipote, and the embedded appliance (`shipote up`).
//!
//! For: turning a command line into calls on the bus and their answers into text or JSON. Not for: holding state;
//! whatever outlives a command belongs to one of the services. Invariant: a command prints its result on stdout and
//! nothing else there, one line on stderr if it fails, and leaves with 0 (done), 1 (refused or failed) or 2 (wrong
//! usage); only `run` passes on other statuses.
//!
//! One file per command, each with its arguments and `run(args) -> anyhow::Result<ExitCode>`.

mod proxy;
mod status;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sandboxed workspaces, microVMs and a programmable proxy over D-Bus.
#[derive(Debug, Parser)]
#[command(name = "shipote", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the embedded appliance in the foreground: a private bus and the services
    Up(up::UpArgs),
    /// Compile proxy rules, and ask the running proxy
    Proxy(proxy::ProxyArgs),
    /// Show what runs, since when, and how it is confined
    Status(status::StatusArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread for everything: the parent-death signal of the appliance's children follows the thread that
    // started them, and the command line itself only waits for answers.
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(dispatch(cli.command)));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shipote: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(args).await,
        Command::Proxy(args) => proxy::run(args).await,
        Command::Status(args) => status::run(args).await,
    }
}
