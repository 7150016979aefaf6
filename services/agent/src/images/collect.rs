//! Garbage collection: what no image and no overlay needs is removed.
//!
//! Under the store's lock things are only renamed into a folder of rubbish; the removing, which takes its time, comes
//! after. So a pull or a run that happens meanwhile either has its layers held already or finds them gone and says so.

use std::collections::HashSet;
use std::fs::{create_dir_all, read_dir, remove_dir_all, rename};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{ImageError, Store};

/// Removes layers, blobs and overlays of the past that nobody needs; with `all` also every image that nothing runs on.
/// Gives the bytes that are (or with `dry_run` would be) free.
pub(crate) fn collect(store: &Store, dry_run: bool, all: bool) -> Result<u64, ImageError> {
    let rubbish = store.root.join("rubbish");
    create_dir_all(&rubbish).map_err(ImageError::io("create", &rubbish))?;
    let mut freed = 0;
    {
        let mut state = store.lock();
        let held: HashSet<String> = state.held.keys().cloned().chain(super::overlay::layers_of_all(store)).collect();
        let keep: Vec<_> = state
            .images
            .iter()
            .filter(|image| !all || image.layers.iter().all(|layer| held.contains(layer)))
            .cloned()
            .collect();
        let mut needed = held;
        needed.extend(keep.iter().flat_map(|image| image.layers.iter().cloned()));
        if !dry_run && keep.len() < state.images.len() {
            state.images = keep;
            store.save(&state.images)?;
        }
        for (folder, is_layer) in [("layers", true), ("blobs", false)] {
            // Blobs belong to pulls; one that runs has its own there.
            if !is_layer && state.pulls > 0 {
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
    }
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
