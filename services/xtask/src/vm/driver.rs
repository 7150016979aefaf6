//! Hands a described machine to the Python driver in `vm-tests/driver`, and remembers the machine that `vm up` left running.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::broken::{self, Break};
use super::qemu::Machine;

/// What the driver writes down about the machine of `vm up`.
#[derive(Debug, Deserialize)]
struct Running {
    pid: i32,
    control_socket: PathBuf,
    stage: Option<PathBuf>,
}

fn record() -> anyhow::Result<PathBuf> {
    Ok(super::cache()?.join("up.json"))
}

/// The machine of `vm up`, if its driver is still there.
fn running() -> Option<Running> {
    let running: Running = serde_json::from_slice(&fs::read(record().ok()?).ok()?).ok()?;
    running.control_socket.exists().then_some(running).filter(|r| kill(Pid::from_raw(r.pid), None).is_ok())
}

/// Whether `vm up` left a machine running.
pub(super) fn is_up() -> bool {
    running().is_some()
}

/// Whether the machine of `vm up` was made from this stage.
pub(super) fn uses(stage: &Path) -> bool {
    running().is_some_and(|r| r.stage.as_deref() == Some(stage))
}

fn driver(mode: &str) -> anyhow::Result<Command> {
    let mut command = Command::new("python3");
    // no compiled files in the source tree
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg("-u").arg(super::repository()?.join("vm-tests/driver")).arg(mode);
    Ok(command)
}

/// Boots a machine that outlives this process.
pub(super) fn up(machine: &Machine) -> anyhow::Result<ExitCode> {
    if is_up() {
        bail!("vm up: a machine is already running; `cargo xtask vm down` stops it");
    }
    let log = super::cache()?.join("up.log");
    let errors = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = driver("serve")?
        .arg(machine.write()?)
        .arg(record()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .context("run the driver")?;
    let output = child.stdout.take().context("read from the driver")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        if line == "ready" {
            println!("vm: up; `cargo xtask vm run -- CMD` runs commands in it, `cargo xtask vm down` stops it");
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("{line}");
    }
    let status = child.wait()?;
    bail!("vm up: the driver ended ({status}); see {}", log.display());
}

/// Runs a command in the machine given, else in that of `vm up`.
pub(super) fn run(machine: Option<&Machine>, words: &[String]) -> anyhow::Result<ExitCode> {
    let mut command = driver("run")?;
    match (machine, running()) {
        (Some(machine), _) => command.arg("--machine").arg(machine.write()?),
        (None, Some(running)) => command.arg("--socket").arg(running.control_socket),
        (None, None) => bail!("vm run: the machine has gone away"),
    };
    finish(command.arg("--").args(words))
}

/// Runs scenarios in fresh machines, at most so many at once; without a number, as many as this host has room for.
pub(super) fn test(
    machine: &Machine,
    scenarios: &[PathBuf],
    jobs: Option<u32>,
    hold: bool,
) -> anyhow::Result<ExitCode> {
    let mut command = driver("test")?;
    command.arg(machine.write()?).args(scenarios);
    if let Some(jobs) = jobs {
        command.arg("--jobs").arg(jobs.to_string());
    }
    if hold {
        command.arg("--hold").arg(record()?);
    }
    finish(&mut command)
}

/// Runs scenarios on machines in which something is broken.
pub(super) fn broken(machine: &Machine, breaks: &[Break]) -> anyhow::Result<ExitCode> {
    let description = machine.write()?;
    let folder = description.parent().context("a description lies in a folder")?;
    finish(driver("broken")?.arg(&description).arg(broken::write(breaks, folder)?))
}

/// Runs one scenario that measures, in so many rounds; gives what it wrote into the file that it was named.
pub(super) fn measure(machine: &Machine, scenario: &Path, rounds: u32) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new().context("make a file for the figures")?;
    let mut command = driver("test")?;
    command.arg(machine.write()?).arg(scenario).stdout(std::io::stderr());
    command.env("SHIPOTE_MEASURED", file.path()).env("SHIPOTE_ROUNDS", rounds.to_string());
    anyhow::ensure!(finish(&mut command)? == ExitCode::SUCCESS, "the scenario failed; its output above says why");
    fs::read_to_string(file.path()).with_context(|| format!("read what {} measured", scenario.display()))
}

/// Waits for the driver, which ends by itself (and its machine with it) when this process is gone.
fn finish(command: &mut Command) -> anyhow::Result<ExitCode> {
    let status = command.env("SHIPOTE_VM_PARENT", std::process::id().to_string()).status().context("run the driver")?;
    let code = status.code().with_context(|| format!("the driver ended: {status}"))?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Stops the machine of `vm up`.
pub(super) fn down() -> anyhow::Result<ExitCode> {
    let Some(running) = running() else {
        println!("vm: no machine is up");
        return Ok(ExitCode::SUCCESS);
    };
    let pid = Pid::from_raw(running.pid);
    kill(pid, Signal::SIGTERM).context("stop the driver")?;
    let end = Instant::now() + Duration::from_secs(30);
    while kill(pid, None).is_ok() {
        if Instant::now() > end {
            bail!("vm down: the driver (process {pid}) does not end");
        }
        super::pause(Duration::from_millis(50));
    }
    Ok(ExitCode::SUCCESS)
}

/// Folders of scenarios: those that run on any distribution, and those that only this machine can run.
const SCENARIOS: &[&str] = &["vm-tests", "vm-tests/debian"];

/// Before the names of the packages whose tests a scenario runs.
const TESTS_OF: &str = "# tests of: ";

/// Before the minutes that a scenario takes, where it takes long. Of all, the longest begin first: what is left at the end then
/// keeps no machine waiting for long beside one that still works.
const MINUTES: &str = "# minutes: ";

/// Paths of the scenarios named, or of all.
pub(super) fn scenarios(names: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let root = super::repository()?;
    let mut all: Vec<PathBuf> = Vec::new();
    for folder in SCENARIOS {
        let dir = root.join(folder);
        let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "py"));
        paths.sort();
        all.append(&mut paths);
    }
    if names.is_empty() {
        let mut timed = all.into_iter().map(|path| Ok((minutes(&path)?, path))).collect::<anyhow::Result<Vec<_>>>()?;
        timed.sort_by_key(|(minutes, _)| std::cmp::Reverse(*minutes));
        return Ok(timed.into_iter().map(|(_, path)| path).collect());
    }
    names
        .iter()
        .map(|name| {
            let found = all.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name.as_str()));
            found.cloned().with_context(|| {
                let known: Vec<_> = all.iter().filter_map(|p| p.file_stem()).map(|s| s.to_string_lossy()).collect();
                format!("no scenario {name:?}; there are: {}", known.join(", "))
            })
        })
        .collect()
}

/// The minutes that a scenario says it takes; 0 where it says nothing.
fn minutes(path: &Path) -> anyhow::Result<u32> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let Some(minutes) = text.lines().find_map(|line| line.strip_prefix(MINUTES)) else { return Ok(0) };
    minutes
        .parse()
        .with_context(|| format!("read the minutes of {}: {minutes:?} is none; write `{MINUTES}8`", path.display()))
}

/// Packages whose test binaries the scenarios want in the machine.
pub(super) fn tests_wanted(scenarios: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut packages = Vec::new();
    for path in scenarios {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        packages.extend(
            text.lines()
                .filter_map(|line| line.strip_prefix(TESTS_OF))
                .flat_map(str::split_whitespace)
                .map(str::to_owned),
        );
    }
    packages.sort();
    packages.dedup();
    Ok(packages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_all_scenarios_the_longest_begin_first_and_those_named_as_named() {
        let stem = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        let all: Vec<String> = scenarios(&[]).unwrap().iter().map(stem).collect();
        let place = |name: &str| all.iter().position(|other| other == name).unwrap();
        assert_eq!(all[0], "sandbox", "{all:?}");
        assert!(place("package") < place("limits") && place("limits") < place("audit"), "{all:?}");
        let named = scenarios(&["audit".to_owned(), "sandbox".to_owned()]).unwrap();
        assert_eq!(named.iter().map(stem).collect::<Vec<_>>(), ["audit", "sandbox"]);
    }
}
