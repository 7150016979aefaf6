//! The configuration that a service was started with, and what its files say since.
//!
//! Settings are read at the start only: much of what they decide (threads, confinement, control groups) cannot be changed
//! later. A reload therefore judges the files as a start would and refuses them whole where a start would, so that nobody hears
//! "reloaded" of a file that the next start cannot read; and it names the settings that hold from the next start on.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use shipote_bus::Service;
use shipote_bus::paths::ServicePaths;
use shipote_config::{AuditSection, ConfigError, Loaded};

use crate::Parts;

/// The settings of a running service.
#[derive(Debug)]
pub struct Configuration {
    service: Service,
    paths: ServicePaths,
    /// [`Parts::judge`] of the service.
    judge: fn(&ServicePaths) -> anyhow::Result<()>,
    /// The service's section and `[audit]`, as they were at the start.
    section: toml::Table,
    audit: AuditSection,
}

impl Configuration {
    /// Reads what the files say now.
    pub(crate) fn read<P: Parts>(service: Service, paths: &ServicePaths) -> anyhow::Result<Self> {
        let Loaded { value: section, audit, .. } = load(service, paths).context("read the configuration")?;
        Ok(Self { service, paths: paths.clone(), judge: P::judge, section, audit })
    }

    pub(crate) fn audit(&self) -> &AuditSection {
        &self.audit
    }

    /// Judges the files as they are now; nothing is applied. Returns a line about the settings that are not those of the
    /// start, if there are some: they hold from the next one on.
    ///
    /// # Errors
    /// In one line, why a start would be refused.
    pub async fn examine(self: &Arc<Self>) -> Result<Option<String>, String> {
        let this = Arc::clone(self);
        let examined = tokio::task::spawn_blocking(move || this.examine_now()).await;
        examined.map_err(|error| format!("read the configuration: {error}"))?
    }

    fn examine_now(&self) -> Result<Option<String>, String> {
        let now = load(self.service, &self.paths).map_err(|error| format!("read the configuration: {error}"))?;
        (self.judge)(&self.paths).map_err(|error| shipote_bus::error::one_line(error.as_ref()))?;
        let name = self.service.name();
        let keys: BTreeSet<&String> = self.section.keys().chain(now.value.keys()).collect();
        let differs = keys.into_iter().filter(|key| self.section.get(*key) != now.value.get(*key));
        let mut changed: Vec<String> = differs.map(|key| format!("{name}.{key}")).collect();
        if self.audit != now.audit {
            changed.push("audit".to_owned());
        }
        if changed.is_empty() {
            return Ok(None);
        }
        let binary = self.service.binary();
        Ok(Some(format!("changed settings hold from the next start of {binary} on: {}", changed.join(", "))))
    }
}

/// As plain values: what the keys mean is the service's to judge.
fn load(service: Service, paths: &ServicePaths) -> Result<Loaded<toml::Table>, ConfigError> {
    shipote_config::load(&paths.config.join("shipote.toml"), Some(service.name()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

    use std::collections::BTreeMap;

    use super::*;

    struct NoPlugins;

    impl Parts for NoPlugins {
        fn judge(_: &ServicePaths) -> anyhow::Result<()> {
            anyhow::bail!("plugins.limit: 0 is none")
        }

        async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
            Ok(BTreeMap::new())
        }
    }

    struct Plugins;

    impl Parts for Plugins {
        fn judge(_: &ServicePaths) -> anyhow::Result<()> {
            Ok(())
        }

        async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
            Ok(BTreeMap::new())
        }
    }

    #[test]
    fn files_are_judged_whole_and_what_changed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = || folder.path().to_owned();
        let paths = ServicePaths { state: at(), runtime: at(), config: at(), policy: at() };
        let write = |text: &str| std::fs::write(folder.path().join("shipote.toml"), text).unwrap();
        write("[plugins]\nlimit = 1\n[proxy]\nworkers = 1\n");
        let started = Configuration::read::<Plugins>(Service::Plugins, &paths).unwrap();
        assert_eq!(started.examine_now(), Ok(None));
        write("[plugins]\nlimit = 1\n[proxy]\nworkers = 2\n");
        assert_eq!(started.examine_now(), Ok(None), "another service's setting");
        write("[plugins]\nlimit = 2\nmore.of = 1\n[audit]\nmode = \"required\"\n");
        let changed = started.examine_now().unwrap().unwrap();
        assert!(changed.contains("shipote-plugins on: plugins.limit, plugins.more, audit"), "{changed}");
        for (text, parts) in [
            ("[plugns]\n", ["shipote.toml:1:2", "did you mean `plugins`?"]),
            ("[audit]\nmod = 1\n", ["shipote.toml:2:1", "did you mean `mode`?"]),
        ] {
            write(text);
            let refused = started.examine_now().unwrap_err();
            assert!(parts.iter().all(|part| refused.contains(part)), "{refused}");
        }
        write("");
        let refusing = Configuration::read::<NoPlugins>(Service::Plugins, &paths).unwrap();
        assert_eq!(refusing.examine_now(), Err("plugins.limit: 0 is none".to_owned()));
    }
}
