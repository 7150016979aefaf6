//! Archives of images, one layer after the other into the store: what `docker save` writes, and a tar of a root. An OCI
//! layout is taken apart in [`super::layout`].

use std::fs::File;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use shipote_agent_protocol::{AgentResponse, ImageInfo};
use tokio::sync::mpsc;

use super::layout::oci_archive;
use super::pieces::Pieces;
use super::pull::Platform;
use super::reference::check_digest;
use super::{Image, ImageError, Pin, Store, layer};

/// Layers that an image may have: overlayfs takes no more in one mount.
pub(super) const LAYERS_MAX: usize = 128;

/// `manifest.json` of `docker save`: one entry an image.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image's config, as far as it matters here (OCI image spec, config.md).
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    created: Option<String>,
    architecture: String,
    os: String,
    config: Option<Settings>,
    pub(super) rootfs: Rootfs,
}

impl Config {
    /// What is told of an image.
    pub(super) fn into_info(self, reference: &str, digest: &str, size: u64, layers: Vec<String>) -> ImageInfo {
        let settings = self.config.unwrap_or_default();
        let not_empty = |text: Option<String>| text.filter(|text| !text.is_empty());
        ImageInfo {
            reference: reference.to_owned(),
            digest: digest.to_owned(),
            size,
            created: self.created,
            architecture: self.architecture,
            os: self.os,
            layer_count: layers.len(),
            layers,
            entrypoint: settings.entrypoint.unwrap_or_default(),
            cmd: settings.cmd.unwrap_or_default(),
            env: settings.env.unwrap_or_default(),
            workdir: not_empty(settings.working_dir),
            user: not_empty(settings.user),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Settings {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Rootfs {
    pub(super) diff_ids: Vec<String>,
}

/// Takes what `name` names into the store.
pub(super) fn import(
    store: &Store,
    name: &str,
    platform: &Platform,
    progress: &mpsc::Sender<AgentResponse>,
) -> Result<ImageInfo, ImageError> {
    if let Some(path) = name.strip_prefix("docker-archive:") {
        docker_archive(store, name, Path::new(path), progress)
    } else if let Some(path) = name.strip_prefix("oci-archive:") {
        oci_archive(store, name, Path::new(path), platform, progress)
    } else if let Some(path) = name.strip_prefix("rootfs:") {
        rootfs(store, name, Path::new(path))
    } else {
        Err(ImageError::invalid(name, "none of docker-archive:/FILE, oci-archive:/FILE and rootfs:/FILE"))
    }
}

/// Whether a name is one of an archive, not of an image in a registry.
pub(super) fn is_archive(name: &str) -> bool {
    ["docker-archive:", "oci-archive:", "rootfs:"].iter().any(|kind| name.starts_with(kind))
}

fn rootfs(store: &Store, name: &str, path: &Path) -> Result<ImageInfo, ImageError> {
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    let size = file.metadata().map_err(ImageError::io("stat", path))?.len();
    let digest = layer::add(store, name, file, None)?;
    let info = ImageInfo {
        reference: name.to_owned(),
        digest: format!("sha256:{digest}"),
        size,
        created: None,
        architecture: std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        os: "linux".to_owned(),
        layer_count: 1,
        layers: vec![format!("sha256:{digest}")],
        entrypoint: vec![],
        cmd: vec!["/bin/sh".to_owned()],
        env: vec![],
        workdir: None,
        user: None,
    };
    store.add(Image { names: vec![name.to_owned()], info: info.clone(), layers: vec![digest] })?;
    Ok(info)
}

fn docker_archive(
    store: &Store,
    name: &str,
    path: &Path,
    progress: &mpsc::Sender<AgentResponse>,
) -> Result<ImageInfo, ImageError> {
    let pieces = Pieces::index(path)?;
    let invalid = |problem: String| ImageError::invalid(name, problem);
    let json = |what: &str, bytes: &[u8]| invalid(format!("{what}: {}", String::from_utf8_lossy(bytes)));
    let bytes = pieces.small(name, "manifest.json")?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&bytes).map_err(|error| json(&error.to_string(), b"manifest.json"))?;
    let [entry] = <[Entry; 1]>::try_from(entries)
        .map_err(|entries| invalid(format!("the archive has {} images; save one at a time", entries.len())))?;
    let bytes = pieces.small(name, &entry.config)?;
    let digest = hex(&Sha256::digest(&bytes));
    // Docker names the config after its digest, in one way or another.
    if !entry.config.contains(&digest) {
        return Err(invalid(format!("the config {} has the digest sha256:{digest}", entry.config)));
    }
    let config: Config = serde_json::from_slice(&bytes).map_err(|error| json(&error.to_string(), b"config"))?;
    let ids = config.rootfs.diff_ids.clone();
    let mut pin = Pin::new(store);
    let (layers, size) = take_layers(&mut pin, name, &pieces, &entry.layers, &ids, progress)?;
    let tags = entry.repo_tags.unwrap_or_default();
    let reference = tags.first().map_or(name, String::as_str);
    let info = config.into_info(reference, &format!("sha256:{digest}"), size, ids);
    let mut names = vec![name.to_owned(), info.digest.clone()];
    names.extend(tags);
    store.add(Image { names, info: info.clone(), layers })?;
    Ok(info)
}

/// Unpacks the layers that lie in these files of an archive and have these digests, as the image's config names them;
/// gives the names of their folders, and their size in the archive.
pub(super) fn take_layers(
    pin: &mut Pin<'_>,
    name: &str,
    pieces: &Pieces<'_>,
    files: &[String],
    ids: &[String],
    progress: &mpsc::Sender<AgentResponse>,
) -> Result<(Vec<String>, u64), ImageError> {
    let invalid = |problem: String| ImageError::invalid(name, problem);
    if ids.len() != files.len() || ids.is_empty() || ids.len() > LAYERS_MAX {
        return Err(invalid(format!("{} layers and {} digests of them", files.len(), ids.len())));
    }
    let (mut layers, mut size) = (Vec::new(), 0);
    for (n, (file, id)) in files.iter().zip(ids).enumerate() {
        let percent = u8::try_from(n * 100 / ids.len()).unwrap_or(100);
        let message = format!("layer {} of {}", n + 1, ids.len());
        // Nobody listens any more where the connection has ended; the import goes on.
        let _ = progress.blocking_send(AgentResponse::Progress {
            message,
            percent: Some(percent),
            layer: Some(id.clone()),
        });
        // It becomes the name of a folder.
        let expected = check_digest(id).map_err(|problem| invalid(format!("layer {id}: {problem}")))?;
        pin.add(expected);
        size += pieces.size(name, file)?;
        layers.push(layer::add(pin.store, name, pieces.open(name, file)?, Some(expected))?);
    }
    Ok((layers, size))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
