//! The policies in force, read anew on demand.

use std::path::{Path, PathBuf};

use shipote_plugin_abi::policy::{Policy, PolicyError, PolicyTable};

/// The table with the folder that it came from.
#[derive(Debug)]
pub(crate) struct Policies {
    folder: PathBuf,
    table: PolicyTable,
}

impl Policies {
    pub(crate) fn load(folder: &Path) -> Result<Self, PolicyError> {
        Ok(Self { folder: folder.to_owned(), table: PolicyTable::load(folder)? })
    }

    /// Takes over what the files say now; what cannot be read leaves the table as it was.
    pub(crate) fn reload(&mut self) -> Result<(), PolicyError> {
        self.table = PolicyTable::load(&self.folder)?;
        Ok(())
    }

    /// The policy of a component by its digest, else by one of its names; deny-all when there is none.
    pub(crate) fn of(&self, digest: &str, names: &[&str]) -> Policy {
        let name = names.iter().find(|name| self.table.plugins.contains_key(**name)).copied().unwrap_or_default();
        self.table.get(name, digest)
    }
}
