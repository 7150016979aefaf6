//! Names, versions, and which version of a name is active.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use shipote_plugin_abi::kind::Kind;
use shipote_plugin_abi::metadata::Metadata;
use shipote_plugin_abi::reference::Reference;
use shipote_state::{Format, Refused};

use super::files;
use crate::error::Error;
use crate::links::Links;

pub(crate) use semver::Version;
use shipote_bus::plugins::WHOLE;

/// Versions of the file.
const FORMAT: Format = Format { key: "format", first: 1, steps: &[] };
/// Versions remembered for going back.
const BEFORE_MAX: usize = 16;

/// Everything the store knows by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    plugins: BTreeMap<String, Plugin>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Plugin {
    versions: BTreeMap<Version, Entry>,
    active: Option<Version>,
    /// Versions that were active before, last first.
    before: Vec<Version>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    canary: Option<Canary>,
}

/// A version that gets a share of the calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Canary {
    pub(crate) version: Version,
    /// Hundredths of a percent.
    pub(crate) share: u32,
    /// When it began, microseconds since the epoch: what tells this trial from an earlier one.
    pub(crate) since: u64,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// `sha256:<hex>` of the component.
    pub(crate) digest: String,
    /// Bytes of the component.
    pub(crate) size: u64,
    /// When it was added, microseconds since the epoch.
    pub(crate) added: u64,
    /// What it is for.
    #[serde(default)]
    pub(crate) kind: Kind,
    /// What it says of itself; of a command or filter, what it was given.
    pub(crate) metadata: Metadata,
    /// Its signature as given; whether it is good, and by whom, is asked when it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signature: Option<String>,
    /// What it offers to other plugins and wants of them.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub(crate) links: Links,
}

impl Index {
    /// Reads the index; where it is damaged, the one before the last change, with a warning.
    pub(super) fn load(folder: &Path, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let path = folder.join("index.json");
        let before = folder.join("index.before.json");
        match read(&path) {
            Ok(Some(index)) => Ok(index),
            Ok(None) if !before.exists() => Ok(Self::default()),
            Err(refused) if !refused.is_damage() => Err(Error::Index { path, reason: refused.to_string() }),
            outcome => {
                let reason = outcome.err().map_or_else(|| "it is gone".to_owned(), |refused| refused.to_string());
                match read(&before) {
                    Ok(Some(index)) => {
                        warnings.push(format!(
                            "index {} is damaged ({reason}); the one before the last change is used",
                            path.display()
                        ));
                        Ok(index)
                    }
                    _ => Err(Error::Index { path, reason }),
                }
            }
        }
    }

    pub(super) fn save(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join("index.json");
        let bytes = FORMAT
            .write(self)
            .and_then(|document| serde_json::to_vec_pretty(&document))
            .map_err(|error| Error::Index { path: path.clone(), reason: error.to_string() })?;
        if let Ok(now) = std::fs::read(&path) {
            files::write(&folder.join("index.before.json"), &now)?;
        }
        files::write(&path, &bytes)
    }

    pub(super) fn digests(&self) -> BTreeSet<&str> {
        self.all().map(|(_, _, entry, _)| entry.digest.as_str()).collect()
    }

    /// Every version: name, version, entry, whether it is active.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &Version, &Entry, bool)> {
        self.plugins.iter().flat_map(|(name, plugin)| {
            plugin
                .versions
                .iter()
                .map(move |(version, entry)| (name.as_str(), version, entry, plugin.active.as_ref() == Some(version)))
        })
    }

    /// Names, and versions of all.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.plugins.len() as u64, self.all().count() as u64)
    }

    /// What a reference stands for. The beginning of more than one digest stands for none of them.
    pub(crate) fn find(&self, reference: &Reference) -> Option<(&str, &Version, &Entry, bool)> {
        let found = self
            .all()
            .filter(|(name, version, entry, active)| match reference {
                Reference::Active(wanted) => name == wanted && *active,
                Reference::Exact(wanted, exact) => name == wanted && *version == exact,
                Reference::Fitting(wanted, requirement) => name == wanted && requirement.matches(version),
                Reference::Digest(beginning) => entry.digest.starts_with(beginning),
            })
            .max_by(|(_, a, _, _), (_, b, _, _)| a.cmp(b))?;
        let another =
            |entry: &Entry, beginning: &str| entry.digest.starts_with(beginning) && entry.digest != found.2.digest;
        match reference {
            Reference::Digest(beginning) if self.all().any(|(_, _, entry, _)| another(entry, beginning)) => None,
            _ => Some(found),
        }
    }

    /// Versions of a name, lowest first.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        self.plugins
            .get(name)
            .map(|plugin| plugin.versions.keys().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    /// The version of a name that is active.
    pub(crate) fn active(&self, name: &str) -> Option<&Version> {
        self.plugins.get(name)?.active.as_ref()
    }

    /// The version of a name that was active before the one that is.
    pub(crate) fn last(&self, name: &str) -> Option<&Version> {
        self.plugins.get(name)?.before.first()
    }

    /// The version of a name that gets a share of its calls.
    pub(crate) fn canary(&self, name: &str) -> Option<&Canary> {
        self.plugins.get(name)?.canary.as_ref()
    }

    /// The same with every canary at work.
    pub(crate) fn with_canaries(&self) -> Self {
        let mut all = self.clone();
        for plugin in all.plugins.values_mut() {
            if let Some(canary) = &plugin.canary {
                plugin.active = Some(canary.version.clone());
            }
        }
        all
    }

    /// Adds a version; whether it is a new one. The same content once more is no change, another under the same version is
    /// refused.
    pub(crate) fn add(&mut self, name: &str, version: &Version, entry: Entry) -> Result<bool, Error> {
        let plugin = self.plugins.entry(name.to_owned()).or_default();
        match plugin.versions.get(version) {
            Some(there) if there.digest == entry.digest => Ok(false),
            Some(there) => Err(Error::VersionTaken {
                name: name.to_owned(),
                version: version.to_string(),
                there: there.digest.clone(),
            }),
            None => {
                plugin.versions.insert(version.clone(), entry);
                Ok(true)
            }
        }
    }

    /// Keeps the signature of a version; in place of one that is there only if this one is known to be good.
    pub(crate) fn sign(&mut self, name: &str, version: &Version, signature: &str, good: bool) {
        let entry = self.plugins.get_mut(name).and_then(|plugin| plugin.versions.get_mut(version));
        if let Some(entry) = entry.filter(|entry| good || entry.signature.is_none()) {
            entry.signature = Some(signature.to_owned());
        }
    }

    /// Makes a version the active one.
    pub(crate) fn activate(&mut self, name: &str, version: &Version) -> Result<(), Error> {
        let plugin = self.plugins.get_mut(name).filter(|plugin| plugin.versions.contains_key(version));
        let plugin = plugin.ok_or_else(|| Error::NoSuchPlugin(format!("{name}@{version}")))?;
        if let Some(last) = plugin.active.replace(version.clone())
            && last != *version
        {
            plugin.before.retain(|other| *other != last);
            plugin.before.insert(0, last);
            plugin.before.truncate(BEFORE_MAX);
        }
        plugin.canary.take_if(|canary| canary.version == *version);
        Ok(())
    }

    /// Gives a version a share of its name's calls, in place of the one that had it. The same version keeps its time.
    pub(crate) fn begin_canary(&mut self, name: &str, version: &Version, share: u32, now: u64) -> Result<(), Error> {
        let missing = || Error::NoSuchPlugin(format!("{name}@{version}"));
        let plugin = self.plugins.get_mut(name).ok_or_else(missing)?;
        let entry = plugin.versions.get(version).ok_or_else(missing)?;
        let refuse = |why: &str| Error::InvalidArgument(format!("give plugin {name} {version} a share: {why}"));
        if !(1..WHOLE).contains(&share) {
            return Err(refuse("it has to be more than 0 % and less than 100 %; `activate` gives it all"));
        }
        if entry.metadata.exports.is_empty() {
            return Err(refuse("it has no export that rules could call; `activate` it for the plugins that call it"));
        }
        match &plugin.active {
            None => return Err(refuse("no version is at work that could have the rest; `activate` one")),
            Some(active) if active == version => return Err(refuse("it is at work already; name another version")),
            Some(_) => {}
        }
        let since = plugin.canary.as_ref().filter(|canary| canary.version == *version).map_or(now, |kept| kept.since);
        plugin.canary = Some(Canary { version: version.clone(), share, since });
        Ok(())
    }

    /// Takes a canary's share away; returns its version.
    pub(crate) fn end_canary(&mut self, name: &str) -> Result<Version, Error> {
        let plugin = self.plugins.get_mut(name).ok_or_else(|| Error::NoSuchPlugin(name.to_owned()))?;
        let canary = plugin.canary.take().ok_or_else(|| Error::NoCanary(name.to_owned()))?;
        Ok(canary.version)
    }

    /// Goes back to the version that was active before.
    pub(crate) fn roll_back(&mut self, name: &str) -> Result<Version, Error> {
        let plugin = self.plugins.get_mut(name).ok_or_else(|| Error::NoSuchPlugin(name.to_owned()))?;
        if plugin.before.is_empty() {
            return Err(Error::NothingBefore(name.to_owned()));
        }
        let version = plugin.before.remove(0);
        plugin.active = Some(version.clone());
        plugin.canary.take_if(|canary| canary.version == version);
        Ok(version)
    }

    /// Removes a version; the active one only if forced, and then no version is active.
    pub(crate) fn remove(&mut self, name: &str, version: &Version, force: bool) -> Result<(), Error> {
        let missing = || Error::NoSuchPlugin(format!("{name}@{version}"));
        let plugin = self.plugins.get_mut(name).ok_or_else(missing)?;
        if plugin.active.as_ref() == Some(version) {
            if !force {
                return Err(Error::InUse { name: name.to_owned(), version: version.to_string() });
            }
            plugin.active = None;
            // Nothing is left that could have the rest of the calls.
            plugin.canary = None;
        }
        if plugin.canary.as_ref().is_some_and(|canary| canary.version == *version) {
            if !force {
                return Err(Error::IsCanary { name: name.to_owned(), version: version.to_string() });
            }
            plugin.canary = None;
        }
        plugin.versions.remove(version).ok_or_else(missing)?;
        plugin.before.retain(|other| other != version);
        if plugin.versions.is_empty() {
            self.plugins.remove(name);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Index>, Refused> {
    match std::fs::read(path) {
        Ok(bytes) => FORMAT.parse(&bytes).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_releases_index_is_refused_whatever_lies_beside_it_and_a_torn_one_is_recovered() {
        let folder = tempfile::tempdir().unwrap();
        let mut warnings = Vec::new();
        Index::default().save(folder.path()).unwrap();
        Index::default().save(folder.path()).unwrap();
        let path = folder.path().join("index.json");
        assert!(folder.path().join("index.before.json").exists());
        assert!(std::fs::read_to_string(&path).unwrap().contains("\"format\": 1"));

        std::fs::write(&path, r#"{"format": 2, "plugins": {}}"#).unwrap();
        let error = Index::load(folder.path(), &mut warnings).unwrap_err().to_string();
        assert!(error.contains("of version 2, and this release reads up to 1"), "{error}");
        assert!(warnings.is_empty(), "{warnings:?}");

        std::fs::write(&path, r#"{"format": 2, "plu"#).unwrap();
        assert_eq!(Index::load(folder.path(), &mut warnings).unwrap(), Index::default());
        assert!(warnings[0].contains("is damaged"), "{warnings:?}");
    }

    #[test]
    fn the_beginning_of_a_digest_stands_for_the_only_one_that_begins_so() {
        let index = crate::links::tests::index(&[("aaaaaaaa1", &[], &[]), ("aaaaaaaa2", &[], &[])]);
        let name = |text: &str| index.find(&Reference::Digest(text.to_owned())).map(|(name, ..)| name);
        assert_eq!(name("sha256:aaaaaaaa1"), Some("aaaaaaaa1"));
        assert_eq!(name("sha256:aaaaaaaa"), None, "it may be either");
        assert_eq!(name("sha256:bbbbbbbb"), None);
    }
}
