//! `shipote logs`: the kept output of a command.

mod frames;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use shipote_bus::workspaces::{ManagerProxy, WorkspacesError};

use crate::output;
use frames::{Ended, Frames};

/// How long a service that went away is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  id=$(shipote run --detach -- sh -c 'echo hello; sleep 5')\n  shipote logs -f $id\n\n\
    Output is kept where it was not handed to the caller: of detached commands, and of\nthe nodes of pipelines where nothing else takes it. \
    With --json each chunk has its stream\nand its offset in it, and `base64` instead of `data` where it is no UTF-8."
)]
pub(crate) struct LogsArgs {
    /// Command's id, or the last six characters or more of it
    id: String,
    /// Go on until the command ends, also across a restart of the service
    #[arg(short, long)]
    follow: bool,
    /// Which stream
    #[arg(long, default_value = "both", value_parser = ["stdout", "stderr", "both"])]
    stream: String,
    /// Only so much of the end: 64K, or bytes; 0 for all that is kept
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = crate::units::bytes)]
    tail: u64,
    /// Only from this byte of each stream on; two numbers are those of standard output and error
    #[arg(long, value_name = "N[,N]", value_parser = offsets)]
    since_offset: Option<[u64; 2]>,
    /// Print one JSON object a chunk
    #[arg(long)]
    json: bool,
}

fn offsets(text: &str) -> Result<[u64; 2], String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no offset"));
    match text.split_once(',') {
        Some((out, err)) => Ok([number(out)?, number(err)?]),
        None => number(text).map(|both| [both, both]),
    }
}

pub(crate) async fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let LogsArgs { id, follow, stream, tail, since_offset, json } = args;
    let wanted = Wanted { id, stream, follow, tail, since: since_offset.unwrap_or_default(), json };
    show(&output::workspaces().await?, wanted, async || Ok(())).await?;
    Ok(ExitCode::SUCCESS)
}

/// What of which log is shown, and how.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) stream: String,
    pub(crate) follow: bool,
    pub(crate) tail: u64,
    pub(crate) since: [u64; 2],
    pub(crate) json: bool,
}

/// Shows a log to its end; `again` is done whenever the service went away and another answers.
pub(crate) async fn show(
    manager: &ManagerProxy<'_>,
    mut wanted: Wanted,
    again: impl AsyncFn() -> Result<(), WorkspacesError>,
) -> anyhow::Result<()> {
    let mut frames = Frames::new(wanted.json.then(|| wanted.id.clone()));
    let mut log = open(manager, &wanted).await.map_err(|e| output::refusal(&e))?;
    loop {
        let (back, ended) = tokio::task::spawn_blocking(move || {
            let ended = frames.show(File::from(log));
            (frames, ended)
        })
        .await?;
        frames = back;
        match ended? {
            Ended::Whole => return Ok(()),
            // a service that was killed: its successor has the rest
            Ended::Torn => {}
        }
        if frames.seen() != [0, 0] {
            wanted.tail = 0;
        }
        for (since, seen) in wanted.since.iter_mut().zip(frames.seen()) {
            *since = (*since).max(seen);
        }
        let gone = Instant::now();
        log = loop {
            match open(manager, &wanted).await {
                Ok(log) => break log,
                Err(WorkspacesError::ZBus(_)) if gone.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(output::refusal(&error)),
            }
        };
        if let Err(error) = again().await {
            // it may have ended meanwhile, and the log has the rest
            eprintln!("shipote: {}", output::refusal(&error));
        }
    }
}

async fn open(manager: &ManagerProxy<'_>, wanted: &Wanted) -> Result<OwnedFd, WorkspacesError> {
    let options = BTreeMap::from([
        ("follow", wanted.follow.into()),
        ("framed", true.into()),
        ("since_stderr", wanted.since[1].into()),
        ("since_stdout", wanted.since[0].into()),
        ("tail", wanted.tail.into()),
    ]);
    manager.open_log(&wanted.id, &wanted.stream, options).await.map(Into::into)
}

/// Copies a descriptor to standard output until its end.
pub(crate) async fn copy(from: OwnedFd) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(move || {
        let mut from = File::from(from);
        let mut out = io::stdout().lock();
        let mut buffer = vec![0; 64 * 1024];
        // not io::copy: it would splice, and a splice that waits for a socket (seen on Linux 6.18) can lose what
        // arrives meanwhile
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            match out.write_all(&buffer[..n]).and_then(|()| out.flush()) {
                // the reader has seen what it wanted
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
    })
    .await?
}
