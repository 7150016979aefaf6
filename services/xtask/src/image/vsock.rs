//! `vhost-device-vsock`: a vsock device outside of the kernel, for hosts that have no `/dev/vhost-vsock`.
//!
//! The rust-vmm project's own program from crates.io, built from its own lock file. As a dependency of the workspace it
//! would bring a second generation of a dozen crates into every build; as a tool it costs half a minute once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::vm::host;

/// Release that machines are tested with.
pub(super) const VERSION: &str = "0.3.0";

/// The program, from the cache or built now.
pub(super) fn ensure(cache: &Path) -> anyhow::Result<PathBuf> {
    let root = cache.join(format!("vhost-device-vsock-{VERSION}"));
    let program = root.join("bin/vhost-device-vsock");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("image: build vhost-device-vsock {VERSION} (about a minute, once)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = root.join("build");
    let mut command = Command::new(cargo);
    command
        .args(["install", "--quiet", "--locked", "--no-track", "vhost-device-vsock", "--version", VERSION, "--root"])
        .arg(&root)
        .env("CARGO_TARGET_DIR", &build)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2")
        .env("CARGO_PROFILE_RELEASE_STRIP", "true")
        .current_dir(cache);
    host::run(&mut command).context("build vhost-device-vsock")?;
    std::fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))?;
    Ok(program)
}
