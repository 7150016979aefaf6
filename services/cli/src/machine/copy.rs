//! A file into or out of a machine.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use shipote_agent_protocol::transfer::{PIECE_MAX, Piece, Transfer};
use shipote_agent_protocol::{AgentResponse, ports, read_message, write_message};
use tokio::io::AsyncRead;
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
            let stream = open(&machines, &machine, ports::FILES).await?;
            upload(stream, &file, &path).await.with_context(|| format!("copy {from} to {to}"))
        }
        (End::There { machine, path }, End::Here(file)) => {
            let stream = open(&machines, &machine, ports::FILES).await?;
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
    write_message(&mut stream, &Transfer::Write { path: path.to_owned(), mode }).await?;
    accepted(&mut stream).await?;
    let shown = bar(metadata.len());
    let (mut answers, mut to) = stream.split();
    let sending = async {
        let mut piece = Piece::default();
        loop {
            piece.fill(&mut source).with_context(|| format!("read {}", file.display()))?;
            piece.send(&mut to, PIECE_MAX).await.context("send to the machine")?;
            shown.inc(piece.bytes().len() as u64);
            if piece.bytes().is_empty() {
                return anyhow::Ok(());
            }
        }
    };
    let answer = accepted(&mut answers);
    tokio::pin!(answer);
    // A refusal comes before all has been sent.
    tokio::select! {
        early = &mut answer => early,
        sent = sending => match sent {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

/// The guest's yes, or its reason.
async fn accepted(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<()> {
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
    write_message(&mut stream, &Transfer::Read { path: path.to_owned() }).await?;
    accepted(&mut stream).await?;
    let (shown, mut piece) = (bar(0), Piece::default());
    loop {
        piece.receive(&mut stream).await.context("the machine went away")?;
        if piece.bytes().is_empty() {
            break;
        }
        temporary.write_all(piece.bytes()).with_context(|| format!("write {}", target.display()))?;
        shown.inc(piece.bytes().len() as u64);
    }
    accepted(&mut stream).await?;
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    temporary.persist(&target).with_context(|| format!("replace {}", target.display()))?;
    Ok(())
}

/// Progress on a terminal, of a file of so many bytes or (0) of one whose size is not known; it goes when it is dropped.
fn bar(bytes: u64) -> ProgressBar {
    // indicatif draws on terminals only.
    if bytes > 0 {
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        let style = ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}");
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
    }
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
