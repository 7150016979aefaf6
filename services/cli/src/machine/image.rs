//! An image or a root from this host into a machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use shipote_agent_protocol::{AgentRequest, AgentResponse, ports, read_message, write_message};
use shipote_bus::machines::MachinesProxy;

use super::copy::upload;
use super::open;

/// Where the archive lies in the guest while it is taken in.
const ARCHIVE: &str = "/storage/import.tar";

/// What the command runs in, if not in the agent's own root. It is kept in the machine's memory, which must be large
/// enough: some three times its size.
#[derive(Debug, Args)]
pub(super) struct Source {
    /// Archive of an image as `docker save` writes it, OCI layout (folder or tar), or the name of one in a registry
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "rootfs")]
    image: Option<PathBuf>,
    /// Folder (or tar) to run in as the root
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
}

/// What Docker Hub consists of.
const DOCKER: [&str; 3] = ["registry-1.docker.io:443", "auth.docker.io:443", "production.cloudflare.docker.com:443"];

impl Source {
    /// The image's name where it is one in a registry.
    fn name(&self) -> Option<&str> {
        let image = self.image.as_deref()?;
        if image.exists() { None } else { image.to_str() }
    }

    /// What a machine must reach to pull it.
    pub(super) fn egress(&self) -> Vec<String> {
        let Some(name) = self.name() else { return vec![] };
        match name.trim_start_matches("docker://").split_once('/') {
            // That a name leads to this host itself has to be meant.
            Some((host, _)) if host.starts_with("localhost:") => {
                vec![host.to_owned(), host.replacen("localhost", "127.0.0.1", 1)]
            }
            Some((host, _)) if host.contains(':') => vec![host.to_owned()],
            Some((host, _)) if host.contains('.') && host != "docker.io" => vec![format!("{host}:443")],
            _ => DOCKER.map(str::to_owned).to_vec(),
        }
    }

    /// Brings it into a machine; gives the name by which it can be run.
    pub(super) async fn import(&self, machines: &MachinesProxy<'_>, name: &str) -> anyhow::Result<Option<String>> {
        if let Some(image) = self.name() {
            let mut stream = open(machines, name, ports::AGENT_CONTROL).await?;
            crate::image::pull(&mut stream, image, None, None, false).await?;
            return Ok(Some(image.to_owned()));
        }
        let Some(file) = self.image.as_ref().or(self.rootfs.as_ref()) else { return Ok(None) };
        let packed = if file.is_dir() { Some(pack(file)?) } else { None };
        let archive = packed.as_ref().map_or(file.as_path(), tempfile::NamedTempFile::path);
        let kind = if self.image.is_some() { kind(archive) } else { "rootfs" };
        let stream = open(machines, name, ports::FILES).await?;
        upload(stream, archive, ARCHIVE)
            .await
            .with_context(|| format!("bring {} into machine {name}", file.display()))?;
        let image = format!("{kind}:{ARCHIVE}");
        let mut stream = open(machines, name, ports::AGENT_CONTROL).await?;
        let pull = AgentRequest::Pull { image: image.clone(), oci_platform: None, auth: None };
        write_message(&mut stream, &pull).await?;
        loop {
            match read_message(&mut stream).await? {
                Some(AgentResponse::Progress { .. }) => {}
                Some(AgentResponse::Ok { .. }) => break,
                Some(AgentResponse::Error { message, .. }) => bail!("import {}: {message}", file.display()),
                _ => bail!("import {}: the machine went away", file.display()),
            }
        }
        // The layers are unpacked; the archive only takes memory.
        let empty = AgentRequest::FileWrite { path: ARCHIVE.to_owned(), data: vec![], mode: None };
        write_message(&mut stream, &empty).await?;
        read_message::<AgentResponse, _>(&mut stream).await?;
        Ok(Some(image))
    }
}

/// What an archive of an image is: an OCI layout, unless it is what `docker save` writes too.
fn kind(archive: &Path) -> &'static str {
    let names = || -> std::io::Result<Vec<PathBuf>> {
        let mut archive = tar::Archive::new(std::fs::File::open(archive)?);
        archive.entries_with_seek()?.map(|entry| Ok(entry?.path()?.into_owned())).collect()
    };
    // What cannot be read is the agent's to refuse, with its reason.
    let names = names().unwrap_or_default();
    let has = |name: &str| names.iter().any(|path| path.strip_prefix(".").unwrap_or(path) == Path::new(name));
    if has("oci-layout") && !has("manifest.json") { "oci-archive" } else { "docker-archive" }
}

/// A folder as a tar, owners, modes and links as they are.
fn pack(folder: &Path) -> anyhow::Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new().context("make a temporary file")?;
    let mut archive = tar::Builder::new(std::io::BufWriter::new(file.as_file()));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", folder).with_context(|| format!("pack {}", folder.display()))?;
    archive.into_inner().and_then(|mut file| std::io::Write::flush(&mut file)).context("write a temporary file")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oci_layout_is_told_from_what_docker_saves() {
        let archive = |names: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::write(folder.path().join(name), "{}").unwrap();
            }
            pack(folder.path()).unwrap()
        };
        for (names, expected) in [
            (&["oci-layout", "index.json"][..], "oci-archive"),
            (&["manifest.json"], "docker-archive"),
            (&["oci-layout", "index.json", "manifest.json"], "docker-archive"),
            (&[], "docker-archive"),
        ] {
            assert_eq!(kind(archive(names).path()), expected, "{names:?}");
        }
        assert_eq!(kind(Path::new("/dev/null")), "docker-archive");
    }
}
