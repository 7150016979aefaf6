//! `cargo xtask bench [NAME…]`: how fast the appliance is beside what a user would pick instead.
//!
//! Every figure is a ratio of two things done in turns in the same run, because the machine is never idle and never
//! the same. CPU time is the figure that a busy machine bends least.
//!
//! An entry is a file with a `measure`; a target is a [`harness::Claim`]. What an entry cannot show on this machine it
//! says in a note, with the reason.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Parser;
use clap::builder::PossibleValuesParser;
use serde_json::Value;

mod accounting;
mod boot;
mod bubblewrap;
mod flow;
mod grown;
mod harness;
mod living;
mod machines;
mod plugins;
mod proxy;
mod report;
mod run;
mod sandbox;
mod systemd;
mod targets;

pub(crate) use flow::Worker;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Entries to measure [default: all]
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(ENTRIES.iter().map(|entry| entry.name)))]
    names: Vec<String>,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds in which the contenders take turns.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Print the entries and measure nothing.
    #[arg(long)]
    list: bool,
    /// Measure nothing and take the figures of these files, which earlier runs wrote with --json; of a figure that
    /// several have, the last one.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["names", "binaries"])]
    from: Vec<PathBuf>,
    /// Put the table of all targets into README.md as well.
    #[arg(long)]
    readme: bool,
    /// Measure the binaries of this folder instead of building them.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Measure with this very program, however it was compiled, and write the figures whole: for a machine that
    /// cannot compile.
    #[arg(long, value_name = "FILE", hide = true)]
    as_built: Option<PathBuf>,
}

/// Arguments of a process at an end of a measured edge.
#[derive(Debug, Parser)]
pub(crate) struct WorkerArgs {
    #[command(subcommand)]
    pub(crate) worker: Worker,
}

/// What an entry is told.
struct Setting {
    rounds: u32,
    binaries: Option<PathBuf>,
}

/// What an entry found.
struct Outcome {
    rows: Vec<harness::Row>,
    /// What the rows do not show, and why.
    notes: Vec<String>,
}

struct Entry {
    name: &'static str,
    about: &'static str,
    measure: fn(&Setting) -> anyhow::Result<Outcome>,
}

const ENTRIES: &[Entry] = &[
    Entry {
        name: "sandbox",
        about: "a sandboxed command in process, against posix_spawn and bubblewrap",
        measure: sandbox::measure,
    },
    Entry {
        name: "run",
        about: "`shipote run` and Workspaces1.Run through the bus, against bubblewrap",
        measure: run::measure,
    },
    Entry {
        name: "systemd",
        about: "the same under systemd, against crun, systemd-run and bubblewrap; in a virtual machine where need be",
        measure: systemd::measure,
    },
    Entry { name: "grown", about: "what a command costs a service that has grown", measure: grown::measure },
    Entry {
        name: "living",
        about: "a run while a thousand commands live, and the memory they take",
        measure: living::measure,
    },
    Entry { name: "flow", about: "a tapped edge of a pipeline, against a plain pipe", measure: flow::measure },
    Entry {
        name: "plugins",
        about: "linked plugins, against wasmtime alone and wasm-link 0.1; the registry's start",
        measure: plugins::measure,
    },
    Entry {
        name: "machines",
        about: "a machine's start, commands, files, memory and a pull, against what its kernel and host do bare",
        measure: machines::measure,
    },
    Entry { name: "proxy", about: "the proxy, against nginx, haproxy and vaned", measure: proxy::measure },
    Entry {
        name: "boot",
        about: "a virtual machine's boot with the services, against one without",
        measure: boot::measure,
    },
];

/// Runs `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        for entry in ENTRIES {
            println!("{:10} {}", entry.name, entry.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.from.is_empty() {
        let lines = targets::merge(&args.from.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>()?)?;
        show(&lines, args.readme)?;
        return keep(args.json.as_deref(), &lines).map(|()| ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) && args.as_built.is_none() {
        return optimised();
    }
    let setting = Setting { rounds: args.rounds, binaries: args.binaries.clone() };
    println!("{}", report::machine()?);
    let (mut rows, mut ran, mut failed) = (Vec::new(), targets::Ran::new(), 0);
    for entry in ENTRIES.iter().filter(|entry| args.names.is_empty() || args.names.iter().any(|n| n == entry.name)) {
        eprintln!("bench: {}: {} rounds", entry.name, args.rounds);
        match (entry.measure)(&setting) {
            Ok(outcome) => {
                println!("\n{}\n{}", entry.name, report::table(&outcome.rows));
                for note in outcome.notes {
                    println!("  {note}");
                }
                rows.extend(outcome.rows);
                ran.insert(entry.name, Ok(()));
            }
            Err(error) => {
                println!("\n{}\n  not measured: {error:#}", entry.name);
                ran.insert(entry.name, Err(format!("{error:#}")));
                failed += 1;
            }
        }
    }
    let lines: Vec<Value> = targets::collect(&rows, &ran).iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    if args.as_built.is_none() {
        show(&lines, args.readme)?;
    }
    keep(args.json.as_deref(), &lines)?;
    if let Some(file) = &args.as_built {
        let whole: Vec<harness::Whole> = rows.iter().map(Into::into).collect();
        fs::write(file, serde_json::to_string(&whole)?).with_context(|| format!("write {}", file.display()))?;
    }
    println!("\nload average at the end: {}", report::load()?);
    if failed > 0 {
        bail!("bench: {failed} of the entries could not be measured; the output above says why");
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines that an earlier run wrote.
fn read(file: &Path) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("read {}", file.display()))
}

/// Writes lines where that is asked for.
fn keep(file: Option<&Path>, lines: &[Value]) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let json = serde_json::to_string_pretty(lines)?;
    fs::write(file, json + "\n").with_context(|| format!("write {}", file.display()))
}

/// Prints the table of all targets, and puts it into the README where that is asked for.
fn show(lines: &[Value], readme: bool) -> anyhow::Result<()> {
    let table = targets::table(lines);
    println!("\nall targets\n{table}");
    if readme {
        let file = crate::vm::repository()?.join("README.md");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let text = targets::replace(&text, &table).with_context(|| format!("write into {}", file.display()))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Half of what is measured runs in this process: becomes the same program, compiled with optimisation.
fn optimised() -> anyhow::Result<ExitCode> {
    let folder = crate::appliance::build_packages(&["xtask"])?;
    let program = folder.join("xtask");
    let error = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("run {}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_named_once_and_unknown_ones_refused() {
        let mut names: Vec<_> = ENTRIES.iter().map(|entry| entry.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ENTRIES.len());
        assert!(Args::try_parse_from(["bench", "sandbox", "flow"]).is_ok());
        assert!(Args::try_parse_from(["bench", "no-such-entry"]).is_err());
        assert!(Args::try_parse_from(["bench", "--rounds", "0"]).is_err());
    }
}
