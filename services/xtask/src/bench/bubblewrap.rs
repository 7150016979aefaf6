//! The rival: bubblewrap, told to isolate what a workspace isolates.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, anyhow, bail};
use tempfile::NamedTempFile;

use crate::vm::host;

/// Its name and Debian package.
const TOOL: &[(&str, &str)] = &[("bwrap", "bubblewrap")];
/// How tables name it.
pub(crate) const NAME: &str = "bwrap, same namespaces, root and seccomp filter; no landlock";

const ARGUMENTS: &[&str] = &[
    // from standard input
    "--seccomp",
    "0",
    "--unshare-all",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
    "/bin/true",
];

/// Installs it where that is possible, else says what to run; and tries it once.
pub(crate) fn require() -> anyhow::Result<()> {
    host::require("bench", TOOL, None)?;
    run().context("try bubblewrap; does this machine allow user namespaces?")
}

/// The filter that a workspace has for a command.
static FILTER: LazyLock<anyhow::Result<NamedTempFile>> = LazyLock::new(|| {
    let mut file = NamedTempFile::new().context("make a file for bubblewrap's filter")?;
    file.write_all(&shipote_confinement::seccomp::command_filter()?.bytes()).context("write bubblewrap's filter")?;
    Ok(file)
});

/// `/bin/true` in a sandbox of its own.
pub(crate) fn run() -> anyhow::Result<()> {
    let filter = FILTER.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let filter = File::open(filter.path()).context("open bubblewrap's filter")?;
    finish(Command::new("bwrap").args(ARGUMENTS).stdin(filter))
}

/// Runs a command that must succeed, with nothing on its standard streams but errors.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    finish(command.stdin(Stdio::null()))
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
