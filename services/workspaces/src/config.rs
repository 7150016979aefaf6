//! `[workspaces]` of the configuration file.

use std::path::Path;

use serde::Deserialize;
use shipote_bus::paths::ServicePaths;
use shipote_metrics::Listen;

/// The section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Where `/metrics` and `/health` are offered: `unix:/PATH`, `127.0.0.1:PORT` or `off`; absent: `admin.sock` in the
    /// runtime folder.
    pub(crate) admin: Option<String>,
    /// Most memory of a workspace that is made by whoever may only run, where no limit is set, bytes; 0: no limit;
    /// absent: a quarter of the host's.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub(crate) run_memory_max: Option<u64>,
    /// Most memory of all workspaces together of one user who may not manage them, bytes; 0: no limit; absent: half of
    /// the host's.
    #[serde(deserialize_with = "shipote_units::size_opt")]
    pub(crate) user_memory_max: Option<u64>,
}

impl Section {
    /// Reads it; an absent file means the defaults. Blocks.
    pub(crate) fn load(config: &Path) -> Result<Self, shipote_config::ConfigError> {
        Ok(shipote_config::load(&config.join("shipote.toml"), Some("workspaces"))?.value)
    }

    /// Where the admin page is.
    pub(crate) fn admin(&self, paths: &ServicePaths) -> Result<Listen, shipote_metrics::Error> {
        match &self.admin {
            Some(text) => text.parse(),
            None => Ok(Listen::Unix(paths.runtime.join("admin.sock"))),
        }
    }
}
