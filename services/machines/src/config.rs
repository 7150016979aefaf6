//! `[machines]` of the configuration file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use shipote_machines::actor::START_TIME;

/// The section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Folders beneath which those lie that machines may have as volumes; none by default. The service's confinement
    /// lets it reach no other.
    pub(crate) volumes: Vec<PathBuf>,
    /// Seconds that a machine may take from its start to its agent's answer; absent: 120.
    #[serde(deserialize_with = "shipote_units::seconds_opt")]
    pub(crate) start_s: Option<u32>,
}

impl Section {
    /// Reads it; an absent file means the defaults. Blocks.
    pub(crate) fn load(config: &Path) -> anyhow::Result<Self> {
        let section: Self = shipote_config::load(&config.join("shipote.toml"), Some("machines"))?.value;
        if let Some(folder) = section.volumes.iter().find(|folder| !folder.is_absolute()) {
            anyhow::bail!("machines.volumes: {} is no absolute path", folder.display());
        }
        if section.start_s == Some(0) {
            anyhow::bail!("machines.start_s: 0 seconds are none; give 1 or more");
        }
        Ok(section)
    }

    /// How long a machine may take to answer.
    pub(crate) fn start_time(&self) -> Duration {
        self.start_s.map_or(START_TIME, |seconds| Duration::from_secs(seconds.into()))
    }
}
