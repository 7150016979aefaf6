//! The agent, as a static program.

use std::path::PathBuf;

use anyhow::Context;

use crate::vm::{host, repository};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Compiles it; gives the program's bytes.
pub(super) fn read() -> anyhow::Result<Vec<u8>> {
    let program = build()?;
    std::fs::read(&program).with_context(|| format!("read {}", program.display()))
}

/// Compiles it; gives the program's path. It is optimised whatever the rest is: the guest may be emulated.
fn build() -> anyhow::Result<PathBuf> {
    let target = target_dir(&repository()?)?.join("guest");
    let mut command = crate::cargo::cargo()?;
    command
        .args([
            "build",
            "--quiet",
            "--package",
            "shipote-agent",
            "--profile",
            "guest",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        // Flags of the caller are for the caller's build; without its own folder each would undo the other's work.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    host::run(&mut command).context("compile the agent")?;
    Ok(target.join(TARGET).join("guest/shipote-agent"))
}

/// Where cargo puts what it builds here.
fn target_dir(root: &std::path::Path) -> anyhow::Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => Ok(std::path::absolute(dir)?),
        None => Ok(root.join("target")),
    }
}
