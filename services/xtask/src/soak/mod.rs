//! `cargo xtask soak`: the whole appliance at work for a while, with its services killed at random, judged at the end.
//!
//! ```text
//!   churn    workspaces come and go, commands and pipelines run in them ─┐
//!   plugins  one plugin is swapped for another, and back                 ├─▶ ledger ──▶ audit: each change is there once
//!   machines are stopped and started ────────────────────────────────────┘      │
//!   load     requests at a steady rate, through the proxy, each judged ─────────┤
//!   killer   a service is killed; the spells in which one was away ─────────────┘
//!   leaks    processes, descriptors, memory, mounts and cgroups, before and after
//! ```
//!
//! A request or a change may fail while the service that it needs was killed and is not yet back, a request to machines also
//! while one of them is stopped, and at no other time.

mod audit;
mod churn;
mod client;
mod killer;
mod leaks;
mod ledger;
mod load;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use serde_json::json;
use shipote_plugin_abi::fixtures::Fixture;

use self::ledger::Ledger;
use crate::appliance::{self, Appliance};
use crate::image;
use crate::vm::{host, repository};

/// How long what was in flight may take to come to rest before and after the load.
const REST: Duration = Duration::from_secs(20);
/// How long a part of the set-up may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// Arguments of `cargo xtask soak`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// Requests a second.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(4..=100_000))]
    rate: u32,
    /// Workspaces that live at once.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    workspaces: u32,
    /// Machines.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=16))]
    machines: u32,
    /// Seconds between two kills.
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    kill_every: u64,
    /// What the choice of the killed is drawn from; the same one kills in the same order.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also write the report here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Take the binaries of this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// What every part shares.
struct Soak<'a> {
    appliance: &'a Appliance,
    ledger: &'a Ledger,
    ports: Ports,
    machines: Vec<String>,
    stop: AtomicBool,
}

/// Where the proxy listens: what it answers by itself, for a workspace, for machines.
#[derive(Debug, Clone, Copy)]
struct Ports {
    own: u16,
    workspace: u16,
    machines: u16,
}

impl Soak<'_> {
    fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    /// Waits for a time, or until it is over.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while self.goes_on() && Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

/// Waits until then.
fn rest_until(then: Instant) {
    while let Some(left) = then.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}

/// Waits so long.
fn rest(time: Duration) {
    rest_until(Instant::now() + time);
}

/// Runs `cargo xtask soak`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let binaries = match &args.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build()?,
    };
    if args.machines > 0 {
        if host::find("qemu-system-x86_64").is_none() {
            bail!("soak: there is no qemu-system-x86_64; install qemu-system-x86, or give --machines 0");
        }
        image::ensure(false)?;
    }
    let config = tempfile::tempdir().context("make a folder for the configuration")?;
    let ports = configure(config.path(), args.machines)?;
    let appliance = Appliance::start_configured(binaries, true, &[], Some(config.path()))?;
    let ledger = Ledger::default();
    let machines = (0..args.machines).map(|n| format!("m{n}")).collect();
    let soak = Soak { appliance: &appliance, ledger: &ledger, ports, machines, stop: AtomicBool::new(false) };
    set_up(&soak)?;
    eprintln!(
        "soak: {} min of {} requests/s over {} workspaces and {} machines",
        args.minutes, args.rate, args.workspaces, args.machines
    );
    // What a first request makes (pools, threads, compiled code) is no leak.
    load::run_for(&soak, args.rate, Duration::from_secs(5));
    rest(REST);
    let before = leaks::look(&appliance)?;
    ledger.forget_requests();

    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| killer::run(&soak, Duration::from_secs(args.kill_every), args.seed));
        scope.spawn(|| churn::workspaces(&soak, args.workspaces));
        scope.spawn(|| churn::plugins(&soak));
        scope.spawn(|| churn::machines(&soak));
        scope.spawn(|| load::run(&soak, args.rate));
        rest(Duration::from_secs(args.minutes * 60));
        soak.stop.store(true, Relaxed);
    });
    let lasted = began.elapsed();
    churn::clear(&soak)?;
    rest(REST);
    let after = leaks::look(&appliance)?;
    let mut faults = ledger.faults();
    faults.extend(leaks::compare(&before, &after));
    let (records, missing) = audit::compare(&appliance, &ledger)?;
    faults.extend(missing);
    let report = json!({
        "seconds": lasted.as_secs(),
        "requests": ledger.requests(),
        "changes": ledger.changes(),
        "kills": ledger.kills(),
        "records": records,
        "before": before,
        "after": after,
        "faults": faults,
    });
    print(&report, &faults);
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("write {}", file.display()))?;
    }
    if !faults.is_empty()
        && let Some(folder) = appliance.folder()
    {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        eprintln!("the end of the appliance's log:");
        tail.iter().rev().for_each(|line| eprintln!("{line}"));
    }
    appliance.stop()?;
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the rules; gives the ports that they listen on.
fn configure(config: &Path, machines: u32) -> anyhow::Result<Ports> {
    let free = || Ok::<u16, anyhow::Error>(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    let ports = Ports { own: free()?, workspace: free()?, machines: free()? };
    let listen = |port: u16| json!([format!("127.0.0.1:{port}")]);
    let stamp = json!([{"use": "stamp:l7-response"}]);
    let mut rules = vec![
        json!({"name": "own", "listen": listen(ports.own), "middleware_chain": stamp,
            "terminate": {"type": "static", "status": 200, "text": client::OWN}}),
        json!({"name": "workspace", "listen": listen(ports.workspace), "middleware_chain": stamp,
            "terminate": {"type": "http_proxy", "upstream": "workspace:web:8080", "retries": 2}}),
    ];
    if machines > 0 {
        let upstreams: Vec<String> = (0..machines).map(|n| format!("machine:m{n}:8080")).collect();
        rules.push(json!({"name": "machines", "listen": listen(ports.machines),
            "terminate": {"type": "http_proxy", "upstreams": upstreams, "retries": 2}}));
    }
    // A deadline is wall time, and both processors of this machine are taken: what is asked here is not how soon.
    let plugins = config.join("shipote/plugins");
    std::fs::create_dir_all(&plugins).context("make a folder for the policy")?;
    std::fs::write(plugins.join("policy.toml"), "[plugins.stamp]\ndeadline_ms = 10000\n")
        .context("write the policy")?;
    let folder = config.join("shipote/proxy/rules");
    std::fs::create_dir_all(&folder).context("make a folder for rules")?;
    std::fs::write(folder.join("soak.json"), json!({"rules": rules}).to_string()).context("write the rules")?;
    Ok(ports)
}

/// Plugins, the web workspace and the machines, until each answers.
fn set_up(soak: &Soak<'_>) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("make a folder for plugins")?;
    for version in churn::VERSIONS {
        let file = folder.path().join(format!("stamp-{version}.wasm"));
        std::fs::write(&file, Fixture::stamping("stamp", version, client::STAMP, version).component())?;
        churn::must(
            soak,
            "plugin.add",
            &format!("stamp@{version}"),
            &["plugin", "add", "--no-activate", &file.display().to_string()],
        )?;
    }
    churn::must(soak, "proxy.reload", "*", &["proxy", "reload"])?;
    let server =
        std::fs::read_to_string(repository()?.join("services/xtask/demo/keep.pl")).context("read the server")?;
    churn::must(soak, "workspace.create", "web", &["workspace", "create", "web", "--publish", "8080"])?;
    let words = ["run", "-w", "web", "--detach", "--", "perl", "-e", &server, "8080", client::PAGE];
    churn::must(soak, "command.run", "perl", &words)?;
    let serve =
        format!("mkdir -p /www; printf '{}' > /www/index.html; exec busybox httpd -f -p 8080 -h /www", client::PAGE);
    for name in &soak.machines {
        let create = [
            "machine",
            "create",
            name,
            "--memory",
            "128",
            "--publish",
            "8080",
            "--idle",
            "20",
            "--",
            "sh",
            "-c",
            &serve,
        ];
        churn::must(soak, "machine.create", name, &create)?;
        churn::must(soak, "machine.start", name, &["machine", "start", name])?;
    }
    for port in
        [Some(soak.ports.own), Some(soak.ports.workspace), (!soak.machines.is_empty()).then_some(soak.ports.machines)]
    {
        let Some(port) = port else { continue };
        let begun = Instant::now();
        while client::Client::new(port).ask().is_err() {
            if begun.elapsed() > PATIENCE {
                bail!("soak: port {port} of the proxy does not answer as it should");
            }
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }
    Ok(())
}

fn print(report: &serde_json::Value, faults: &[String]) {
    println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
    match faults {
        [] => println!("soak: no fault"),
        faults => {
            println!("soak: {} faults", faults.len());
            faults.iter().for_each(|fault| println!("  {fault}"));
        }
    }
}
