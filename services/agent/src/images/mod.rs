//! Images in the guest: taken from archives, kept as unpacked layers, run under overlays.
//!
//! What can be pulled is named as in containers-transports(5): `docker-archive:/FILE` (what `docker save` writes) and, of
//! our own, `rootfs:/FILE` (a tar of a root). Registries are not spoken to here.
//!
//! Invariant: a layer is in the store only if its bytes have the digest that the image's config names.

mod archive;
mod layer;
mod overlay;
mod run;
mod user;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shipote_agent_protocol::{AgentResponse, ImageInfo, codes};
use tokio::sync::{mpsc, watch};

use crate::outbox::{Gone, Outbox};

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
#[derive(Debug, Clone)]
struct Image {
    /// What it may be called by.
    names: Vec<String>,
    info: ImageInfo,
    /// Digests of its unpacked layers in hexadecimal, the lowest first.
    layers: Vec<String>,
}

/// All images of this machine.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    images: Mutex<Vec<Image>>,
    /// One import at a time: two of the same layer would be in each other's way.
    importing: tokio::sync::Mutex<()>,
    /// Whether the kernel has what overlays need.
    open: watch::Sender<bool>,
}

impl Store {
    /// An empty store beneath `root`.
    pub(crate) fn new(root: PathBuf) -> Arc<Self> {
        let open = watch::Sender::new(false);
        Arc::new(Self { root, images: Mutex::default(), importing: tokio::sync::Mutex::default(), open })
    }

    /// Says that requests can be answered; until then they wait.
    pub(crate) fn open(&self) {
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

    fn lock(&self) -> MutexGuard<'_, Vec<Image>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<Image, ImageError> {
        let found = self.lock().iter().find(|image| image.names.iter().any(|known| known == name)).cloned();
        found.ok_or_else(|| ImageError::Absent(name.to_owned()))
    }

    /// What is known of an image.
    pub(crate) fn query(&self, name: &str) -> Result<ImageInfo, ImageError> {
        Ok(self.find(name)?.info)
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<ImageInfo> {
        self.lock().iter().map(|image| image.info.clone()).collect()
    }

    /// Images and layers.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let images = self.lock();
        let mut layers: Vec<&String> = images.iter().flat_map(|image| &image.layers).collect();
        layers.sort_unstable();
        layers.dedup();
        (images.len(), layers.len())
    }

    fn layer(&self, digest: &str) -> PathBuf {
        self.root.join("layers").join(digest)
    }

    fn add(&self, image: Image) {
        let mut images = self.lock();
        // A name means the newest image that was given it.
        for older in images.iter_mut() {
            older.names.retain(|name| !image.names.contains(name));
        }
        images.retain(|older| !older.names.is_empty());
        images.push(image);
    }
}

/// Takes an image from an archive, telling how far it is.
pub(crate) async fn pull(store: &Arc<Store>, outbox: &Outbox, name: String) -> Result<(), Gone> {
    if let Ok(info) = store.query(&name) {
        return outbox.send(&AgentResponse::ok_with(info)).await;
    }
    let _one = store.importing.lock().await;
    let (progress, mut told) = mpsc::channel(8);
    let (importer, image) = (Arc::clone(store), name.clone());
    let importing = tokio::task::spawn_blocking(move || archive::import(&importer, &image, &progress));
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
