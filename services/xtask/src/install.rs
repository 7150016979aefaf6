//! `cargo xtask install --destdir DIR`: the files of an installation, laid out as a distribution's package has them.
//!
//! The table below is the one place that says what goes where: packages and the test machine are made from it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail};
use clap::Parser;

use crate::test::AS_TESTED;
use crate::vm::{host, repository};

/// Packages of the workspace whose binaries are installed in `usr/bin`.
pub(crate) const PACKAGES: &[&str] =
    &["shipote", "shipote-machines", "shipote-plugins", "shipote-proxy", "shipote-runner", "shipote-workspaces"];

/// Their binaries: one of the same name each, and one more of the command line's.
fn binaries() -> impl Iterator<Item = &'static str> {
    PACKAGES.iter().copied().chain(["shipote-commands"])
}

/// Folder in the source tree, ending of the file names, folder in the installation.
const DATA: &[(&str, &str, &str)] = &[
    ("services/workspaces", ".service", "usr/lib/systemd/system"),
    ("services/workspaces", ".socket", "usr/lib/systemd/system"),
    ("services/machines", ".service", "usr/lib/systemd/system"),
    ("services/proxy", ".service", "usr/lib/systemd/system"),
    ("services/proxy", ".timer", "usr/lib/systemd/system"),
    ("services/plugins", ".service", "usr/lib/systemd/system"),
    ("services/shared/audit", ".catalog", "usr/lib/systemd/catalog"),
    ("policies/sysusers.d", ".conf", "usr/lib/sysusers.d"),
    ("policies/tmpfiles.d", ".conf", "usr/lib/tmpfiles.d"),
    ("policies/dbus", ".conf", "usr/share/dbus-1/system.d"),
    ("policies/dbus/system-services", ".service", "usr/share/dbus-1/system-services"),
    ("policies/polkit", ".policy", "usr/share/polkit-1/actions"),
    ("policies/polkit", ".rules", "usr/share/polkit-1/rules.d"),
    ("policies/landlock", ".toml", "usr/share/shipote/policies/landlock"),
    ("policies/plugins", ".json", "usr/share/shipote/policies/plugins"),
    ("wit/examples", ".wat", "usr/share/shipote/examples"),
];

/// Shell, file of its completions.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "usr/share/bash-completion/completions/shipote"),
    ("fish", "usr/share/fish/vendor_completions.d/shipote.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_shipote"),
];

/// Arguments of `cargo xtask install`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Folder that stands for `/`.
    #[arg(long, value_name = "DIR")]
    destdir: PathBuf,
    #[command(flatten)]
    profile: Profile,
}

/// Where the binaries are from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Profile {
    /// With optimisation, as packages ship it: profile `dist`, which takes long to compile.
    #[arg(long)]
    release: bool,
    /// Take optimised binaries of this folder instead of compiling any.
    #[arg(long, value_name = "DIR", conflicts_with = "release")]
    binaries: Option<PathBuf>,
}

impl Profile {
    /// Optimised binaries: those of a folder, or compiled now.
    pub(crate) fn optimised(binaries: Option<PathBuf>) -> Self {
        Profile { release: binaries.is_none(), binaries }
    }

    pub(crate) fn is_debug(&self) -> bool {
        !self.release && self.binaries.is_none()
    }
}

/// Runs `cargo xtask install`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    install(&args.destdir, &args.profile)?;
    Ok(ExitCode::SUCCESS)
}

/// Compiles the binaries and lays out the installation below `destdir`.
pub(crate) fn install(destdir: &Path, profile: &Profile) -> anyhow::Result<()> {
    let root = repository()?;
    let bin = destdir.join("usr/bin");
    for built in compile(profile)? {
        put(&built, &bin, 0o755)?;
    }
    generated(&bin.join("shipote"), destdir)?;
    for (from, ending, to) in DATA {
        let from = root.join(from);
        let Ok(entries) = fs::read_dir(&from) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("read {}", from.display()))?.path();
            if path.is_file() && path.to_string_lossy().ends_with(ending) {
                put(&path, &destdir.join(to), 0o644)?;
            }
        }
    }
    Ok(())
}

/// What the command line writes about itself: manual pages, and completions where each shell looks for them.
fn generated(shipote: &Path, destdir: &Path) -> anyhow::Result<()> {
    let manual = destdir.join("usr/share/man/man1");
    fs::create_dir_all(&manual).with_context(|| format!("create {}", manual.display()))?;
    host::run(Command::new(shipote).arg("man").arg(&manual))?;
    for (shell, file) in COMPLETIONS {
        let file = destdir.join(file);
        let folder = file.parent().context("completions lie in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let made = Command::new(shipote).args(["completions", shell]).output().context("run shipote completions")?;
        if !made.status.success() {
            bail!("shipote completions {shell} failed: {}", made.status);
        }
        fs::write(&file, made.stdout).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn put(file: &Path, dir: &Path, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let target = dir.join(file.file_name().context("install a file without a name")?);
    fs::copy(file, &target).with_context(|| format!("copy {} to {}", file.display(), target.display()))?;
    fs::set_permissions(&target, fs::Permissions::from_mode(mode))
        .with_context(|| format!("chmod {}", target.display()))
}

/// Compiles the services, or finds them where the profile says.
fn compile(profile: &Profile) -> anyhow::Result<Vec<PathBuf>> {
    if let Some(folder) = &profile.binaries {
        return Ok(binaries().map(|binary| folder.join(binary)).collect());
    }
    let mut words = vec!["build"];
    if profile.release {
        words.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
        words.extend(["--profile", "dist"]);
    } else {
        words.extend(AS_TESTED);
    }
    let mut found: Vec<PathBuf> = executables(&words)?.into_iter().map(|built| built.path).collect();
    found.retain(|path| binaries().any(|binary| path.file_name().is_some_and(|name| name == binary)));
    if found.len() != binaries().count() {
        bail!("compile the services: cargo built {} of {} binaries", found.len(), binaries().count());
    }
    Ok(found)
}

/// Compiles the tests of `packages` and puts their binaries into `dir`, each named after its crate or file of tests.
pub(crate) fn tests(dir: &Path, packages: &[String]) -> anyhow::Result<()> {
    let words = ["test", "--no-run", "--workspace", "--tests"];
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let built = executables(&words)?;
    for Executable { name, path, .. } in built.into_iter().filter(|built| packages.contains(&built.package)) {
        let target = dir.join(&name);
        // copied with its mode
        fs::copy(&path, &target).with_context(|| format!("copy {} to {}", path.display(), target.display()))?;
    }
    Ok(())
}

/// Something that cargo built.
#[derive(Debug)]
struct Executable {
    package: String,
    /// Of its target.
    name: String,
    path: PathBuf,
}

/// The name in a package's id: `path+file:///source/xtask#0.1.0`, or `path+file:///source/link#shipote-link@0.1.0` where
/// the folder is called otherwise.
fn package(id: &str) -> String {
    let (place, version) = id.rsplit_once('#').unwrap_or((id, ""));
    match version.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => place.rsplit('/').next().unwrap_or(place).to_owned(),
    }
}

/// Runs cargo, and asks it for the executables it made, with the names of their targets: the target folder may be anywhere.
fn executables(words: &[&str]) -> anyhow::Result<Vec<Executable>> {
    let mut child = crate::cargo::cargo()?
        .args(words)
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("run cargo")?;
    let output = child.stdout.take().context("read from cargo")?;
    let mut found = Vec::new();
    for line in BufReader::new(output).lines() {
        let message: serde_json::Value = serde_json::from_str(&line?).unwrap_or_default();
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            let package = package(message["package_id"].as_str().unwrap_or_default());
            found.push(Executable { package, name: name.to_owned(), path: PathBuf::from(path) });
        }
    }
    if !child.wait()?.success() {
        bail!("cargo {} failed; its output above says why", words.join(" "));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_known_by_its_id() {
        assert_eq!(package("path+file:///work/services/xtask#0.1.0"), "xtask");
        assert_eq!(package("path+file:///work/services/shared/link#shipote-link@0.1.0"), "shipote-link");
    }
}
