//! `cargo xtask vm`: a Debian 13 system virtual machine under QEMU, for what a build machine rarely has itself: systemd
//! as PID 1, cgroup v2, polkit, a system bus.
//!
//! Three parts: this module builds (image, in [`image`]; the disk with the project's files, in [`stage`]) and writes down
//! how the machine is started ([`qemu`]); `vm-tests/driver` starts it, talks to it and runs the scenarios; [`agent`]
//! runs inside and executes commands that arrive over a virtio-serial port.
//!
//! Invariant: the cached image is never written to. A machine works on a copy that goes away with it, and it goes away
//! with the process that started it, however that ends (`vm up` excepted, which `vm down` undoes).

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

mod accel;
mod agent;
mod broken;
mod driver;
pub(crate) mod host;
mod image;
#[cfg(target_arch = "x86_64")]
mod inject;
mod qemu;
mod stage;

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Build the machine's image and store it in the cache.
    Build {
        /// Build it anew even if the cache has it (newer packages).
        #[arg(long)]
        refresh: bool,
    },
    /// Boot a machine and leave it running until `vm down`.
    Up {
        #[command(flatten)]
        stage: stage::Options,
    },
    /// Run a command in the machine that `vm up` left running, else in one booted for it.
    Run {
        #[command(flatten)]
        stage: stage::Options,
        /// The command and its arguments; a single argument is a shell's command line.
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Stop the machine that `vm up` left running.
    Down,
    /// Run scenarios of `vm-tests/` (all of them, or those named) in fresh machines.
    Test {
        #[command(flatten)]
        stage: stage::Options,
        /// Scenarios, as file names without `.py`.
        names: Vec<String>,
        /// So many machines at once [default: as many as there are processors and memory for, four at most].
        #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "hold")]
        jobs: Option<u32>,
        /// After a failure keep the machine until Enter is pressed; meanwhile `vm run` reaches it.
        #[arg(long)]
        hold: bool,
    },
    /// Break what scenarios are about, one row of `vm-tests/broken.toml` after the other (all, or those named, or those
    /// of the scenarios named), each in a machine of its own: the scenario must fail, and where the row says.
    Broken {
        #[command(flatten)]
        stage: stage::Options,
        /// Rows, or scenarios.
        names: Vec<String>,
    },
    /// Inside the machine: execute what arrives over the control port.
    #[command(hide = true)]
    Agent,
    /// Inside the machine: have each thread of a process try what standard input says, a line an attempt.
    #[cfg(target_arch = "x86_64")]
    #[command(hide = true)]
    Inject {
        /// Number of the process.
        process: i32,
    },
}

/// Runs scenarios (all where none is named) in fresh machines; fails where one fails.
pub(crate) fn test(names: &[String]) -> anyhow::Result<()> {
    let scenarios = driver::scenarios(names)?;
    let tests = driver::tests_wanted(&scenarios)?;
    let code = driver::test(&prepare(&stage::Options::default(), &tests)?, &scenarios, None, false)?;
    anyhow::ensure!(code == ExitCode::SUCCESS, "a scenario failed; its output above says which and why");
    Ok(())
}

/// Runs the scenario `vm-tests/measured/NAME.py` on optimised binaries; gives what it wrote down (`$SHIPOTE_MEASURED`).
pub(crate) fn measure(name: &str, rounds: u32, binaries: Option<PathBuf>) -> anyhow::Result<String> {
    let scenario = repository()?.join("vm-tests/measured").join(name).with_extension("py");
    let machine = prepare_with(&stage::Options::optimised(binaries), &[], qemu::ALONE)?;
    driver::measure(&machine, &scenario, rounds)
}

/// Runs one action; the exit code is the command's own where a command ran in the machine.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Build { refresh } => {
            host::require_tools()?;
            let image = image::ensure(*refresh)?;
            println!("{}", image.dir().display());
            Ok(ExitCode::SUCCESS)
        }
        Action::Up { stage } => driver::up(&prepare(stage, &[])?),
        Action::Run { stage, command } => {
            if driver::is_up() {
                return driver::run(None, command);
            }
            driver::run(Some(&prepare(stage, &[])?), command)
        }
        Action::Down => driver::down(),
        Action::Test { stage, names, jobs, hold } => {
            let scenarios = driver::scenarios(names)?;
            let tests = driver::tests_wanted(&scenarios)?;
            driver::test(&prepare(stage, &tests)?, &scenarios, *jobs, *hold)
        }
        Action::Broken { stage, names } => {
            let breaks = broken::chosen(names)?;
            let scenarios: Vec<PathBuf> = breaks.iter().map(|row| row.path.clone()).collect();
            let tests = driver::tests_wanted(&scenarios)?;
            driver::broken(&prepare(stage, &tests)?, &breaks)
        }
        Action::Agent => agent::serve().map(|()| ExitCode::SUCCESS),
        #[cfg(target_arch = "x86_64")]
        Action::Inject { process } => {
            inject::run(*process, std::io::stdin().lock(), std::io::stdout()).map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Everything a machine needs before it can start.
fn prepare(options: &stage::Options, tests: &[String]) -> anyhow::Result<qemu::Machine> {
    prepare_with(options, tests, qemu::BESIDE_OTHERS)
}

/// The same for a machine that has so many processors if it is emulated.
fn prepare_with(options: &stage::Options, tests: &[String], emulated: u32) -> anyhow::Result<qemu::Machine> {
    host::require_tools()?;
    // the project is compiled first: a compile error should not wait for an image
    let stage = stage::build(options, tests)?;
    let image = image::ensure(false)?;
    let accel = accel::choose(&image)?;
    qemu::Machine::describe(&image, &stage, accel, emulated)
}

/// Root of the source tree.
pub(crate) fn repository() -> anyhow::Result<PathBuf> {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let root = manifest.ancestors().nth(2).context("find the source tree: xtask does not lie in services/xtask")?;
    Ok(root.to_path_buf())
}

/// The cache of `cargo xtask vm`: `$SHIPOTE_CACHE/vm`, else `.cache/vm` in the source tree.
fn cache() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("SHIPOTE_CACHE") {
        Some(dir) => std::path::absolute(dir)?,
        None => repository()?.join(".cache"),
    };
    let dir = base.join("vm");
    std::fs::create_dir_all(&dir).with_context(|| format!("create the cache {}", dir.display()))?;
    Ok(dir)
}

/// Lets time pass where there is nothing to wait on (no runtime runs in this program).
#[expect(clippy::disallowed_methods, reason = "no runtime here that it could block")]
fn pause(time: std::time::Duration) {
    std::thread::sleep(time);
}
