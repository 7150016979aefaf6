//! `cargo xtask image`: what machines are started with.
//!
//! A folder with `vmlinux` (uncompressed), `initramfs.cpio` (the agent as `/init`, a static busybox, the kernel modules
//! that a machine needs), `vhost-device-vsock` (for hosts whose kernel has no vhost-vsock), `virtiofsd` (for folders of
//! the host) and `image.json`, which says what it was made of: Debian 13's cloud kernel and busybox and programs of
//! crates.io, or what a folder has ([`ingredients`]).
//!
//! Invariant: a folder of the cache is named after the hash of all that went into it and appears by one rename; `current`
//! points to the newest. Nothing is installed on the host.

mod agent;
mod devices;
mod ingredients;
mod initramfs;
mod kernel;
mod modules;
mod packages;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use ingredients::Ingredients;
use sha2::{Digest, Sha256};

use crate::vm::repository;

pub(crate) use initramfs::with_init_only;

/// The programs in an image.
pub(crate) const PROGRAMS: [&str; 2] = [devices::VSOCK.name, devices::VOLUMES.name];

/// Part of the key: to be raised when the code here makes something else of the same ingredients.
const LAYOUT: u32 = 2;

/// Arguments of `cargo xtask image`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Look for newer packages even if the cache has some.
    #[arg(long)]
    refresh: bool,
    /// Copy the finished image to this folder as well.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Make it of `vmlinuz`, `modules`, `busybox`, `vhost-device-vsock` and `virtiofsd` in this folder, or what links of
    /// these names lead to: nothing is downloaded, and nothing kept in the cache.
    #[arg(long, value_name = "DIR", requires = "out", conflicts_with = "refresh")]
    from: Option<PathBuf>,
}

/// Runs `cargo xtask image`: the image's folder goes to standard output.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if let (Some(from), Some(out)) = (&args.from, &args.out) {
        let ingredients = Ingredients::in_folder(from)?;
        fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
        ingredients.assemble(&agent::read()?, out)?;
        println!("{}", out.display());
        return Ok(ExitCode::SUCCESS);
    }
    let image = ensure(args.refresh)?;
    if let Some(out) = &args.out {
        copy(&image, out)?;
    }
    println!("{}", image.display());
    Ok(ExitCode::SUCCESS)
}

/// Copies a finished image, for those who may read `to`: nothing in it is secret.
pub(crate) fn copy(image: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let data = ["vmlinux", "initramfs.cpio", "image.json"].map(|name| (name, 0o644));
    for (name, mode) in data.into_iter().chain(PROGRAMS.map(|name| (name, 0o755))) {
        let target = to.join(name);
        fs::copy(image.join(name), &target)
            .and_then(|_| fs::set_permissions(&target, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("copy {name} to {}", to.display()))?;
    }
    Ok(())
}

/// The image's folder, from the cache or built now.
pub(crate) fn ensure(refresh: bool) -> anyhow::Result<PathBuf> {
    let cache = cache()?;
    let lock = fs::File::create(cache.join("lock")).context("create the lock of the cache")?;
    // Two builds at once would do the work twice: the second waits and then finds what the first made.
    lock.lock().context("lock the cache")?;
    let packages = packages::ensure(&cache, refresh)?;
    let program = agent::read()?;
    let programs = [devices::VSOCK.ensure(&cache)?, devices::VOLUMES.ensure(&cache)?];
    let versions = [devices::VSOCK.version, devices::VOLUMES.version];
    let key = key(&[&LAYOUT.to_le_bytes(), packages.name().as_bytes(), versions.join(" ").as_bytes(), &program]);
    let image = cache.join(format!("image-{key}"));
    if !image.exists() {
        let work = cache.join("building");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        let unpacked = packages.unpack(&work.join("packages"))?;
        let names = [packages.kernel(), packages.busybox(), versions[0], versions[1]].map(str::to_owned);
        Ingredients { unpacked, programs, names }.assemble(&program, &work)?;
        fs::remove_dir_all(work.join("packages"))?;
        fs::rename(&work, &image).context("put the image into the cache")?;
    }
    point(&cache.join("current"), &image)?;
    Ok(image)
}

/// The newest image in the cache, if one was ever built.
pub(crate) fn newest() -> Option<PathBuf> {
    let image = cache().ok()?.join("current");
    image.join("image.json").exists().then_some(image)
}

/// Lays out the smallest root that can do something, in an empty folder: busybox under all its names.
pub(crate) fn busybox_into(root: &Path) -> anyhow::Result<()> {
    let unpacked = tempfile::tempdir().context("make a folder for packages")?;
    let busybox = packages::ensure(&cache()?, false)?.unpack_busybox(unpacked.path())?;
    fs::create_dir(root.join("bin"))?;
    fs::copy(&busybox, root.join("bin/busybox")).context("copy busybox")?;
    for applet in initramfs::applets(&busybox)? {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).context("link busybox")?;
    }
    Ok(())
}

/// `$SHIPOTE_CACHE/machine`, else `.cache/machine` in the source tree.
fn cache() -> anyhow::Result<PathBuf> {
    let base = match std::env::var_os("SHIPOTE_CACHE") {
        Some(dir) => std::path::absolute(dir)?,
        None => repository()?.join(".cache"),
    };
    let dir = base.join("machine");
    fs::create_dir_all(&dir).with_context(|| format!("create the cache {}", dir.display()))?;
    Ok(dir)
}

fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Makes `link` point to `target`, in one step.
fn point(link: &Path, target: &Path) -> anyhow::Result<()> {
    let name = target.file_name().context("an image without a name")?;
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(name, &new).with_context(|| format!("link {}", new.display()))?;
    fs::rename(&new, link).with_context(|| format!("replace {}", link.display()))
}
