//! The service's own confinement, from `policies/landlock/<service>.toml`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use shipote_bus::paths::{self, ServicePaths};
use shipote_cgroup::Tree;
use shipote_confinement::{Mechanism, Policy};

/// Applies the service's policy, with more folders that it may write to. An absent policy is no confinement, and is reported so.
pub(crate) fn confine(service: &str, folders: &ServicePaths, more: &[PathBuf]) -> anyhow::Result<Vec<Mechanism>> {
    let file = folders.policy.join("landlock").join(format!("{service}.toml"));
    if !file.exists() {
        let reason = format!("no policy at {}", file.display());
        tracing::warn!("{service} runs without confinement of its own: {reason}");
        return Ok(vec![Mechanism::missing("policy", reason)]);
    }
    let mut policy = Policy::load(&file).with_context(|| format!("load policy {}", file.display()))?;
    for folder in more {
        policy.allow_writing(folder).with_context(|| format!("allow writing to {}", folder.display()))?;
    }
    let image = paths::machine_image();
    // A service that starts itself anew for a confined piece of work may execute its own binary and no other.
    let own = std::env::current_exe().context("find the service's own binary")?;
    // a host without control groups has no such folder; policies mark it optional
    let cgroup = Tree::path(&Tree::name(&folders.runtime)).unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup/none"));
    // What another user keeps for a service lies beside the service's own folder.
    let acme = folders.state.with_file_name("acme");
    let variables: [(&str, &Path); 7] = [
        ("ACME", &acme),
        ("CGROUP", &cgroup),
        ("STATE", &folders.state),
        ("RUNTIME", &folders.runtime),
        ("CONFIG", &folders.config),
        ("IMAGE", &image),
        ("EXE", &own),
    ];
    let mechanisms = policy.apply(&variables).with_context(|| format!("apply policy {}", file.display()))?;
    for mechanism in mechanisms.iter().filter(|m| !m.is_enforced()) {
        tracing::warn!("{service}: {} is {}: {}", mechanism.name, mechanism.state, mechanism.reason);
    }
    Ok(mechanisms)
}
