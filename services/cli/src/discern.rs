//! `shipote discern`: what kind of data a file is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use shipote_bus::workspaces::DISCERN_MAX;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct DiscernArgs {
    /// File; `-` is standard input
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: DiscernArgs) -> anyhow::Result<ExitCode> {
    let name = args.file.display().to_string();
    let stdin = args.file == Path::new("-");
    let mut sample = Vec::new();
    let limit = DISCERN_MAX as u64;
    let mut rest = [0; 1];
    let more = if stdin {
        let mut input = std::io::stdin().lock();
        (&mut input).take(limit).read_to_end(&mut sample).and_then(|_| input.read(&mut rest))
    } else {
        let mut input = std::fs::File::open(&args.file).with_context(|| format!("discern {name}"))?;
        (&mut input).take(limit).read_to_end(&mut sample).and_then(|_| input.read(&mut rest))
    }
    .with_context(|| format!("discern {name}"))?;
    let manager = output::workspaces().await?;
    let hint = if stdin { "" } else { &name };
    let found = manager.discern(&sample, hint, more == 0).await.map_err(|e| output::refusal(&e))?;
    if args.json {
        output::json(&json!({
            "file": name, "type": found.ty, "confidence": found.confidence, "mime": found.mime, "lens": found.lens,
        }))?;
    } else {
        let row = vec![
            name,
            output::type_name(&found.ty).to_owned(),
            found.mime.unwrap_or_else(|| "-".to_owned()),
            found.lens.unwrap_or_else(|| "-".to_owned()),
            format!("{:.2}", found.confidence),
        ];
        output::print_table(&["FILE", "TYPE", "MIME", "LENS", "CONFIDENCE"], vec![row], "");
    }
    Ok(ExitCode::SUCCESS)
}
