//! The second disk: the project as it would be installed, the agent, and the script that installs it in the machine.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::host;
use crate::{deb, install};

/// Installs the package, in the machine.
const PROVISION: &str = include_str!("provision.sh");

/// What goes into the machine.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Options {
    /// Boot the machine without the project in it.
    #[arg(long)]
    bare: bool,
    #[command(flatten)]
    profile: install::Profile,
}

/// A built disk; its folder is removed by the driver, which outlives it.
#[derive(Debug)]
pub(super) struct Stage {
    dir: PathBuf,
    disk: PathBuf,
    bare: bool,
}

impl Options {
    /// The project, optimised.
    pub(super) fn optimised(binaries: Option<PathBuf>) -> Self {
        Options { bare: false, profile: install::Profile::optimised(binaries) }
    }
}

impl Stage {
    pub(super) fn disk(&self) -> &Path {
        &self.disk
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The command that installs the project in the machine.
    pub(super) fn provision(&self) -> Option<&'static str> {
        (!self.bare).then_some("sh /mnt/host/provision.sh")
    }
}

/// Compiles the project and makes the disk. `tests` are packages whose test binaries come along, as `tests/NAME`.
pub(super) fn build(options: &Options, tests: &[String]) -> anyhow::Result<Stage> {
    let cache = super::cache()?;
    sweep(&cache)?;
    let dir = cache.join(format!("stage-{}", std::process::id()));
    let files = dir.join("files");
    fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
    if !options.bare {
        for package in deb::build(&files, &options.profile, deb::Compression::None)? {
            // one name, whatever the version: `shipote.deb` of `shipote_0.1.0-1_amd64.deb`
            let name = package.file_name().context("a package without a name")?.to_string_lossy().into_owned();
            let name = name.split('_').next().unwrap_or(&name).to_owned();
            fs::rename(&package, files.join(format!("{name}.deb")))
                .with_context(|| format!("rename {}", package.display()))?;
        }
    }
    if !tests.is_empty() {
        install::tests(&files.join("tests"), tests)?;
    }
    // the link, not its target: a build for the machine may have replaced the file that we run from
    let own = std::path::PathBuf::from("/proc/self/exe");
    fs::copy(&own, files.join("xtask")).with_context(|| format!("copy {}", own.display()))?;
    fs::write(files.join("provision.sh"), PROVISION)?;
    if options.profile.is_debug() {
        // for scenarios that measure
        fs::write(files.join("debug"), "")?;
    }
    let disk = dir.join("host.img");
    let mke2fs = host::find("mke2fs").context("find mke2fs")?;
    let bytes = size(&files)? * 5 / 4 + 32 * 1024 * 1024;
    File::create(&disk).and_then(|file| file.set_len(bytes)).with_context(|| format!("create {}", disk.display()))?;
    let mut command = Command::new(mke2fs);
    command.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-L",
        "host",
        "-m",
        "0",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-d",
    ]);
    host::run(command.arg(&files).arg(&disk))?;
    fs::remove_dir_all(&files)?;
    Ok(Stage { dir, disk, bare: options.bare })
}

/// Removes what a killed xtask left.
fn sweep(cache: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.strip_prefix("stage-") else { continue };
        if !Path::new("/proc").join(pid).exists() && !super::driver::uses(&entry.path()) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Bytes in all files below `dir`.
fn size(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() + 4096 };
    }
    Ok(sum)
}
