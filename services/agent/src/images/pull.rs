//! An image from a registry: manifest, config and layers, each verified by its digest before it counts.

use std::fs::{File, create_dir_all, remove_file};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use shipote_agent_protocol::{AgentResponse, ImageInfo, RegistryAuth};
use tokio::sync::mpsc;

use super::archive::{Config, LAYERS_MAX, hex};
use super::reference::{Reference, check_digest};
use super::registry::{ADDRESS, Registry};
use super::retry::{Failure, Retry};
use super::{Image, ImageError, Pin, Store, layer};

/// What a registry is asked for: an index of platforms or the manifest of one, in both dialects.
const INDEX: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Between two words on progress.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// What is to be pulled.
pub(super) struct Wanted<'a> {
    /// As it was asked for.
    pub(super) name: &'a str,
    pub(super) platform: Platform,
    pub(super) auth: Option<RegistryAuth>,
}

/// `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Platform {
    /// The machine's own where none is named.
    pub(super) fn parse(image: &str, text: Option<&str>) -> Result<Self, ImageError> {
        let own = || Self {
            os: "linux".to_owned(),
            architecture: std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
            variant: None,
        };
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(own()) };
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self { os, architecture, variant })
            }
            _ => Err(ImageError::invalid(image, format!("platform {text} is not os/architecture[/variant]"))),
        }
    }

    /// Whether what is offered will do.
    fn takes(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant == offered.variant)
    }

    /// Whether an image is of this platform.
    pub(super) fn is_of(&self, info: &ImageInfo) -> bool {
        self.os == info.os && self.architecture == info.architecture
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// What the blob is shows in its first bytes: its media type is not relied on.
#[derive(Deserialize)]
pub(super) struct Descriptor {
    pub(super) digest: String,
    size: u64,
    platform: Option<Platform>,
}

/// An index has `manifests`, a manifest `config` and `layers`.
#[derive(Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

impl Document {
    /// Of an index, the manifest for a platform; or the only one, where that says nothing of its platform.
    pub(super) fn choose(&self, image: &str, wanted: &Platform) -> Result<&Descriptor, ImageError> {
        if let [only @ Descriptor { platform: None, .. }] = &self.manifests[..] {
            return Ok(only);
        }
        let offered = self.manifests.iter().filter_map(|d| Some((d, d.platform.as_ref()?)));
        if let Some((descriptor, _)) = offered.clone().find(|(_, platform)| wanted.takes(platform)) {
            return Ok(descriptor);
        }
        let all: Vec<String> = offered.map(|(_, platform)| platform.to_string()).collect();
        let problem = if all.is_empty() {
            format!("it has {} images, and none says for which platform; save one at a time", self.manifests.len())
        } else {
            format!("there is none for {wanted}; there is {}", all.join(", "))
        };
        Err(ImageError::invalid(image, problem))
    }
}

/// How far it is.
struct Progress<'a> {
    told: &'a mpsc::Sender<AgentResponse>,
    /// Bytes to be fetched and then unpacked: each counts twice.
    total: u64,
    done: u64,
    percent: u8,
    last: Instant,
}

impl Progress<'_> {
    /// Says where it is, unless it has just been said.
    fn tell(&mut self, message: impl FnOnce() -> String, layer: &str, now: bool) {
        if !now && self.last.elapsed() < TELL_EVERY {
            return;
        }
        self.last = Instant::now();
        let percent = (self.done * 100).checked_div(self.total).map_or(100, |p| p.min(100));
        self.percent = self.percent.max(u8::try_from(percent).unwrap_or(100));
        // Nobody listens any more where the connection has ended; the pull goes on.
        let _ = self.told.try_send(AgentResponse::Progress {
            message: message(),
            percent: Some(self.percent),
            layer: Some(layer.to_owned()),
        });
    }
}

/// Pulls an image into the store.
pub(super) fn pull(
    store: &Store,
    wanted: Wanted<'_>,
    told: &mpsc::Sender<AgentResponse>,
) -> Result<ImageInfo, ImageError> {
    let name = wanted.name;
    let invalid = |problem: String| ImageError::invalid(name, problem);
    let reference = Reference::parse(name)?;
    let version = reference.version.clone();
    let mut registry = Registry::new(name, reference, wanted.auth, ADDRESS)?;
    let accept = [INDEX, MANIFEST].concat().join(", ");
    let mut document = parse(name, &verified(name, &version, registry.manifest(&version, &accept)?)?)?;
    if !document.manifests.is_empty() {
        let digest = document.choose(name, &wanted.platform)?.digest.clone();
        check_digest(&digest).map_err(|problem| invalid(problem.to_owned()))?;
        document = parse(name, &verified(name, &digest, registry.manifest(&digest, &MANIFEST.join(", "))?)?)?;
    }
    let Document { config: Some(config), layers, .. } = document else {
        return Err(invalid("its manifest names no config".to_owned()));
    };
    check_digest(&config.digest).map_err(|problem| invalid(problem.to_owned()))?;
    let bytes = verified(name, &config.digest, registry.small(&config.digest)?)?;
    let parsed: Config = serde_json::from_slice(&bytes).map_err(|error| invalid(format!("config: {error}")))?;
    let ids = parsed.rootfs.diff_ids.clone();
    if ids.len() != layers.len() || ids.is_empty() || ids.len() > LAYERS_MAX {
        return Err(invalid(format!("{} layers and {} digests of them", layers.len(), ids.len())));
    }
    let size = layers.iter().map(|layer| layer.size).sum();
    let mut progress = Progress { told, total: 2 * size, done: 0, percent: 0, last: Instant::now() };
    let mut pin = Pin::new(store);
    let mut unpacked = Vec::new();
    for (n, (blob, id)) in layers.iter().zip(&ids).enumerate() {
        let hex = check_digest(id).map_err(|problem| invalid(problem.to_owned()))?;
        check_digest(&blob.digest).map_err(|problem| invalid(problem.to_owned()))?;
        let which = format!("layer {} of {}", n + 1, ids.len());
        let begun = progress.done;
        progress.tell(|| which.clone(), &blob.digest, true);
        // Pinned before it is looked for: garbage collection then leaves it where it is.
        pin.add(hex);
        if !store.layer(hex).is_dir() {
            let file = fetch(store, name, &mut registry, blob, &which, &mut progress)?;
            let reader = Counting { file, progress: &mut progress, which: &which, digest: &blob.digest };
            layer::add(store, name, reader, Some(hex))?;
            remove_blob(store, &blob.digest);
        }
        progress.done = begun + 2 * blob.size;
        progress.tell(|| which.clone(), &blob.digest, true);
        unpacked.push(hex.to_owned());
    }
    let blobs = layers.into_iter().map(|layer| layer.digest).collect();
    let info = parsed.into_info(name, &config.digest, size, blobs);
    let names = vec![name.to_owned(), info.digest.clone()];
    store.add(Image { names, info: info.clone(), layers: unpacked })?;
    Ok(info)
}

pub(super) fn parse(name: &str, bytes: &[u8]) -> Result<Document, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::invalid(name, format!("manifest: {error}")))
}

/// The bytes, if they have the digest; a tag proves nothing and passes.
pub(super) fn verified(name: &str, version: &str, bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    if let Ok(expected) = check_digest(version) {
        let digest = hex(&Sha256::digest(&bytes));
        if digest != expected {
            let problem = format!("what should have the digest {version} has sha256:{digest}");
            return Err(ImageError::invalid(name, problem));
        }
    }
    Ok(bytes)
}

fn remove_blob(store: &Store, digest: &str) {
    // One that isn't there is as good as removed.
    let _ = remove_file(store.blob(digest));
}

/// Brings a blob into a file, going on where an earlier attempt, of this machine's life or another, left off.
fn fetch(
    store: &Store,
    name: &str,
    registry: &mut Registry,
    blob: &Descriptor,
    which: &str,
    progress: &mut Progress<'_>,
) -> Result<File, ImageError> {
    let path = store.blob(&blob.digest);
    let io = |operation| ImageError::io(operation, &path);
    create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(io("create the folder of"))?;
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io("create"))?;
    let mut hash = Sha256::new();
    let mut have = std::io::copy(&mut file, &mut HashWriter(&mut hash)).map_err(io("read"))?;
    let before = progress.done;
    let mut retry = Retry::network();
    while have < blob.size {
        let outcome = registry.blob(&blob.digest, have).and_then(|(body, partial)| {
            if have > 0 && !partial {
                // It sends the whole again.
                file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(local)?;
                (hash, have) = (Sha256::new(), 0);
            }
            let mut body = body.into_reader();
            let mut piece = vec![0; 64 * 1024];
            loop {
                let n = body.read(&mut piece).map_err(|error| Failure::transient(error.to_string()))?;
                if n == 0 {
                    return if have < blob.size { Err(Failure::transient("cut off".to_owned())) } else { Ok(()) };
                }
                have += n as u64;
                if have > blob.size {
                    return Err(Failure::permanent(format!("it is longer than the {} bytes it should be", blob.size)));
                }
                hash.update(&piece[..n]);
                file.write_all(&piece[..n]).map_err(local)?;
                retry.progress();
                progress.done = before + have;
                progress.tell(|| format!("{which}: {} of {} KiB", have / 1024, blob.size / 1024), &blob.digest, false);
            }
        });
        if let Err(failure) = outcome {
            let what = format!("{} of {name}", blob.digest);
            if let Err(reason) = retry.wait(failure) {
                if have > blob.size || no_room(&reason) {
                    remove_blob(store, &blob.digest);
                }
                return Err(ImageError::Registry { what, reason });
            }
        }
    }
    let digest = format!("sha256:{}", hex(&hash.finalize()));
    if digest != blob.digest {
        remove_blob(store, &blob.digest);
        return Err(ImageError::invalid(name, format!("the blob {} has the digest {digest}", blob.digest)));
    }
    file.seek(SeekFrom::Start(0)).map_err(io("read"))?;
    Ok(file)
}

/// What the machine's own disk refuses passes no more than a full disk does.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
fn local(error: std::io::Error) -> Failure {
    Failure::permanent(format!("write to the machine's storage: {error}"))
}

fn no_room(reason: &str) -> bool {
    reason.starts_with("write to the machine's storage")
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A blob being unpacked.
struct Counting<'a, 'b> {
    file: File,
    progress: &'a mut Progress<'b>,
    which: &'a str,
    digest: &'a str,
}

impl std::io::Read for Counting<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.progress.done += n as u64;
        self.progress.tell(|| format!("{}: unpacking", self.which), self.digest, false);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let parse = |text| Platform::parse("a", Some(text)).unwrap();
        assert_eq!(parse("linux/arm64/v8").to_string(), "linux/arm64/v8");
        assert!(parse("linux/arm64").takes(&parse("linux/arm64/v8")));
        assert!(!parse("linux/arm/v7").takes(&parse("linux/arm/v6")));
        assert!(!parse("linux/amd64").takes(&parse("linux/arm64")));
        assert_eq!(Platform::parse("a", None).unwrap().os, "linux");
        for bad in ["linux", "linux/", "/amd64", "a/b/c/d"] {
            assert!(Platform::parse("a", Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_has_a_digest_is_held_to_it() {
        let digest = format!("sha256:{}", hex(&Sha256::digest(b"right")));
        assert!(verified("a", &digest, b"right".to_vec()).is_ok());
        assert!(verified("a", &digest, b"wrong".to_vec()).is_err());
        assert!(verified("a", "latest", b"anything".to_vec()).is_ok());
    }
}
