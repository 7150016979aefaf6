//! A file into or out of a machine.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use shipote_agent_protocol::{AgentRequest, AgentResponse, FILE_WRITE_MAX, ports, read_message, write_message};
use tokio::net::UnixStream;

use super::{machines, open};

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    There { machine: String, path: String },
}

/// `NAME:/PATH` is in a machine, everything else is a file here.
fn parse(text: &str) -> End {
    match text.split_once(":/") {
        Some((machine, path)) if !machine.is_empty() && !machine.contains('/') => {
            End::There { machine: machine.to_owned(), path: format!("/{path}") }
        }
        _ => End::Here(text.into()),
    }
}

pub(super) async fn copy(from: &str, to: &str) -> anyhow::Result<()> {
    let machines = machines().await?;
    match (parse(from), parse(to)) {
        (End::Here(file), End::There { machine, path }) => {
            let stream = open(&machines, &machine, ports::AGENT_CONTROL).await?;
            upload(stream, &file, &path).await.with_context(|| format!("copy {from} to {to}"))
        }
        (End::There { machine, path }, End::Here(file)) => {
            let stream = open(&machines, &machine, ports::AGENT_CONTROL).await?;
            download(stream, &path, &file).await.with_context(|| format!("copy {from} to {to}"))
        }
        _ => bail!("copy {from} to {to}: one of the two is NAME:/PATH, the other a file here"),
    }
}

/// Puts a file of ours into the guest, with its mode.
pub(super) async fn upload(mut stream: UnixStream, file: &Path, path: &str) -> anyhow::Result<()> {
    let mut source = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    let metadata = source.metadata()?;
    if !metadata.is_file() {
        bail!("{} is not a regular file; pack a folder first (tar)", file.display());
    }
    // A folder as the target is not known here: the agent refuses to replace one.
    let mode = Some(metadata.permissions().mode() & 0o7777);
    let begin = AgentRequest::FileWriteBegin { path: path.to_owned(), mode, total_size: metadata.len() };
    accepted(&mut stream, &begin).await?;
    let mut left = metadata.len();
    loop {
        let mut data = Vec::new();
        (&mut source).take(FILE_WRITE_MAX as u64).read_to_end(&mut data)?;
        left = left.saturating_sub(data.len() as u64);
        let done = left == 0 || data.is_empty();
        accepted(&mut stream, &AgentRequest::FileWriteChunk { data, done }).await?;
        if done {
            return Ok(());
        }
    }
}

async fn accepted(stream: &mut UnixStream, request: &AgentRequest) -> anyhow::Result<()> {
    write_message(stream, request).await?;
    match read_message(stream).await? {
        Some(AgentResponse::Ok { .. }) => Ok(()),
        Some(AgentResponse::Error { message, .. }) => bail!("{message}"),
        _ => bail!("the machine went away"),
    }
}

async fn download(mut stream: UnixStream, path: &str, file: &Path) -> anyhow::Result<()> {
    let target = match (file.is_dir(), Path::new(path).file_name()) {
        (true, Some(name)) => file.join(name),
        _ => file.to_owned(),
    };
    // Beside its place, so that a copy that fails leaves what was there.
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary =
        tempfile::NamedTempFile::new_in(folder).with_context(|| format!("create a file in {}", folder.display()))?;
    write_message(&mut stream, &AgentRequest::FileRead { path: path.to_owned() }).await?;
    loop {
        match read_message(&mut stream).await? {
            Some(AgentResponse::DataChunk { data, done }) => {
                temporary.write_all(&data).with_context(|| format!("write {}", target.display()))?;
                if done {
                    break;
                }
            }
            Some(AgentResponse::Error { message, .. }) => bail!("{message}"),
            _ => bail!("the machine went away"),
        }
    }
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    temporary.persist(&target).with_context(|| format!("replace {}", target.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{End, parse};

    #[test]
    fn ends() {
        let there = |machine: &str, path: &str| End::There { machine: machine.into(), path: path.into() };
        for (text, end) in [
            ("web:/etc/passwd", there("web", "/etc/passwd")),
            ("web:/", there("web", "/")),
            ("notes.txt", End::Here("notes.txt".into())),
            ("./a:/b", End::Here("./a:/b".into())),
            (":/b", End::Here(":/b".into())),
            ("web:relative", End::Here("web:relative".into())),
        ] {
            assert_eq!(parse(text), end, "{text}");
        }
    }
}
