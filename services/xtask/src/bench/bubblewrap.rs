//! The rival: bubblewrap, told to isolate what a workspace isolates.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::vm::host;

/// Its name and Debian package.
const TOOL: &[(&str, &str)] = &[("bwrap", "bubblewrap")];
/// How tables name it.
pub(crate) const NAME: &str = "bwrap, same namespaces and root; no landlock, no seccomp";

const ARGUMENTS: &[&str] = &[
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

/// `/bin/true` in a sandbox of its own.
pub(crate) fn run() -> anyhow::Result<()> {
    succeed(Command::new("bwrap").args(ARGUMENTS))
}

/// Runs a command that must succeed, with nothing on its standard streams but errors.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
