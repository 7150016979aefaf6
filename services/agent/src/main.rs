//! The agent inside a machine: PID 1 of the guest, answering its host over vsock.
//!
//! For: running commands and moving files in the guest, as [`shipote_agent_protocol`] words it; mounting, reaping and
//! powering off, as PID 1 must. Not for: deciding anything; the host's machines service does.
//!
//! Outside a machine `--listen unix:PATH` serves the same protocol as an ordinary process, without mounts and power,
//! so that clients and tests need no virtual machine.
//!
//! Invariant: whatever a host sends costs bounded memory, and what ran for a connection ends with it, unless it was
//! started in the background.

#![deny(unsafe_op_in_unsafe_fn)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use listen::Door;

mod agent;
mod boot;
mod connection;
mod egress;
mod exec;
mod files;
mod images;
mod inbox;
mod listen;
mod names;
mod outbox;
mod power;
mod reach;
mod reaper;
mod requests;
mod ssh;
mod volumes;
mod workload;

/// The agent inside a machine. As PID 1 it takes no arguments.
#[derive(Debug, Parser)]
#[command(name = "shipote-agent", version)]
struct Args {
    /// Serve the protocol on a Unix socket, as an ordinary process: `unix:PATH`.
    #[arg(long, value_name = "unix:PATH")]
    listen: String,
    /// Serve the workload protocol (port 5000 of a machine) on this Unix socket.
    #[arg(long, value_name = "PATH")]
    workload: Option<PathBuf>,
    /// Serve its logs (port 5001) on this one.
    #[arg(long, value_name = "PATH")]
    logs: Option<PathBuf>,
    /// Serve connections to what listens here (port 6005) on this one.
    #[arg(long, value_name = "PATH")]
    reach: Option<PathBuf>,
    /// Serve files as they are (port 6006) on this one.
    #[arg(long, value_name = "PATH")]
    files: Option<PathBuf>,
    /// Directory that file requests take for `/`.
    #[arg(long, default_value = "/")]
    root: PathBuf,
    /// What a connection must say first; without it the socket's mode (0600) is the only guard.
    #[arg(long, env = "SHIPOTE_AGENT_SECRET", hide_env_values = true)]
    secret: Option<String>,
}

fn main() -> ExitCode {
    let result = if std::process::id() == 1 { boot::run() } else { ordinary(Args::parse()) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shipote-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// One thread for everything but file I/O: the guest has little memory and mostly one processor.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_stack_size(256 * 1024)
        .build()
}

fn ordinary(args: Args) -> anyhow::Result<()> {
    let path = args.listen.strip_prefix("unix:").context("--listen takes unix:PATH")?;
    runtime()?.block_on(async {
        let listener = listen::unix(path.as_ref()).with_context(|| format!("listen on {path}"))?;
        let agent = agent::Agent::new(
            &args.root,
            args.secret,
            exec::Cgroups::none(),
            power::Power::Process,
            None,
            agent::Features::default(),
            vec![],
        )?;
        reaper::become_subreaper();
        tokio::spawn(Arc::clone(&agent.reaper).run(reaper::signal()?));
        let doors = [
            (&args.workload, Door::Workload),
            (&args.logs, Door::Logs),
            (&args.reach, Door::Reach),
            (&args.files, Door::Files),
        ];
        for (path, door) in doors.into_iter().filter_map(|(path, door)| Some((path.clone()?, door))) {
            let listener = listen::unix(&path).with_context(|| format!("listen on {}", path.display()))?;
            let agent = Arc::clone(&agent);
            tokio::spawn(async move { listen::serve(&listener, &agent, door).await });
        }
        eprintln!("shipote-agent: listening on {path}");
        listen::serve(&listener, &agent, Door::Control).await;
        Ok(())
    })
}
