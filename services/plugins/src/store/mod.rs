//! Components and compiled code on disk, and the index of names and versions.
//!
//! ```text
//! store/lock                              held while a registry has it open
//! store/index.json                        names, versions, what is active
//! store/index.before.json                 the same before the last change
//! store/components/<sha256>.wasm          as added
//! store/compiled/<sha256>.<engine>.code   32 bytes of sha256, then the code
//! store/incoming/                         what is being written
//! ```
//!
//! Invariant: a name in the index has its component on disk. A file appears under its name whole (written elsewhere,
//! synced, renamed, its folder synced), the index last; so a crash leaves at most files that nothing names, and those are
//! removed when the store is opened.

mod files;
mod index;

pub(crate) use files::{Incoming, digest_of};
pub(crate) use index::{Canary, Entry, Index, Version};

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use crate::error::Error;
use crate::forge;

/// An open store. One at a time has it.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    index: Index,
    /// Engines whose code is of use on this machine, with this wasmtime.
    engines: [String; 2],
    _lock: File,
}

impl Store {
    /// Opens the store, making it if it is not there. Says what it had to put right.
    pub(crate) fn open(folder: &Path, engines: [String; 2]) -> Result<(Self, Vec<String>), Error> {
        for part in ["", "components", "compiled", "incoming"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
        }
        let path = folder.join("lock");
        let lock =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::Locked { path: folder.to_owned() })?;
        let mut warnings = Vec::new();
        let index = Index::load(folder, &mut warnings)?;
        let recovered = !warnings.is_empty();
        let store = Self { folder: folder.to_owned(), index, engines, _lock: lock };
        store.sweep_incoming(&mut warnings)?;
        // An older index may not name what was added last: a person may want those files back.
        if !recovered {
            store.sweep(&mut warnings)?;
        }
        Ok((store, warnings))
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    /// Where to write a component that is being added.
    pub(crate) fn incoming(&self) -> PathBuf {
        self.folder.join("incoming")
    }

    /// Changes the index: on disk first.
    pub(crate) fn change<A>(&mut self, change: impl FnOnce(&mut Index) -> Result<A, Error>) -> Result<A, Error> {
        let mut next = self.index.clone();
        let answer = change(&mut next)?;
        if next != self.index {
            next.save(&self.folder)?;
            self.index = next;
        }
        Ok(answer)
    }

    /// Puts a component under its digest.
    pub(crate) fn keep(&self, incoming: Incoming) -> Result<(), Error> {
        let path = self.component_path(&incoming.digest);
        incoming.persist(&path)
    }

    /// A component's bytes, open for reading; checked to be what was added.
    pub(crate) fn component(&self, digest: &str) -> Result<File, Error> {
        let path = self.component_path(digest);
        let mut file = File::open(&path).map_err(Error::io("open component", &path))?;
        let found = digest_of(&mut file).map_err(Error::io("read component", &path))?;
        if found != digest {
            return Err(Error::Corrupt { digest: digest.to_owned(), found });
        }
        Ok(file)
    }

    /// Keeps compiled code. That it cannot be written costs time later and nothing else.
    pub(crate) fn cache(&self, digest: &str, engine: &str, code: &[u8]) -> Result<(), Error> {
        let mut bytes = Sha256::digest(code).to_vec();
        bytes.extend(code);
        files::write(&self.code_path(digest, engine), &bytes)
    }

    /// Compiled code in a sealed memfd, if it is there and whole. What is broken is removed.
    pub(crate) fn cached(&self, digest: &str, engine: &str) -> Option<File> {
        let path = self.code_path(digest, engine);
        let bytes = std::fs::read(&path).ok()?;
        let Some((sum, code)) =
            bytes.split_at_checked(32).filter(|(sum, code)| Sha256::digest(code).as_slice() == *sum)
        else {
            tracing::warn!("compiled code {} is broken; it is compiled again", path.display());
            let _ = std::fs::remove_file(&path);
            return None;
        };
        let _ = sum;
        let sealed = || -> std::io::Result<File> {
            let mut file = forge::memfd("plugin")?;
            std::io::Write::write_all(&mut file, code)?;
            forge::seal(&file)?;
            Ok(file)
        };
        sealed().inspect_err(|error| tracing::error!("hand over compiled code: {error}")).ok()
    }

    /// Removes files that nothing names: left by a crash, or by a removal.
    pub(crate) fn sweep(&self, warnings: &mut Vec<String>) -> Result<(), Error> {
        let named = self.index.digests();
        for part in ["components", "compiled"] {
            self.sweep_folder(part, warnings, |name| {
                let mut parts = name.split('.');
                let digest = format!("sha256:{}", parts.next().unwrap_or_default());
                // What another wasmtime compiled, or for another processor, nobody will ask for.
                let stale = part == "compiled" && !parts.next().is_some_and(|of| self.engines.iter().any(|e| e == of));
                stale || !named.contains(digest.as_str())
            })?;
        }
        for digest in named {
            if !self.component_path(digest).exists() {
                warnings
                    .push(format!("component {digest} is gone from the store; add it again, or remove its version"));
            }
        }
        Ok(())
    }

    /// Removes what was being written when a registry ended. Only at the beginning: later it is somebody's.
    fn sweep_incoming(&self, warnings: &mut Vec<String>) -> Result<(), Error> {
        self.sweep_folder("incoming", warnings, |_| true)
    }

    fn sweep_folder(
        &self,
        part: &str,
        warnings: &mut Vec<String>,
        is_left: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let folder = self.folder.join(part);
        for file in std::fs::read_dir(&folder).map_err(Error::io("list", &folder))?.flatten() {
            if is_left(&file.file_name().to_string_lossy()) {
                match std::fs::remove_file(file.path()) {
                    Ok(()) => tracing::info!("removed {} from the store: nothing needs it", file.path().display()),
                    Err(error) => warnings.push(format!("remove {}: {error}", file.path().display())),
                }
            }
        }
        Ok(())
    }

    fn component_path(&self, digest: &str) -> PathBuf {
        self.folder.join("components").join(format!("{}.wasm", hex(digest)))
    }

    fn code_path(&self, digest: &str, engine: &str) -> PathBuf {
        self.folder.join("compiled").join(format!("{}.{engine}.code", hex(digest)))
    }
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}
