//! Components on their way to the registry: from files, folders and OCI registries, with their signatures.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode, Stdio};

use anyhow::Context as _;
use rustix::fs::{MemfdFlags, memfd_create};
use shipote_bus::Service;
use shipote_bus::plugins::AddOptions;

use super::change::done;
use super::manager;

/// The component as a descriptor. Text is turned into the binary form by the registry's own program, so that this one
/// needs no parser for it.
pub(super) fn component(path: &Path) -> anyhow::Result<OwnedFd> {
    let open = || format!("add plugin {}", path.display());
    let file = File::open(path).with_context(open)?;
    anyhow::ensure!(file.metadata().with_context(open)?.is_file(), "{}: not a file; give a component", open());
    if path.extension().is_none_or(|ending| ending != "wat") {
        return Ok(file.into());
    }
    let binary = memfd_create("component", MemfdFlags::CLOEXEC).with_context(open)?;
    let mut binary = File::from(binary);
    let status = Process::new(registry()?)
        .arg("wat")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(binary.try_clone().with_context(open)?)
        .status()
        .with_context(|| format!("{}: start shipote-plugins", open()))?;
    anyhow::ensure!(status.success(), "{}: not WebAssembly text, see above", open());
    binary.seek(SeekFrom::Start(0)).with_context(open)?;
    Ok(binary.into())
}

pub(super) fn stem(file: &Path) -> Option<String> {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned())
}

/// The last part of a repository's name, under which a policy may be found.
pub(super) fn reference_stem(reference: &str) -> Option<String> {
    let last = reference.rsplit('/').next()?;
    last.split(['@', ':']).next().map(str::to_owned)
}

/// Adds every component of a folder, by name; one that is refused does not keep the others out.
pub(super) async fn add_folder(folder: &Path, common: &AddOptions, json: bool) -> anyhow::Result<ExitCode> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).with_context(|| format!("add plugins of {shown}"))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "wasm" || ending == "wat"))
        .collect();
    anyhow::ensure!(!files.is_empty(), "add plugins of {shown}: no file ends in .wasm or .wat; name another folder");
    files.sort();
    let manager = manager().await?;
    let mut code = ExitCode::SUCCESS;
    for file in files {
        let added = async {
            let component = component(&file)?;
            let options = AddOptions { stem: stem(&file), signature: signature_of(&file, None)?, ..common.clone() };
            done("added", manager.add(component.as_fd().into(), &options).await, json)
        };
        if let Err(error) = added.await {
            eprintln!("shipote: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// A component from an OCI registry, fetched by the registry's own program with this one's rights: the service has no
/// network and no credentials.
pub(super) fn fetched(reference: &str, auth: Option<&Path>) -> anyhow::Result<OwnedFd> {
    let component = File::from(memfd_create("component", MemfdFlags::CLOEXEC).context("make a memfd")?);
    let mut command = Process::new(registry()?);
    command.arg("fetch");
    if let Some(auth) = auth {
        command.arg("--auth").arg(auth);
    }
    let status = command
        .arg(reference)
        .stdin(Stdio::null())
        .stdout(component.try_clone().context("hand over the memfd")?)
        .status()
        .with_context(|| format!("add plugin {reference}: start shipote-plugins"))?;
    anyhow::ensure!(status.success(), "add plugin {reference}: not fetched, see above");
    Ok(component.into())
}

/// The text of a component's signature: of the file that is named, else of the one beside it, if there is one.
pub(super) fn signature_of(component: &Path, named: Option<PathBuf>) -> anyhow::Result<Option<String>> {
    let beside = component.with_file_name(format!("{}.minisig", component.file_name().unwrap_or_default().display()));
    match named {
        None if !beside.exists() => Ok(None),
        named => {
            let path = named.unwrap_or(beside);
            let text = std::fs::read_to_string(&path);
            text.map(Some)
                .with_context(|| format!("add plugin {}: read signature {}", component.display(), path.display()))
        }
    }
}

/// The registry's program: beside this one, else wherever the system finds it.
fn registry() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the path of this program")?;
    let name = Service::Plugins.binary();
    let beside = own.with_file_name(name);
    Ok(if beside.is_file() { beside } else { PathBuf::from(name) })
}

pub(super) fn check(files: &[PathBuf], policy: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let program = registry()?;
    let mut command = Process::new(&program);
    command.arg("check");
    if json {
        command.arg("--json");
    }
    if let Some(folder) = policy {
        command.arg("--policy").arg(folder);
    }
    // A name that looks like an option is still a name.
    command.args(files.iter().map(|file| if file.is_absolute() { file.clone() } else { Path::new(".").join(file) }));
    let status = command.status().with_context(|| {
        format!("check plugins: start {}; install it, or put it beside this program", program.display())
    })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
