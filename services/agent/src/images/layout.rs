//! An OCI image layout (OCI image spec, image-layout.md) in a tar: what `skopeo copy` calls `oci-archive:`, and `docker
//! save` and `buildah` write too. Everything in it is found by its digest, and held to it.

use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use shipote_agent_protocol::{AgentResponse, ImageInfo};
use tokio::sync::mpsc;

use super::archive::{Config, hex, take_layers};
use super::pieces::Pieces;
use super::pull::{Document, Platform, parse, verified};
use super::reference::check_digest;
use super::{Image, ImageError, Pin, Store};

/// How often an index may lead to another one.
const DEPTH_MAX: usize = 4;

/// Takes the image of a layout that is for the platform into the store.
pub(super) fn oci_archive(
    store: &Store,
    name: &str,
    path: &Path,
    platform: &Platform,
    progress: &mpsc::Sender<AgentResponse>,
) -> Result<ImageInfo, ImageError> {
    let pieces = Pieces::index(path)?;
    let invalid = |problem: String| ImageError::invalid(name, problem);
    // It says of a folder that it is a layout at all.
    pieces.find(name, "oci-layout")?;
    let mut document: Document = parse(name, &pieces.small(name, "index.json")?)?;
    for _ in 0..DEPTH_MAX {
        if document.manifests.is_empty() {
            break;
        }
        let digest = document.choose(name, platform)?.digest.clone();
        document = parse(name, &json(&pieces, name, &digest)?)?;
    }
    let Document { config: Some(config), layers, .. } = document else {
        return Err(invalid("its manifest names no config".to_owned()));
    };
    let bytes = json(&pieces, name, &config.digest)?;
    let parsed: Config = serde_json::from_slice(&bytes).map_err(|error| invalid(format!("config: {error}")))?;
    let blobs: Vec<String> = layers.into_iter().map(|layer| layer.digest).collect();
    let files = blobs.iter().map(|blob| checked(&pieces, name, blob)).collect::<Result<Vec<_>, _>>()?;
    let mut pin = Pin::new(store);
    let (layers, size) = take_layers(&mut pin, name, &pieces, &files, &parsed.rootfs.diff_ids.clone(), progress)?;
    let info = parsed.into_info(name, &config.digest, size, blobs);
    store.add(Image { names: vec![name.to_owned(), info.digest.clone()], info: info.clone(), layers })?;
    Ok(info)
}

/// Where a blob lies.
fn file(name: &str, digest: &str) -> Result<String, ImageError> {
    let hex = check_digest(digest).map_err(|problem| ImageError::invalid(name, problem))?;
    Ok(format!("blobs/sha256/{hex}"))
}

/// A small blob.
fn json(pieces: &Pieces<'_>, name: &str, digest: &str) -> Result<Vec<u8>, ImageError> {
    verified(name, digest, pieces.small(name, &file(name, digest)?)?)
}

/// Where a blob lies that has its digest.
fn checked(pieces: &Pieces<'_>, name: &str, digest: &str) -> Result<String, ImageError> {
    let file = file(name, digest)?;
    let mut blob = pieces.open(name, &file)?;
    let (mut hash, mut piece) = (Sha256::new(), vec![0; 64 * 1024]);
    loop {
        match blob.read(&mut piece).map_err(ImageError::io("read", Path::new(&file)))? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    let found = format!("sha256:{}", hex(&hash.finalize()));
    if found == digest {
        Ok(file)
    } else {
        Err(ImageError::invalid(name, format!("the blob {digest} has the digest {found}")))
    }
}
