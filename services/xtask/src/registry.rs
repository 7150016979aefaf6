//! A registry on loopback, for the demo and measurements: Debian's `docker-registry`, with one image; the demo's is made
//! of Debian's busybox.
//!
//! The image is laid into the registry's storage as the registry itself would lay it (distribution's filesystem driver),
//! so that nothing has to speak to it but the machine that pulls.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::image;
use crate::vm::host;

/// Debian's package and program.
pub(crate) const PROGRAM: &str = "docker-registry";

/// A running registry; dropped, it is ended, and its folder goes.
pub(crate) struct Registry {
    child: Child,
    _folder: tempfile::TempDir,
    /// `HOST:PORT`
    pub(crate) address: String,
    /// Name of its image.
    pub(crate) image: String,
}

/// An image that a registry is to have, as its tag `1`.
pub(crate) struct Content<'a> {
    /// Name of its repository.
    pub(crate) repository: &'a str,
    /// Folders that become its layers, in order; what they are packed into lies beside them.
    pub(crate) layers: &'a [PathBuf],
    /// `config` of its configuration.
    pub(crate) settings: &'a Value,
}

/// Starts one with the demo's image, if this host can.
pub(crate) fn start() -> anyhow::Result<Option<Registry>> {
    let work = tempfile::tempdir().context("make a folder for an image")?;
    let layers = busybox_layers(work.path()).context("make an image for the registry")?;
    let settings = json!({"Cmd": ["/bin/sh"], "User": "worker", "Env": ["PATH=/bin", "IMAGE=debian/busybox"]});
    start_with(&Content { repository: "debian/busybox", layers: &layers, settings: &settings })
}

/// Starts one with an image, if this host can.
pub(crate) fn start_with(content: &Content<'_>) -> anyhow::Result<Option<Registry>> {
    let Some(program) = host::find(PROGRAM) else { return Ok(None) };
    let folder = tempfile::tempdir().context("make a folder for the registry")?;
    let storage = folder.path().join("storage");
    lay_image(&storage, content).context("lay an image into the registry")?;
    let port = free_port()?;
    let address = format!("127.0.0.1:{port}");
    let config = folder.path().join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: info, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {:?}}}}}\nhttp: {{addr: {address:?}}}\n",
        storage.display().to_string()
    );
    fs::write(&config, text).context("write the registry's configuration")?;
    let mut child = Command::new(program)
        .arg("serve")
        .arg(&config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start docker-registry")?;
    let stderr = child.stderr.take().context("read from docker-registry")?;
    let registry = Registry { child, _folder: folder, image: format!("{address}/{}:1", content.repository), address };
    let mut lines = BufReader::new(stderr).lines();
    let listening = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
    if !listening {
        bail!("docker-registry ended before it listened");
    }
    // What it says later is not waited for, but must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Ok(Some(registry))
}

impl Drop for Registry {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The two layers of the demo's image.
fn busybox_layers(work: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let root = work.join("root");
    fs::create_dir(&root)?;
    image::busybox_into(&root)?;
    let second = work.join("second");
    fs::create_dir_all(second.join("etc"))?;
    fs::write(second.join("etc/motd"), "an image of Debian's busybox, in two layers\n")?;
    fs::write(second.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nworker:x:1000:1000::/:/bin/sh\n")?;
    Ok(vec![root, second])
}

/// Packs an image and lays it into the storage.
fn lay_image(storage: &Path, content: &Content<'_>) -> anyhow::Result<()> {
    let link = |place: &str, hex: &str| link(storage, content.repository, place, hex);
    let (mut ids, mut layers) = (Vec::new(), Vec::new());
    for folder in content.layers {
        let (id, blob) = pack(folder)?;
        ids.push(format!("sha256:{id}"));
        let hex = put(storage, &blob)?;
        let media = "application/vnd.oci.image.layer.v1.tar+gzip";
        layers.push(json!({"mediaType": media, "digest": format!("sha256:{hex}"), "size": blob.len()}));
        link(&format!("_layers/sha256/{hex}"), &hex)?;
    }
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": content.settings,
        "rootfs": {"type": "layers", "diff_ids": ids},
    }))?;
    let hex = put(storage, &config)?;
    link(&format!("_layers/sha256/{hex}"), &hex)?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{hex}"),
            "size": config.len(),
        },
        "layers": layers,
    }))?;
    let hex = put(storage, &manifest)?;
    for place in [
        format!("_manifests/revisions/sha256/{hex}"),
        "_manifests/tags/1/current".to_owned(),
        format!("_manifests/tags/1/index/sha256/{hex}"),
    ] {
        link(&place, &hex)?;
    }
    Ok(())
}

/// A folder as a layer: the digest of the tar, and the tar compressed.
fn pack(folder: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let tar = folder.with_extension("tar");
    let mut command = Command::new("tar");
    command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-cf"]).arg(&tar).arg("-C").arg(folder);
    host::run(command.arg(".")).context("pack a layer")?;
    let id = digest(&fs::read(&tar)?);
    host::run(Command::new("gzip").arg("-nf").arg(&tar)).context("compress a layer")?;
    Ok((id, fs::read(folder.with_extension("tar.gz"))?))
}

/// A blob into the storage; its digest.
fn put(storage: &Path, bytes: &[u8]) -> anyhow::Result<String> {
    let hex = digest(bytes);
    let folder = storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(&hex);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("data"), bytes)?;
    Ok(hex)
}

fn link(storage: &Path, repository: &str, place: &str, hex: &str) -> anyhow::Result<()> {
    let folder = storage.join("docker/registry/v2/repositories").join(repository).join(place);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("link"), format!("sha256:{hex}")).context("link a blob")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    #[test]
    fn the_registry_serves_the_image() {
        let Some(registry) = super::start().unwrap() else {
            eprintln!("skipped: docker-registry is not installed");
            return;
        };
        let mut stream = std::net::TcpStream::connect(&registry.address).unwrap();
        let accept = "application/vnd.oci.image.manifest.v1+json";
        write!(stream, "GET /v2/debian/busybox/manifests/1 HTTP/1.0\r\naccept: {accept}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 OK") && answer.contains("layers"), "{answer}");
    }
}
