//! The specs of the machines on disk, one folder each, so that they are there after a restart: the spec as it is given
//! to `create`, and the version of the file.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use shipote_state::{Format, Refused};

use crate::Error;
use crate::idle::{How, marker};
use crate::spec::{Spec, check_name};

const FILE: &str = "machine.toml";
/// Versions of the file. Before 1 it had no number and was otherwise the same.
const FORMAT: Format = Format { key: "version", first: 0, steps: &[|_| Ok(())] };

/// The folder of all machines.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

impl Store {
    /// Takes a folder, which must exist.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// All machines, by name. One whose file is damaged is left out, with a line in the log.
    ///
    /// # Errors
    /// The folder cannot be read, or a later release wrote a file in it: left out, its name would be free for another.
    pub fn load(&self) -> Result<Vec<(String, Spec)>, Error> {
        let entries = std::fs::read_dir(&self.0).map_err(Error::io("read", self.0.display()))?;
        let mut machines = Vec::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path().join(FILE);
            if check_name(&name).is_err() || !path.exists() {
                continue;
            }
            match read(&name, &path) {
                Ok(spec) => machines.push((name, spec)),
                Err(error) if !error.is_damage() => {
                    let problem = format!("load {}: {error}", path.display());
                    return Err(Error::InvalidSpec { name, problem });
                }
                Err(error) => tracing::error!("load {}: {error}; the machine is left out", path.display()),
            }
        }
        Ok(machines)
    }

    /// Writes a machine's spec, whole or not at all; it is on the disk when this returns.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, name: &str, spec: &Spec) -> Result<(), Error> {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", folder.display()))?;
        write_toml(FORMAT, &folder.join(FILE), spec)
    }

    /// The folder of a machine.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// How a machine sleeps, as an earlier service marked it.
    #[must_use]
    pub fn asleep(&self, name: &str) -> Option<How> {
        let text = std::fs::read_to_string(marker(&self.0.join(name))).ok()?;
        How::parse(text.trim())
    }

    /// Marks how a machine sleeps, or that it doesn't.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn mark_asleep(&self, name: &str, how: Option<How>) -> Result<(), Error> {
        let path = marker(&self.0.join(name));
        let done = match how {
            Some(how) => shipote_state::replace(&path, how.as_str().as_bytes()),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        done.map_err(Error::io("mark as asleep or awake", path.display()))
    }

    /// Removes a machine with all that lies in its folder.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let folder = self.0.join(name);
        std::fs::remove_dir_all(&folder).map_err(Error::io("remove", folder.display()))
    }
}

/// A document in TOML, of whatever version it is that is still read.
pub(crate) fn read_toml<T: DeserializeOwned>(format: Format, path: &Path) -> Result<T, Refused> {
    let text = std::fs::read_to_string(path)?;
    let document: Value = toml::from_str(&text).map_err(|error| Refused::Damaged(error.to_string()))?;
    format.read(document)
}

/// Writes one, whole or not at all; it is on the disk when this returns.
pub(crate) fn write_toml(format: Format, path: &Path, document: &impl Serialize) -> Result<(), Error> {
    let failed = |error: String| Error::io("write", path.display())(std::io::Error::other(error));
    let document = format.write(document).map_err(|error| failed(error.to_string()))?;
    let text = toml::to_string(&without_null(document)).map_err(|error| failed(error.to_string()))?;
    shipote_state::replace(path, text.as_bytes()).map_err(Error::io("write", path.display()))
}

fn read(name: &str, path: &Path) -> Result<Spec, Refused> {
    let damaged = |problem: String| Refused::Damaged(problem);
    let spec: toml::Table = read_toml(FORMAT, path)?;
    let text = toml::to_string(&spec).map_err(|error| damaged(error.to_string()))?;
    Spec::parse(name, &text).map_err(|error| damaged(error.to_string()))
}

/// TOML says that something is not there by leaving it out.
fn without_null(document: Value) -> Value {
    match document {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(key, value)| (key, without_null(value))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        let spec = Spec { memory_mib: 128, cpus: 2, disk_mib: 64, egress: vec!["a.org:443".into()], ..Spec::default() };
        store.save("web", &spec).unwrap();
        std::fs::create_dir(dir.path().join("Not A Machine")).unwrap();
        std::fs::create_dir(dir.path().join("torn")).unwrap();
        std::fs::write(dir.path().join("torn/machine.toml"), "cpus = ").unwrap();
        assert_eq!(store.asleep("web"), None);
        for how in [Some(How::Stop), Some(How::Pause), None, None] {
            store.mark_asleep("web", how).unwrap();
            assert_eq!(store.asleep("web"), how);
        }
        assert_eq!(store.load().unwrap(), [("web".to_owned(), spec)]);
        store.remove("web").unwrap();
        assert!(store.load().unwrap().is_empty());
    }
    #[test]
    fn a_file_from_before_there_were_versions_is_read_and_written_with_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        std::fs::create_dir(dir.path().join("old")).unwrap();
        let path = dir.path().join("old/machine.toml");
        std::fs::write(&path, "memory_mib = 128\ncpus = 2\n").unwrap();
        let [(name, spec)] = store.load().unwrap().try_into().unwrap();
        assert_eq!((name.as_str(), spec.memory_mib, spec.cpus), ("old", 128, 2));
        store.save("old", &spec).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("version = 1"));
        assert_eq!(store.load().unwrap(), [("old".to_owned(), spec)]);
    }

    #[test]
    fn a_later_releases_file_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        store.save("web", &Spec::default()).unwrap();
        let path = dir.path().join("web/machine.toml");
        std::fs::write(&path, "version = 2\nmemory_mib = 128\n").unwrap();
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("web/machine.toml") && error.contains("install the release"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "version = 2\nmemory_mib = 128\n");
    }
}
