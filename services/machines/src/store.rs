//! The specs of the machines on disk, one folder each, so that they are there after a restart.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::spec::{Spec, check_name};

const FILE: &str = "machine.toml";

/// The folder of all machines.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

impl Store {
    /// Takes a folder, which must exist.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// All machines, by name. One whose file cannot be understood is left out, with a line in the log.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn load(&self) -> Result<Vec<(String, Spec)>, Error> {
        let entries = std::fs::read_dir(&self.0).map_err(Error::io("read", self.0.display()))?;
        let mut machines = Vec::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path().join(FILE);
            if check_name(&name).is_err() || !path.exists() {
                continue;
            }
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", path.display()));
            match text.and_then(|text| Spec::parse(&name, &text)) {
                Ok(spec) => machines.push((name, spec)),
                Err(error) => tracing::error!("load {}: {error}; the machine is left out", path.display()),
            }
        }
        Ok(machines)
    }

    /// Writes a machine's spec, whole or not at all.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, name: &str, spec: &Spec) -> Result<(), Error> {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", folder.display()))?;
        let text = toml::to_string(spec)
            .map_err(|error| Error::InvalidSpec { name: name.to_owned(), problem: error.to_string() })?;
        let (path, new) = (folder.join(FILE), folder.join("machine.toml.new"));
        std::fs::write(&new, text).map_err(Error::io("write", new.display()))?;
        std::fs::rename(&new, &path).map_err(Error::io("replace", path.display()))
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
        assert_eq!(store.load().unwrap(), [("web".to_owned(), spec)]);
        store.remove("web").unwrap();
        assert!(store.load().unwrap().is_empty());
    }
}
