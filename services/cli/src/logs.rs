//! `shipote logs`: the kept output of a command.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde_json::json;

use crate::output;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  id=$(shipote run --detach -- sh -c 'echo hello; sleep 5')\n  shipote logs -f $id\n\n\
    Output is kept where it was not handed to the caller: of detached commands, and of\nthe nodes of pipelines where nothing else takes it."
)]
pub(crate) struct LogsArgs {
    /// Command's id, or the last six characters or more of it
    id: String,
    /// Go on until the command ends
    #[arg(short, long)]
    follow: bool,
    /// Which stream
    #[arg(long, default_value = "both", value_parser = ["stdout", "stderr", "both"])]
    stream: String,
    /// Only the last N bytes; 0 for all that is kept
    #[arg(long, value_name = "N", default_value_t = 0)]
    tail: u64,
    /// Print one JSON object a chunk
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let options = BTreeMap::from([("follow", args.follow.into()), ("tail", args.tail.into())]);
    let log = manager.open_log(&args.id, &args.stream, options).await.map_err(|e| output::refusal(&e))?;
    copy(log.into(), args.json.then_some(args.id)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Copies a descriptor to standard output until its end; with an id, as JSON chunks.
pub(crate) async fn copy(from: OwnedFd, json_id: Option<String>) -> anyhow::Result<()> {
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
            let data = &buffer[..n];
            let written = match &json_id {
                Some(id) => writeln!(out, "{}", json!({"id": id, "data": String::from_utf8_lossy(data)})),
                None => out.write_all(data),
            };
            match written.and_then(|()| out.flush()) {
                // the reader has seen what it wanted
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                other => other?,
            }
        }
    })
    .await?
}
