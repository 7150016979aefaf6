//! Names, versions, and which version of a name is active.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use shipote_plugin_abi::metadata::Metadata;

use super::files;
use crate::error::Error;
use crate::links::Links;
use crate::reference::Reference;

pub(crate) use semver::Version;

/// The only format so far.
const FORMAT: u32 = 1;
/// Versions remembered for going back.
const BEFORE_MAX: usize = 16;

/// Everything the store knows by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Index {
    format: u32,
    plugins: BTreeMap<String, Plugin>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Plugin {
    versions: BTreeMap<Version, Entry>,
    active: Option<Version>,
    /// Versions that were active before, last first.
    before: Vec<Version>,
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
    /// What it says of itself.
    pub(crate) metadata: Metadata,
    /// Its signature as given; whether it is good, and by whom, is asked when it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signature: Option<String>,
    /// What it offers to other plugins and wants of them.
    #[serde(default, skip_serializing_if = "Links::is_empty")]
    pub(crate) links: Links,
}

impl Default for Index {
    fn default() -> Self {
        Self { format: FORMAT, plugins: BTreeMap::new() }
    }
}

impl Index {
    /// Reads the index; where it is damaged, the one before the last change, with a warning.
    pub(super) fn load(folder: &Path, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let path = folder.join("index.json");
        let before = folder.join("index.before.json");
        match read(&path) {
            Ok(Some(index)) => Ok(index),
            Ok(None) if !before.exists() => Ok(Self::default()),
            outcome => {
                let reason = outcome.err().unwrap_or_else(|| "it is gone".to_owned());
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
        let bytes = serde_json::to_vec_pretty(self)
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

    /// What a reference stands for.
    pub(crate) fn find(&self, reference: &Reference) -> Option<(&str, &Version, &Entry, bool)> {
        self.all()
            .filter(|(name, version, entry, active)| match reference {
                Reference::Active(wanted) => name == wanted && *active,
                Reference::Version(wanted, requirement) => name == wanted && requirement.matches(version),
                Reference::Digest(digest) => entry.digest == *digest,
            })
            .max_by(|(_, a, _, _), (_, b, _, _)| a.cmp(b))
    }

    /// Versions of a name, lowest first.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        self.plugins
            .get(name)
            .map(|plugin| plugin.versions.keys().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    /// Adds a version. The same content once more is no change; another under the same version is refused.
    pub(crate) fn add(&mut self, name: &str, version: &Version, entry: Entry) -> Result<(), Error> {
        let plugin = self.plugins.entry(name.to_owned()).or_default();
        match plugin.versions.get(version) {
            Some(there) if there.digest == entry.digest => Ok(()),
            Some(there) => Err(Error::VersionTaken {
                name: name.to_owned(),
                version: version.to_string(),
                there: there.digest.clone(),
            }),
            None => {
                plugin.versions.insert(version.clone(), entry);
                Ok(())
            }
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
        Ok(())
    }

    /// Goes back to the version that was active before.
    pub(crate) fn roll_back(&mut self, name: &str) -> Result<Version, Error> {
        let plugin = self.plugins.get_mut(name).ok_or_else(|| Error::NoSuchPlugin(name.to_owned()))?;
        if plugin.before.is_empty() {
            return Err(Error::NothingBefore(name.to_owned()));
        }
        let version = plugin.before.remove(0);
        plugin.active = Some(version.clone());
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
        }
        plugin.versions.remove(version).ok_or_else(missing)?;
        plugin.before.retain(|other| other != version);
        if plugin.versions.is_empty() {
            self.plugins.remove(name);
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<Index>, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let index: Index = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if index.format != FORMAT {
        return Err(format!("it has format {}, this version reads {FORMAT}", index.format));
    }
    Ok(Some(index))
}
