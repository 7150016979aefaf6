//! Debian's packages: the kernel and a static busybox, downloaded by apt with a configuration of its own, so that
//! signatures are checked and the host's apt is left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::vm::host;

const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Tools that are needed, and the Debian packages that have them.
const TOOLS: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("cc", "gcc"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];
/// Depends on the newest kernel of its kind.
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";

/// Downloaded packages.
#[derive(Debug)]
pub(super) struct Packages {
    dir: PathBuf,
    kernel: String,
    busybox: String,
}

/// The files of the packages that matter here.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) vmlinuz: PathBuf,
    /// Folder of the kernel's modules.
    pub(super) modules: PathBuf,
    pub(super) busybox: PathBuf,
}

/// The packages, from the cache or from the mirror.
pub(super) fn ensure(cache: &Path, refresh: bool) -> anyhow::Result<Packages> {
    let keyring = (!Path::new(KEYRING).exists()).then_some("debian-archive-keyring");
    host::require("image", TOOLS, keyring)?;
    let dir = cache.join("packages");
    if refresh || find(&dir).is_none() {
        let work = cache.join("downloading");
        let _ = fs::remove_dir_all(&work);
        download(&work)?;
        let _ = fs::remove_dir_all(&dir);
        fs::rename(work.join("packages"), &dir).context("put the packages into the cache")?;
        fs::remove_dir_all(&work)?;
    }
    find(&dir).with_context(|| format!("{}: packages are missing; run with --refresh", dir.display()))
}

fn find(dir: &Path) -> Option<Packages> {
    let names: Vec<String> =
        fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let named = |start: &str| names.iter().find(|name| name.starts_with(start)).cloned();
    Some(Packages { dir: dir.to_owned(), kernel: named("linux-image-")?, busybox: named("busybox-static_")? })
}

fn download(work: &Path) -> anyhow::Result<()> {
    for dir in ["state/lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(work.join(dir))?;
    }
    fs::write(work.join("status"), "")?;
    let mirror = host::mirror();
    let sources = format!("deb [signed-by={KEYRING} arch=amd64] {mirror} {SUITE} main\n");
    fs::write(work.join("sources.list"), sources)?;
    eprintln!("image: kernel and busybox of Debian 13 from {mirror}");
    host::run(apt(work, "apt-get").args(["-q", "update"]))?;
    let output = apt(work, "apt-cache").args(["depends", KERNEL]).output().context("run apt-cache")?;
    let listing = String::from_utf8_lossy(&output.stdout);
    let kernel = newest_kernel(&listing).with_context(|| format!("{KERNEL} names no kernel: {listing}"))?;
    host::run(apt(work, "apt-get").current_dir(work.join("packages")).args(["-q", "download", BUSYBOX, kernel]))
}

/// The package that `apt-cache depends` names.
fn newest_kernel(listing: &str) -> Option<&str> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
}

fn apt(work: &Path, tool: &str) -> Command {
    let mut command = Command::new(tool);
    let settings = [
        ("Dir::State", work.join("state")),
        ("Dir::State::status", work.join("status")),
        ("Dir::Cache", work.join("cache")),
        ("Dir::Etc::sourcelist", work.join("sources.list")),
        ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
    ];
    for (name, path) in settings {
        command.arg("-o").arg(format!("{name}={}", path.display()));
    }
    // Run by root, apt would change to a user that cannot write here.
    command.args(["-o", "APT::Sandbox::User=", "-o", "Acquire::Languages=none", "-o", "APT::Architecture=amd64"]);
    command.args(["-o", "APT::Architectures=amd64"]);
    command
}

impl Packages {
    /// What decides the contents: the file names carry the versions.
    pub(super) fn name(&self) -> String {
        format!("{} {}", self.kernel, self.busybox)
    }

    pub(super) fn kernel(&self) -> &str {
        &self.kernel
    }

    pub(super) fn busybox(&self) -> &str {
        &self.busybox
    }

    /// Unpacks busybox below `to`; gives the program's path.
    pub(super) fn unpack_busybox(&self, to: &Path) -> anyhow::Result<PathBuf> {
        host::run(Command::new("dpkg-deb").arg("-x").arg(self.dir.join(&self.busybox)).arg(to))?;
        Ok(to.join("usr/bin/busybox"))
    }

    /// Unpacks both below `to`.
    pub(super) fn unpack(&self, to: &Path) -> anyhow::Result<Unpacked> {
        host::run(Command::new("dpkg-deb").arg("-x").arg(self.dir.join(&self.kernel)).arg(to))?;
        let busybox = self.unpack_busybox(to)?;
        let vmlinuz = only(&to.join("boot"), "vmlinuz-")?;
        let modules = only(&to.join("usr/lib/modules"), "")?;
        Ok(Unpacked { vmlinuz, modules, busybox })
    }
}

/// The one entry of a folder whose name begins so.
fn only(dir: &Path, start: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(path), true) => Ok(path),
        _ => bail!("{}: not one entry {start}*", dir.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::newest_kernel;

    #[test]
    fn the_kernel_is_what_the_metapackage_depends_on() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.1+deb13-cloud-amd64\n  Suggests: x\n";
        assert_eq!(newest_kernel(listing), Some("linux-image-6.12.1+deb13-cloud-amd64"));
        assert_eq!(newest_kernel("linux-image-cloud-amd64\n"), None);
    }
}
