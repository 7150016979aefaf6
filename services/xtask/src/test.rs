//! `cargo xtask test`: everything that must be green, in one command.
//!
//! Each step is a program; the first that fails ends the run, and its output says why. What a step needs is installed
//! where that is possible (root and apt; crates.io), else the error says exactly what to run.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Parser;

use crate::vm::{self, host, repository};
use crate::{image, plugin};

/// Programs that the tests drive, and the Debian packages that have them.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cc", "gcc"),
    ("dbus-daemon", "dbus-daemon"),
    ("busctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("perl", "perl-base"),
    ("python3", "python3"),
    ("curl", "curl"),
    // What the example of docs/sessions.md imports.
    ("/usr/lib/python3/dist-packages/dbus_fast/__init__.py", "python3-dbus-fast"),
    ("docker-registry", "docker-registry"),
    // The proxy is compared with them.
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/sbin/haproxy", "haproxy"),
    ("setpriv", "util-linux"),
    // An authority that certifies for tests, and a name server for it.
    ("pebble", "pebble"),
];

/// The binaries as the tests of the workspace build them, for a build of cargo's to find them up to date.
///
/// One small test is among them because cargo gives dependencies the features that all it builds want together, and what tests
/// want counts only where there is a test: without it, half the workspace would be built twice.
pub(crate) const AS_TESTED: &[&str] = &["--workspace", "--locked", "--bins", "--test", "hostile_table"];

/// wasmtime with what nothing else here has: for hosts that use the linking library by itself.
const ASYNC_FUNCTIONS: &str = "shipote-link/async-functions";

/// Tells tests where the machines' image is. (What tells services would tell those of tests that are about having none.)
const TEST_IMAGE: &str = "SHIPOTE_TEST_IMAGE";

/// GB of the disk that a run from a clean clone takes, as measured with `CARGO_INCREMENTAL=0`.
const FROM_EMPTY: u64 = 12;

/// More targets than that do not fail by accident.
const ACCIDENTS: usize = 2;

/// Arguments of `cargo xtask test`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Only these steps: fmt, clippy, deny, doc, test, plugins, vm.
    #[arg(long, value_delimiter = ',', value_name = "STEPS", conflicts_with_all = ["no_vm", "vm"])]
    only: Vec<Step>,
    /// Without the virtual machine.
    #[arg(long, conflicts_with = "vm")]
    no_vm: bool,
    /// The virtual machine alone: these scenarios, or all.
    #[arg(long, num_args = 0.., value_name = "NAME")]
    vm: Option<Vec<String>>,
}

/// A step, in the order in which they run: the quick ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    Fmt,
    Deny,
    Clippy,
    Doc,
    Test,
    Plugins,
    Vm,
}

const STEPS: [Step; 7] = [Step::Fmt, Step::Deny, Step::Clippy, Step::Doc, Step::Test, Step::Plugins, Step::Vm];

/// Runs `cargo xtask test`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let steps: Vec<Step> = match (&args.vm, args.no_vm) {
        (Some(_), _) => vec![Step::Vm],
        (None, true) => STEPS.into_iter().filter(|s| *s != Step::Vm).collect(),
        (None, false) if args.only.is_empty() => STEPS.to_vec(),
        (None, false) => args.only.clone(),
    };
    say_room()?;
    let mut took = Vec::new();
    let mut again = Vec::new();
    for step in steps {
        eprintln!("== {step:?}");
        let begun = Instant::now();
        match step {
            Step::Fmt => cargo(&["fmt", "--all", "--check"])?,
            Step::Deny => deny()?,
            Step::Clippy => {
                cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
                // The library with it, and the only test that needs it: little is compiled for this.
                let with = ["--features", ASYNC_FUNCTIONS, "--test", "async_functions"];
                cargo(&[&["clippy", "--workspace", "--locked"], &with[..], &["--", "-D", "warnings"]].concat())?;
            }
            Step::Doc => run_step(
                cargo_command(&["doc", "--workspace", "--no-deps", "--locked"])?.env("RUSTDOCFLAGS", "-D warnings"),
            )?,
            Step::Test => {
                host::require("test", TOOLS, None)?;
                cargo(&[&["build"], AS_TESTED].concat())?;
                again = tests()?;
                let with = ["--features", ASYNC_FUNCTIONS, "--test", "async_functions"];
                cargo(&[&["test", "--workspace", "--locked"], &with[..]].concat())?;
            }
            // The author's kit, from the source to the request.
            Step::Plugins => plugin::examples()?,
            Step::Vm => vm::test(args.vm.as_deref().unwrap_or_default())?,
        }
        took.push((step, begun.elapsed().as_secs()));
    }
    for (step, seconds) in &took {
        eprintln!("{step:?}: {seconds} s");
    }
    for target in &again {
        eprintln!("{target}: failed once, above, and passed alone");
    }
    let second = if again.is_empty() { String::new() } else { ", Test at the second attempt".to_owned() };
    println!("{} passed, 0 failed{second}", took.len());
    Ok(ExitCode::SUCCESS)
}

/// Runs all tests; gives the targets of which something failed and passed at a second attempt.
///
/// What is broken fails each time. What fails once, among hundreds of processes on two processors, is said and does not end
/// the run: an hour of it would otherwise be worth as much as its unluckiest moment.
fn tests() -> anyhow::Result<Vec<String>> {
    // Made here, once: a test that needs machines has it made itself, by a cargo that knows of the test's package, for which the
    // build scripts of some dependencies run again (see `crate::cargo`), and half a minute or two of compiling with them.
    let image = image::ensure(false)?;
    let mut command = cargo_command(&["test", "--workspace", "--locked", "--no-fail-fast"])?;
    command.env(TEST_IMAGE, &image);
    let shown = format!("{command:?}");
    let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("run {shown}"))?;
    let mut failed = Vec::new();
    if let Some(errors) = child.stderr.take() {
        for line in BufReader::new(errors).split(b'\n') {
            let line = String::from_utf8_lossy(&line.context("read what cargo says")?).into_owned();
            eprintln!("{line}");
            failed.extend(failed_target(&line).map(str::to_owned));
        }
    }
    let status = child.wait().with_context(|| format!("wait for {shown}"))?;
    if status.success() {
        return Ok(Vec::new());
    }
    if failed.is_empty() || failed.len() > ACCIDENTS {
        bail!("{shown} failed: {status}; its output above says why");
    }
    for target in &failed {
        eprintln!("== Test: {target} once more, alone");
        // Without the package: with it alone, its dependencies would be compiled again, with fewer features.
        let kind: Vec<&str> = target.split(' ').skip(2).collect();
        let again = [&["test", "--workspace", "--locked"], &kind[..]].concat();
        run_step(cargo_command(&again)?.env(TEST_IMAGE, &image))?;
    }
    Ok(failed)
}

/// The target that a line of cargo's list of failed ones names: `-p PACKAGE --test NAME`.
fn failed_target(line: &str) -> Option<&str> {
    let target = line.trim().strip_prefix('`')?.strip_suffix('`')?;
    (target.starts_with("-p ") && target.split(' ').count() > 2).then_some(target)
}

/// Says it where the disk is too small for a run from empty, before an hour of work ends at its edge.
fn say_room() -> anyhow::Result<()> {
    let here = repository()?;
    let room = rustix::fs::statvfs(&here).with_context(|| format!("ask how much is free at {}", here.display()))?;
    let free = room.f_bavail * room.f_frsize / 1_000_000_000;
    if free < FROM_EMPTY {
        eprintln!(
            "test: {free} GB are free at {}; from a clean clone all steps take {FROM_EMPTY} (without incremental \
             compilation: CARGO_INCREMENTAL=0)",
            here.display()
        );
    }
    Ok(())
}

fn deny() -> anyhow::Result<()> {
    if host::find("cargo-deny").is_none() {
        eprintln!("test: install cargo-deny from crates.io");
        // Unoptimised: it runs for seconds, and with optimisation is compiled for as many minutes.
        let mut install = cargo_command(&["install", "--debug", "--locked", "cargo-deny"])?;
        run_step(install.env("CARGO_PROFILE_DEV_DEBUG", "none"))?;
    }
    // advisories need the network of their database; `cargo deny check` does them where there is one
    cargo(&["deny", "--workspace", "check", "bans", "licenses", "sources"])
}

fn cargo(words: &[&str]) -> anyhow::Result<()> {
    run_step(&mut cargo_command(words)?)
}

fn cargo_command(words: &[&str]) -> anyhow::Result<Command> {
    let mut command = crate::cargo::cargo()?;
    command.args(words);
    Ok(command)
}

/// Runs a step; its output is ours.
fn run_step(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown} failed: {status}; its output above says why");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_list_of_failed_targets_is_read() {
        let table = [
            ("    `-p shipote-proxy --test kept`", Some("-p shipote-proxy --test kept")),
            ("    `-p shipote-cli --lib`", Some("-p shipote-cli --lib")),
            ("error: test failed, to rerun pass `-p shipote-proxy --test kept`", None),
            ("error: 1 target failed:", None),
            ("    `cargo`", None),
        ];
        for (line, wanted) in table {
            assert_eq!(failed_target(line), wanted, "{line}");
        }
    }
}
