//! The machine's image: a Debian 13 root made by `mmdebstrap`, as an ext4 file system, and its kernel.
//!
//! An image is a folder in the cache named after the hash of everything that decides its contents; it appears there by
//! one rename, so that an interrupted build leaves nothing that looks like an image.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

use super::host;

const SUITE: &str = "trixie";

/// What is installed beyond dpkg and apt. No initramfs is needed: the cloud kernel has NVMe, ext4 and virtio-serial built in.
const PACKAGES: &[&str] = &[
    "bubblewrap",
    "ca-certificates",
    "crun",
    "curl",
    "dbus-broker",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libcap2-bin",
    "libpam-systemd",
    "linux-image-cloud-amd64",
    "login",
    "nftables",
    "polkitd",
    "procps",
    "qemu-system-x86",
    "socat",
    "strace",
    "systemd",
    "systemd-container",
    "systemd-sysv",
    "udev",
    "uidmap",
    "util-linux",
];

/// Documentation and translations are left out; `dpkg` never unpacks them.
const EXCLUDED: &[&str] = &["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];

/// Finishes the root: runs on the host, with the root as its only argument.
const CUSTOMISE: &str = include_str!("customise.sh");

/// Size of the disk in bytes; what is not used takes no space on the host.
const SIZE: u64 = 3 << 30;

/// The root's file system, as a host has it: with a journal, without which a loss of power would tell of ext4 alone.
const FILE_SYSTEM: &[&str] = &["-q", "-F", "-t", "ext4", "-L", "root", "-m", "0", "-O", "has_journal"];

/// A built image.
#[derive(Debug)]
pub(super) struct Image {
    dir: PathBuf,
}

impl Image {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.dir.join("root.img")
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }
}

/// The image, from the cache or built now (about two minutes).
pub(super) fn ensure(refresh: bool) -> anyhow::Result<Image> {
    let cache = super::cache()?;
    let dir = cache.join(format!("image-{}", key()));
    let image = Image { dir };
    if !refresh && image.disk().exists() {
        return Ok(image);
    }
    // two builds at once would do the work twice: the second waits and then finds the image
    let lock_path = cache.join("build.lock");
    let lock = File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("lock the cache")?;
    if !refresh && image.disk().exists() {
        return Ok(image);
    }
    let work = cache.join("building");
    remove_tree(&work)?;
    fs::create_dir_all(&work)?;
    let built = build(&work);
    if let Err(error) = built {
        remove_tree(&work)?;
        return Err(error.context("build the machine's image"));
    }
    if image.dir.exists() {
        fs::remove_dir_all(&image.dir).context("remove the older image")?;
    }
    fs::rename(&work, &image.dir).context("put the image into the cache")?;
    Ok(image)
}

/// Hash of all that decides the image's contents, apart from the mirror's state of the day.
fn key() -> String {
    let mut hash = Sha256::new();
    let (packages, excluded, file_system) = (PACKAGES.join(","), EXCLUDED.join(","), FILE_SYSTEM.join(" "));
    for part in [SUITE, &packages, &excluded, CUSTOMISE, &SIZE.to_string(), &file_system] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn build(work: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    let mirror = host::mirror();
    eprintln!("vm: build a Debian 13 image from {mirror} (about two minutes, once)");
    let root = work.join("root");
    let script = work.join("customise.sh");
    fs::write(&script, CUSTOMISE)?;
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap
        .args(["--variant=minbase", "--components=main", "--architectures=amd64"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg("--keyring=/usr/share/keyrings/debian-archive-keyring.gpg")
        .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\""])
        .args(host::apt_options().iter().map(|option| format!("--aptopt={option}")))
        .args(EXCLUDED.iter().map(|glob| format!("--dpkgopt=path-exclude={glob}")))
        .arg(format!("--customize-hook=sh {} \"$1\"", script.display()))
        .arg(SUITE)
        .arg(&root)
        .arg(&mirror);
    host::run(&mut bootstrap)?;
    eprintln!("vm: make the file system ({:.0?})", start.elapsed());
    let kernel = newest_kernel(&root.join("boot"))?;
    copy_out(&kernel, &work.join("vmlinuz"))?;
    let disk = work.join("root.img");
    File::create(&disk).and_then(|file| file.set_len(SIZE)).with_context(|| format!("create {}", disk.display()))?;
    host::run(as_owner_of_root("mke2fs")?.args(FILE_SYSTEM).arg("-d").arg(&root).arg(&disk))?;
    remove_tree(&root)?;
    eprintln!("vm: image built in {:.0?}", start.elapsed());
    Ok(())
}

/// Without root, mmdebstrap works in a user namespace of its own making, and the files belong to subordinate users:
/// whoever reads or removes them must stand in such a namespace too.
fn as_owner_of_root(tool: &str) -> anyhow::Result<Command> {
    let path = host::find(tool).with_context(|| format!("find {tool}"))?;
    if nix::unistd::geteuid().is_root() {
        return Ok(Command::new(path));
    }
    let mut command = Command::new("mmdebstrap");
    command.arg("--unshare-helper").arg(path);
    Ok(command)
}

fn copy_out(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

fn remove_tree(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        host::run(as_owner_of_root("rm")?.args(["-rf", "--"]).arg(dir))?;
    }
    Ok(())
}

fn newest_kernel(boot: &Path) -> anyhow::Result<PathBuf> {
    let mut kernels: Vec<PathBuf> = fs::read_dir(boot)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .collect();
    kernels.sort();
    let Some(kernel) = kernels.pop() else { bail!("find the kernel: none in {}", boot.display()) };
    Ok(kernel)
}
