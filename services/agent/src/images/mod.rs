//! Images in the guest: pulled from registries or taken from archives, kept as unpacked layers, run under overlays.
//!
//! What can be pulled is named as in containers-transports(5): `docker://NAME` or just `NAME` (a registry, reached
//! through the host; see [`crate::egress`]), `docker-archive:/FILE` (what `docker save` writes), `oci-archive:/FILE` (a tar
//! of an OCI layout) and, of our own, `rootfs:/FILE` (a tar of a root).
//!
//! Invariant: a layer is in the store only if its bytes have the digest that the image's config names, and stays as long
//! as an image, an overlay or something that runs needs it.

mod archive;
mod collect;
mod export;
mod layer;
mod layout;
mod overlay;
mod pieces;
mod pull;
mod reference;
mod refusal;
mod registry;
mod retry;
mod run;
mod user;
mod zstd;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shipote_agent_protocol::{AgentResponse, ImageInfo, RegistryAuth, codes};
use tokio::sync::{mpsc, watch};

use crate::outbox::{Gone, Outbox};

pub(crate) use collect::{collect, remove};
pub(crate) use export::export;
pub(crate) use overlay::{cleanup, prepare};
pub(crate) use run::{Request, run};

/// Why something about images failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// An id that may not be.
    #[error("{0:?} is no id: 1 to 128 of A-Z, a-z, 0-9, `.`, `_` and `-`, other than `.` and `..`")]
    BadId(String),
    /// No such image.
    #[error("image {0}: there is none of this name; pull it first")]
    Absent(String),
    /// What the image says of itself is wrong.
    #[error("image {image}: {problem}")]
    Invalid { image: String, problem: String },
    /// The registry, or the way to it, refused.
    #[error("fetch {what}: {reason}")]
    Registry { what: String, reason: String },
    /// A folder of the host cannot be had in the image.
    #[error("mount {tag} on {path}: {source}")]
    Volume { tag: String, path: String, source: std::io::Error },
    /// The file system refused.
    #[error("{operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

impl ImageError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    fn invalid(image: &str, problem: impl Into<String>) -> Self {
        Self::Invalid { image: image.to_owned(), problem: problem.into() }
    }
}

/// An image in the store.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Image {
    /// What it may be called by.
    names: Vec<String>,
    info: ImageInfo,
    /// Digests of its unpacked layers in hexadecimal, the lowest first.
    layers: Vec<String>,
}

/// The list of images on disk.
#[derive(Serialize, Deserialize)]
struct Index {
    version: u32,
    images: Vec<Image>,
}

/// Version of [`Index`].
const INDEX_VERSION: u32 = 1;
/// Its file.
const INDEX: &str = "images.json";

#[derive(Debug, Default)]
struct State {
    images: Vec<Image>,
    /// Layers that something is being done with, and by how many.
    held: HashMap<String, usize>,
    /// Pulls under way.
    pulls: usize,
}

/// All images of this machine.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    state: Mutex<State>,
    /// One import at a time: two of the same layer would be in each other's way.
    importing: Arc<tokio::sync::Mutex<()>>,
    /// Whether the kernel has what overlays need.
    open: watch::Sender<bool>,
}

/// Holds layers in the store until dropped.
#[derive(Debug)]
pub(crate) struct Held {
    store: Arc<Store>,
    layers: Vec<String>,
}

impl Drop for Held {
    fn drop(&mut self) {
        release(&mut self.store.lock(), &self.layers);
    }
}

/// Holds the layers of a pull until it has ended, one way or the other.
struct Pin<'a> {
    store: &'a Store,
    layers: Vec<String>,
}

impl<'a> Pin<'a> {
    fn new(store: &'a Store) -> Self {
        store.lock().pulls += 1;
        Self { store, layers: Vec::new() }
    }

    fn add(&mut self, layer: &str) {
        *self.store.lock().held.entry(layer.to_owned()).or_default() += 1;
        self.layers.push(layer.to_owned());
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        state.pulls -= 1;
        release(&mut state, &self.layers);
    }
}

fn release(state: &mut State, layers: &[String]) {
    for layer in layers {
        if let Some(count) = state.held.get_mut(layer) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(layer);
            }
        }
    }
}

impl Store {
    /// A store beneath `root`, which is read when it is opened.
    pub(crate) fn new(root: PathBuf) -> Arc<Self> {
        let open = watch::Sender::new(false);
        Arc::new(Self { root, state: Mutex::default(), importing: Arc::default(), open })
    }

    /// Reads what an earlier life left, and says that requests can be answered; until then they wait.
    pub(crate) fn open(&self) {
        let path = self.root.join(INDEX);
        match read_index(&path) {
            Ok(images) => self.lock().images = images,
            Err(error) => {
                // Its layers are found again by their digests; nothing is half-read.
                eprintln!("shipote-agent: {error}; the machine begins without images");
                let _ = std::fs::rename(&path, self.root.join("images.json.unreadable"));
            }
        }
        // Overlays for single commands that ended with the machine.
        let _ = std::fs::remove_dir_all(self.root.join("temporary"));
        // What garbage collection was removing then.
        let _ = std::fs::remove_dir_all(self.root.join(collect::RUBBISH));
        self.open.send_replace(true);
    }

    /// Waits for it.
    pub(crate) async fn is_open(&self) {
        // The sender is in the store itself: it cannot be gone.
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }

    /// Where all of it lies.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Image, ImageError> {
        let state = self.lock();
        let found = state.images.iter().find(|image| image.names.iter().any(|known| known == name)).cloned();
        found.ok_or_else(|| ImageError::Absent(name.to_owned()))
    }

    /// An image, with its layers held.
    fn find_and_hold(self: &Arc<Self>, name: &str) -> Result<(Image, Held), ImageError> {
        let mut state = self.lock();
        let found = state.images.iter().find(|image| image.names.iter().any(|known| known == name)).cloned();
        let image = found.ok_or_else(|| ImageError::Absent(name.to_owned()))?;
        for layer in &image.layers {
            *state.held.entry(layer.clone()).or_default() += 1;
        }
        drop(state);
        let held = Held { store: Arc::clone(self), layers: image.layers.clone() };
        Ok((image, held))
    }

    /// Holds layers.
    fn hold(self: &Arc<Self>, layers: Vec<String>) -> Held {
        let mut state = self.lock();
        for layer in &layers {
            *state.held.entry(layer.clone()).or_default() += 1;
        }
        drop(state);
        Held { store: Arc::clone(self), layers }
    }

    /// What is known of an image.
    pub(crate) fn query(&self, name: &str) -> Result<ImageInfo, ImageError> {
        Ok(self.find(name)?.info)
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<ImageInfo> {
        self.lock().images.iter().map(|image| image.info.clone()).collect()
    }

    /// Images and layers.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let state = self.lock();
        let mut layers: Vec<&String> = state.images.iter().flat_map(|image| &image.layers).collect();
        layers.sort_unstable();
        layers.dedup();
        (state.images.len(), layers.len())
    }

    fn layer(&self, digest: &str) -> PathBuf {
        self.root.join("layers").join(digest)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.root.join("blobs").join(digest.trim_start_matches("sha256:"))
    }

    fn add(&self, image: Image) -> Result<(), ImageError> {
        let mut state = self.lock();
        // A name means the newest image that was given it.
        for older in &mut state.images {
            older.names.retain(|name| !image.names.contains(name));
        }
        state.images.retain(|older| !older.names.is_empty());
        state.images.push(image);
        self.save(&state.images)
    }

    /// Writes the list, whole or not at all.
    fn save(&self, images: &[Image]) -> Result<(), ImageError> {
        let (path, new) = (self.root.join(INDEX), self.root.join("images.json.new"));
        let index = Index { version: INDEX_VERSION, images: images.to_vec() };
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::File::create(&new)?;
            serde_json::to_writer(&mut file, &index)?;
            file.sync_data()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(ImageError::io("write", &path))
    }
}

fn read_index(path: &Path) -> Result<Vec<Image>, ImageError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(ImageError::io("read", path)(error)),
    };
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| ImageError::io("read", path)(error.into()))?;
    if index.version != INDEX_VERSION {
        let problem = format!("version {}; this agent reads {INDEX_VERSION}", index.version);
        return Err(ImageError::io("read", path)(std::io::Error::other(problem)));
    }
    Ok(index.images)
}

/// Takes an image from a registry or an archive, telling how far it is.
pub(crate) async fn pull(
    store: &Arc<Store>,
    outbox: &Outbox,
    name: String,
    platform: Option<String>,
    auth: Option<RegistryAuth>,
) -> Result<(), Gone> {
    let platform = match pull::Platform::parse(&name, platform.as_deref()) {
        Ok(platform) => platform,
        Err(error) => return outbox.send(&AgentResponse::error(codes::PULL_FAILED, error)).await,
    };
    // A tag may mean another image by now, but what is there already is good enough: so the protocol says.
    if let Ok(info) = store.query(&name)
        && (archive::is_archive(&name) || platform.is_of(&info))
    {
        return outbox.send(&AgentResponse::ok_with(info)).await;
    }
    // Held by the import itself: it goes on when whoever asked for it is gone, and works where the next one would.
    let one = Arc::clone(&store.importing).lock_owned().await;
    let (progress, mut told) = mpsc::channel(8);
    let (importer, image) = (Arc::clone(store), name.clone());
    let importing = tokio::task::spawn_blocking(move || {
        let _one = one;
        if archive::is_archive(&image) {
            archive::import(&importer, &image, &platform, &progress)
        } else {
            pull::pull(&importer, pull::Wanted { name: &image, platform, auth }, &progress)
        }
    });
    while let Some(progress) = told.recv().await {
        outbox.send(&progress).await?;
    }
    let answer = match importing.await {
        Ok(Ok(info)) => AgentResponse::ok_with(info),
        Ok(Err(error)) => AgentResponse::error(codes::PULL_FAILED, error),
        Err(error) => AgentResponse::error(codes::PULL_FAILED, error),
    };
    outbox.send(&answer).await
}

/// Ids of overlays become names of folders.
fn check_id(id: &str) -> Result<(), ImageError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=128).contains(&id.len()) && id.bytes().all(good) && id != "." && id != ".." {
        Ok(())
    } else {
        Err(ImageError::BadId(id.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::check_id;

    #[test]
    fn ids() {
        for good in ["a", "A.b_c-1", "...", &"x".repeat(128)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }
}
