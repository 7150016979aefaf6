//! Garbage collection: what no image and no overlay needs is removed.
//!
//! Under the store's lock things are only renamed into a folder of rubbish; the removing, which takes its time, comes
//! after. So a pull or a run that happens meanwhile either has its layers held already or finds them gone and says so.

use std::collections::HashSet;
use std::fs::{create_dir_all, read_dir, remove_dir_all, rename};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Image, ImageError, State, Store};

/// Where things go that are being removed, in a folder for each collection: several may be under way.
pub(super) const RUBBISH: &str = "rubbish";

/// What is looked through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// Layers, and the blobs of pulls that did not end.
    All,
    /// Layers only.
    Layers,
}

/// Removes layers, blobs and overlays of the past that nobody needs; with `all` also every image that nothing runs on.
/// Gives the bytes that are (or with `dry_run` would be) free.
pub(crate) fn collect(store: &Store, dry_run: bool, all: bool) -> Result<u64, ImageError> {
    let state = store.lock();
    let held = held(store, &state);
    let keep = |image: &Image| !all || image.layers.iter().all(|layer| held.contains(layer));
    sweep(store, state, &held, keep, dry_run, Extent::All)
}

/// Removes an image, whatever it is called by, and the layers that no other needs; gives the bytes that are free. What
/// runs on it, and overlays over it, keep their layers.
pub(crate) fn remove(store: &Store, name: &str) -> Result<u64, ImageError> {
    let state = store.lock();
    let is_it = |image: &Image| image.names.iter().any(|known| known == name);
    if !state.images.iter().any(is_it) {
        return Err(ImageError::Absent(name.to_owned()));
    }
    let held = held(store, &state);
    sweep(store, state, &held, |image| !is_it(image), false, Extent::Layers)
}

/// Layers that something is being done with, or that an overlay is made of.
fn held(store: &Store, state: &State) -> HashSet<String> {
    state.held.keys().cloned().chain(super::overlay::layers_of_all(store)).collect()
}

fn sweep(
    store: &Store,
    mut state: MutexGuard<'_, State>,
    held: &HashSet<String>,
    keep: impl Fn(&Image) -> bool,
    dry_run: bool,
    extent: Extent,
) -> Result<u64, ImageError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let rubbish = store.root.join(RUBBISH).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    if !dry_run {
        create_dir_all(&rubbish).map_err(ImageError::io("create", &rubbish))?;
    }
    let kept: Vec<_> = state.images.iter().filter(|image| keep(image)).cloned().collect();
    let mut needed = held.clone();
    needed.extend(kept.iter().flat_map(|image| image.layers.iter().cloned()));
    if !dry_run && kept.len() < state.images.len() {
        // In memory only once it is so on the disk.
        store.save(&kept)?;
        state.images = kept;
    }
    let mut freed = 0;
    for (folder, is_layer) in [("layers", true), ("blobs", false)] {
        // Blobs belong to pulls; one that runs has its own there.
        if !is_layer && (state.pulls > 0 || extent == Extent::Layers) {
            continue;
        }
        for entry in read_dir(store.root.join(folder)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_layer && (needed.contains(&name) || (state.pulls > 0 && name == super::layer::WORK)) {
                continue;
            }
            freed += size(&entry.path());
            if !dry_run {
                rename(entry.path(), rubbish.join(&name)).map_err(ImageError::io("remove", &entry.path()))?;
            }
        }
    }
    drop(state);
    if !dry_run {
        remove_dir_all(&rubbish).map_err(ImageError::io("remove", &rubbish))?;
    }
    Ok(freed)
}

/// Bytes on disk beneath a path. What has several names counts once for each.
fn size(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    let below = if metadata.is_dir() {
        read_dir(path).into_iter().flatten().flatten().map(|entry| size(&entry.path())).sum()
    } else {
        0
    };
    metadata.blocks() * 512 + below
}
