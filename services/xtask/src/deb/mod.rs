//! `cargo xtask deb`: the installation as two Debian packages.
//!
//! `shipote` has the files that `cargo xtask install` lays out; `shipote-machine` what machines are started with, so that
//! a host without machines need not carry a kernel. `dpkg-shlibdeps` names the libraries, `dpkg-deb` packs. The test
//! machine installs these packages, so the scripts in them are tested with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use clap::Parser;

use crate::image;
use crate::install::{self, Profile};
use crate::vm::{host, repository};

/// Programs that packing needs, and the Debian packages that have them.
const TOOLS: &[(&str, &str)] = &[("dpkg-deb", "dpkg"), ("dpkg-shlibdeps", "dpkg-dev"), ("strip", "binutils")];

/// Where the machines' service looks for what machines are started with (`shipote_bus::paths::MACHINE_IMAGE_DIR`).
const MACHINE_IMAGE: &str = "usr/lib/shipote/machine";

/// What differs between the packages.
struct Package {
    name: &'static str,
    control: &'static str,
    /// The scripts that dpkg runs (deb-postinst(5) and its kin).
    scripts: &'static [(&'static str, &'static str)],
    /// What its copyright file says before the project's own licence.
    foreign: &'static str,
}

const SERVICES: Package = Package {
    name: "shipote",
    control: include_str!("control"),
    scripts: &[
        ("postinst", include_str!("postinst")),
        ("prerm", include_str!("prerm")),
        ("postrm", include_str!("postrm")),
    ],
    foreign: "",
};

const MACHINE: Package = Package {
    name: "shipote-machine",
    control: include_str!("machine/control"),
    scripts: &[],
    foreign: include_str!("machine/copyright"),
};

/// Arguments of `cargo xtask deb`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Folder to write the package to.
    #[arg(long, value_name = "DIR", default_value = "target/debian")]
    output: PathBuf,
    #[command(flatten)]
    profile: Profile,
}

/// How the files in a package are packed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Compression {
    /// What every dpkg reads.
    Xz,
    /// For a machine that lives for minutes.
    None,
}

/// Runs `cargo xtask deb`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for package in build(&args.output, &args.profile, Compression::Xz)? {
        println!("{}", package.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles, lays out and packs; returns the packages' paths in `output`, that of the services first.
pub(crate) fn build(output: &Path, profile: &Profile, compression: Compression) -> anyhow::Result<Vec<PathBuf>> {
    host::require("deb", TOOLS, None)?;
    fs::create_dir_all(output).with_context(|| format!("create {}", output.display()))?;
    let work = || tempfile::tempdir_in(output).with_context(|| format!("create a folder in {}", output.display()));

    let services = work()?;
    let root = services.path().join("root");
    install::install(&root, profile)?;
    let programs = fs::read_dir(root.join("usr/bin"))?.map(|program| Ok(program?.path()));
    let programs: Vec<PathBuf> = programs.collect::<anyhow::Result<_>>()?;
    if profile.is_debug() {
        // About half of what an emulated machine would hash and write, byte by byte.
        host::run(Command::new("strip").args(&programs))?;
    }
    let mut packed = vec![SERVICES.pack(services.path(), &programs, output, compression)?];

    if cfg!(target_arch = "x86_64") {
        let machine = work()?;
        let folder = machine.path().join("root").join(MACHINE_IMAGE);
        image::copy(&image::ensure(false)?, &folder)?;
        let programs = image::PROGRAMS.map(|name| folder.join(name));
        packed.push(MACHINE.pack(machine.path(), &programs, output, compression)?);
    } else {
        eprintln!("deb: no package {}: the guest image is made for x86-64 only", MACHINE.name);
    }
    Ok(packed)
}

impl Package {
    /// Packs `root` below `work`, whose `programs` are linked with libraries.
    fn pack(&self, work: &Path, programs: &[PathBuf], output: &Path, packed: Compression) -> anyhow::Result<PathBuf> {
        let root = work.join("root");
        self.licence(&root)?;
        let version = format!("{}-1", env!("CARGO_PKG_VERSION"));
        let architecture = printed(Command::new("dpkg").arg("--print-architecture"))?;
        let control = self
            .control
            .replace("@VERSION@", &version)
            .replace("@ARCHITECTURE@", &architecture)
            .replace("@SIZE@", &(size(&root)? / 1024).to_string())
            .replace("@LIBRARIES@", &libraries(work, programs)?);
        let debian = root.join("DEBIAN");
        fs::create_dir(&debian).with_context(|| format!("create {}", debian.display()))?;
        write(&debian.join("control"), &control, 0o644)?;
        for (name, text) in self.scripts {
            write(&debian.join(name), text, 0o755)?;
        }
        let package = output.join(format!("{}_{version}_{architecture}.deb", self.name));
        let packed = match packed {
            Compression::Xz => "-Zxz",
            Compression::None => "-Znone",
        };
        host::run(Command::new("dpkg-deb").args(["--root-owner-group", packed, "--build"]).arg(&root).arg(&package))?;
        Ok(package)
    }

    /// The licence where Debian's users look for it.
    fn licence(&self, root: &Path) -> anyhow::Result<()> {
        let folder = root.join("usr/share/doc").join(self.name);
        fs::create_dir_all(&folder)?;
        let from = repository()?;
        let mut text = self.foreign.to_owned();
        for name in ["LICENSE", "LICENSE-MIT", "LICENSE-APACHE"] {
            let file = from.join(name);
            text.push_str(&fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?);
            text.push('\n');
        }
        write(&folder.join("copyright"), &text, 0o644)
    }
}

/// The libraries that the programs are linked with, as a `Depends` field has them.
fn libraries(work: &Path, programs: &[PathBuf]) -> anyhow::Result<String> {
    // It wants to stand in a source package.
    fs::create_dir_all(work.join("debian"))?;
    fs::write(work.join("debian/control"), "Source: shipote\n\nPackage: shipote\nArchitecture: any\n")?;
    let mut command = Command::new("dpkg-shlibdeps");
    command.current_dir(work).arg("-O");
    for program in programs {
        command.arg("-e").arg(std::path::absolute(program)?);
    }
    let printed = printed(&mut command)?;
    let depends = printed.strip_prefix("shlibs:Depends=").context("dpkg-shlibdeps names the libraries")?;
    Ok(depends.trim().to_owned())
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("write {}", path.display()))
}

fn printed(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {name}"))?;
    if !output.status.success() {
        bail!("{name} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout).with_context(|| format!("read what {name} printed"))?.trim().to_owned())
}

/// Bytes in all files below `dir`.
fn size(dir: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}
