//! What the host tells a machine at boot: a file that it adds to the initramfs.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use crate::volumes::Volume;

/// Where the file lies.
pub(super) const PATH: &str = "/shipote-machine.json";

/// The file's content.
#[derive(Default, Deserialize)]
pub(super) struct Settings {
    /// What every connection must begin with.
    pub(super) secret: Option<String>,
    /// The machine's name.
    pub(super) hostname: Option<String>,
    /// It has a disk for images.
    #[serde(default)]
    pub(super) disk: bool,
    /// The host lets something be reached.
    #[serde(default)]
    pub(super) egress: bool,
    /// The host has an SSH agent for it.
    #[serde(default)]
    pub(super) ssh: bool,
    /// Folders of the host.
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
}

/// Reads the file and removes it, so that no command in the guest finds the secret.
pub(super) fn take(path: &Path) -> anyhow::Result<Settings> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}
