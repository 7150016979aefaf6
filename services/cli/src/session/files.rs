//! Files into a session and out of it. They go by descriptor between the file and a command in the session (`cat`, `tar`):
//! not a byte goes through us or over the bus, but for folders, which are packed and unpacked here.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::pipe::{PipeFlags, pipe_with};
use shipote_bus::workspaces::{ManagerProxy, RunOptions};

use super::find;
use crate::output;
use crate::run::read_completion;

/// Writes standard input to the path, whose folders are made.
const WRITE: &str = "mkdir -p -- \"$(dirname -- \"$1\")\" && exec cat > \"$1\"";
/// Unpacks standard input below the path.
const UNPACK: &str = "mkdir -p -- \"$1\" && exec tar -xf - -C \"$1\"";

/// One end of a copy.
#[derive(Debug, PartialEq)]
enum Place {
    Here(PathBuf),
    There(String, String),
}

impl Place {
    fn of(text: &str) -> Self {
        match text.split_once(':') {
            // a path with a colon is written ./a:b
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                Self::There(name.to_owned(), path.to_owned())
            }
            _ => Self::Here(PathBuf::from(text)),
        }
    }
}

/// `session cp`.
pub(super) async fn copy(from: &str, to: &str, recursive: bool) -> anyhow::Result<()> {
    let manager = output::workspaces().await?;
    match (Place::of(from), Place::of(to)) {
        (Place::Here(file), Place::There(name, path)) => {
            find(&manager, &name).await?;
            into(&manager, &file, &name, &path, recursive).await
        }
        (Place::There(name, path), Place::Here(file)) => {
            find(&manager, &name).await?;
            out(&manager, &name, &path, &file, recursive).await
        }
        _ => bail!("session cp: one of the two is NAME:PATH, the other a file here"),
    }
}

async fn into(manager: &ManagerProxy<'_>, from: &Path, name: &str, to: &str, recursive: bool) -> anyhow::Result<()> {
    let what = format!("copy {} to {name}:{to}", from.display());
    let metadata = std::fs::metadata(from).with_context(|| what.clone())?;
    let null = File::options().write(true).open("/dev/null").context("open /dev/null")?;
    if !metadata.is_dir() {
        let file = File::open(from).with_context(|| what.clone())?;
        return command(manager, name, &["sh", "-c", WRITE, "sh", to], file.as_fd(), null.as_fd(), &what).await;
    }
    if !recursive {
        bail!("{what}: it is a folder; copy it with -r");
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    let folder = from.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(File::from(write));
        archive.follow_symlinks(false);
        archive.append_dir_all(".", &folder)?;
        archive.finish()
    });
    let unpacked = command(manager, name, &["sh", "-c", UNPACK, "sh", to], read.as_fd(), null.as_fd(), &what).await;
    drop(read);
    let packed = packing.await?;
    // who reads no more has said why
    unpacked?;
    packed.with_context(|| what)
}

async fn out(manager: &ManagerProxy<'_>, name: &str, from: &str, to: &Path, recursive: bool) -> anyhow::Result<()> {
    let what = format!("copy {name}:{from} to {}", to.display());
    let null = File::open("/dev/null").context("open /dev/null")?;
    if !recursive {
        // beside its name until it is whole
        let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = tempfile::NamedTempFile::new_in(folder).with_context(|| what.clone())?;
        command(manager, name, &["cat", "--", from], null.as_fd(), file.as_file().as_fd(), &what).await?;
        file.persist(to).with_context(|| what)?;
        return Ok(());
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    let folder = to.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder)?;
        let mut archive = tar::Archive::new(File::from(read));
        // nothing in it leads out of the folder: the library refuses `..` and links that it made itself
        archive.set_preserve_permissions(false);
        archive.unpack(&folder)
    });
    let words = ["tar", "-C", from, "-cf", "-", "."];
    let packed = hand_over(manager, name, &words, null.as_fd(), write, &what).await;
    let unpacked = unpacking.await?;
    packed?;
    unpacked.with_context(|| what)
}

/// A command whose output is a pipe that nobody else holds open.
async fn hand_over(
    manager: &ManagerProxy<'_>,
    name: &str,
    words: &[&str],
    stdin: BorrowedFd<'_>,
    stdout: OwnedFd,
    what: &str,
) -> anyhow::Result<()> {
    let started = start(manager, name, words, stdin, stdout.as_fd()).await;
    drop(stdout);
    ended(started?, what).await
}

/// Runs a command in the session to its end, which must be good.
pub(super) async fn command(
    manager: &ManagerProxy<'_>,
    name: &str,
    words: &[&str],
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    what: &str,
) -> anyhow::Result<()> {
    ended(start(manager, name, words, stdin, stdout).await?, what).await
}

async fn start(
    manager: &ManagerProxy<'_>,
    name: &str,
    words: &[&str],
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
) -> anyhow::Result<OwnedFd> {
    let stderr = std::io::stderr();
    let stdio = vec![stdin.into(), stdout.into(), stderr.as_fd().into()];
    let started = manager.run(name, words, &RunOptions::default(), stdio).await;
    let (_, _, descriptors) = started.map_err(|error| output::refusal(&error))?;
    descriptors.into_iter().next().map(OwnedFd::from).context("the service sent no completion")
}

async fn ended(completion: OwnedFd, what: &str) -> anyhow::Result<()> {
    let completion = read_completion(completion).await?;
    if completion.exit_status != 0 {
        bail!("{what}: the command in the session ended with status {}, see above", completion.exit_status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let there = |name: &str, path: &str| Place::There(name.to_owned(), path.to_owned());
        let here = |path: &str| Place::Here(PathBuf::from(path));
        for (text, want) in [
            ("box:/work/a", there("box", "/work/a")),
            ("box:a:b", there("box", "a:b")),
            ("a", here("a")),
            ("./a:b", here("./a:b")),
            ("/a:b", here("/a:b")),
            (":a", here(":a")),
        ] {
            assert_eq!(Place::of(text), want, "{text:?}");
        }
    }
}
