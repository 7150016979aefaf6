//! The devices outside of the kernel and of QEMU: `vhost-device-vsock`, for hosts that have no `/dev/vhost-vsock`, and
//! `virtiofsd`, which serves folders of the host.
//!
//! Their projects' own programs from crates.io, each built from its own lock file. As dependencies of the workspace they
//! would bring a second generation of a dozen crates into every build; as tools they cost a minute once.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::vm::host;

/// A program of another project, at the release that machines are tested with.
pub(super) struct Device {
    /// Crate and program.
    pub(super) name: &'static str,
    pub(super) version: &'static str,
    /// Libraries that it is linked with, and the Debian packages that have them.
    libraries: &'static [(&'static str, &'static str)],
}

pub(super) const VSOCK: Device = Device { name: "vhost-device-vsock", version: "0.3.0", libraries: &[] };
pub(super) const VOLUMES: Device = Device {
    name: "virtiofsd",
    version: "1.14.0",
    libraries: &[
        ("/usr/lib/x86_64-linux-gnu/libcap-ng.so", "libcap-ng-dev"),
        ("/usr/lib/x86_64-linux-gnu/libseccomp.so", "libseccomp-dev"),
    ],
};

impl Device {
    /// The program, from the cache or built now.
    pub(super) fn ensure(&self, cache: &Path) -> anyhow::Result<PathBuf> {
        let Self { name, version, libraries } = self;
        let root = cache.join(format!("{name}-{version}"));
        let program = root.join("bin").join(name);
        if program.exists() {
            return Ok(program);
        }
        host::require("image", libraries, None)?;
        eprintln!("image: build {name} {version} (about a minute, once)");
        let build = root.join("build");
        let mut command = crate::cargo::cargo()?;
        command
            .args(["install", "--quiet", "--locked", "--no-track", name, "--version", version, "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", &build)
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2")
            .env("CARGO_PROFILE_RELEASE_STRIP", "true")
            .current_dir(cache);
        host::run(&mut command).with_context(|| format!("build {name}"))?;
        std::fs::remove_dir_all(&build).with_context(|| format!("remove {}", build.display()))?;
        Ok(program)
    }
}
