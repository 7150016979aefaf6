//! `cargo xtask bus-trial`: whether a message bus is good enough to carry the embedded appliance.
//!
//! Drives a private bus for a while with everything the services will ask of it (calls, descriptors, credentials,
//! signals, names, clients that die or stall, `busctl`), counts every answer that is wrong, late or missing, and
//! samples the memory and the descriptors of the bus each second. Growth is a fault like any other.
//!
//! Not for comparing peak speeds: the load is paced, so that two candidates are judged under the same load.
//!
//! Invariant: the verdict is `passed` only if no check failed; every failed check is listed with its count and one
//! example.

mod churn;
mod load;
mod report;
mod sample;
mod service;
mod stall;
mod subject;
mod tools;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio::time::Instant;

use report::Ledger;

/// Arguments of `cargo xtask bus-trial`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The bus under trial: `dbus-daemon`, `busd`, or the path of one of them.
    #[arg(long, default_value = "dbus-daemon")]
    bus: PathBuf,
    /// How long to drive it.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Method calls a second, over all callers.
    #[arg(long, default_value_t = 3000)]
    rate: u64,
    /// Also write the report as JSON here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be one of the clients that the trial starts (and may kill).
    #[arg(long, hide = true, value_enum)]
    client: Option<churn::Role>,
    /// The bus that such a client connects to.
    #[arg(long, hide = true)]
    address: Option<String>,
}

/// What every part of the trial shares.
#[derive(Clone)]
struct Trial {
    address: String,
    ledger: Arc<Ledger>,
    /// When the load ends.
    until: Instant,
    rate: u64,
}

impl Trial {
    fn running(&self) -> bool {
        Instant::now() < self.until
    }

    /// A connection on which a call without an answer within five seconds has failed.
    async fn connect(&self) -> Result<zbus::Connection> {
        connect(&self.address).await
    }
}

async fn connect(address: &str) -> Result<zbus::Connection> {
    zbus::connection::Builder::address(address)
        .method_timeout(Duration::from_secs(5))
        .build()
        .await
        .with_context(|| format!("connect to {address}"))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match (args.client, &args.address) {
        (Some(role), Some(address)) => runtime.block_on(churn::client(role, address)),
        (Some(_), None) => anyhow::bail!("start a trial client: --address is missing"),
        (None, _) => runtime.block_on(drive(args)),
    }
}

async fn drive(args: &Args) -> Result<ExitCode> {
    let bus = subject::Subject::start(&args.bus).await?;
    let ledger = Arc::new(Ledger::default());
    let trial = Trial {
        address: bus.address.clone(),
        ledger: ledger.clone(),
        until: Instant::now() + Duration::from_secs(args.seconds),
        rate: args.rate,
    };
    let samples = sample::start(bus.pid(), ledger.clone());

    let service = service::serve(&trial.address).await?;
    let idle_descriptors = sample::descriptors(bus.pid());
    let (_, _, _, _, _) = tokio::join!(
        load::run(&trial, &service),
        churn::run(&trial),
        stall::run(&trial, &service),
        tools::run(&trial),
        tools::foreign_user(&trial, bus.folder()),
    );
    // Whatever the clients held must be gone once they are: give the bus a moment to notice the last of them.
    tokio::time::sleep(Duration::from_secs(2)).await;
    sample::check_descriptors(&ledger, bus.pid(), idle_descriptors);
    let samples = samples.finish();
    sample::check_growth(&ledger, &samples);
    drop(service);
    let name = bus.name();
    bus.stop(&ledger).await?;

    let report = report::Report::new(name, args, &ledger, &samples);
    print!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("write report {}", path.display()))?;
    }
    Ok(if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
