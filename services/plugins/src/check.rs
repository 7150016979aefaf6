//! `shipote-plugins check`: judges components without a service, by the same child and the same rules.

use std::borrow::Cow;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;
use shipote_bus::words::counted;
use shipote_plugin_abi::check::Refusal;
use shipote_plugin_abi::metadata::Metadata;

use crate::examine::Report;
use crate::forge::{self, Bounds};
use crate::policy::Policies;
use crate::{signature, store};

/// Arguments of `shipote-plugins check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object for each
    #[arg(long)]
    json: bool,
    /// Folder of the policies that apply, instead of none
    #[arg(long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Components, binary or text
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Verdict {
    file: PathBuf,
    ok: bool,
    digest: String,
    metadata: Option<Metadata>,
    refusals: Vec<Refusal>,
}

/// Runs it: 0 all are taken, 1 one is refused.
pub(crate) fn main(args: &Args) -> ExitCode {
    match judge(&args.files, args.policy.as_deref(), args.json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("shipote-plugins: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `shipote-plugins wat FILE`: the binary form of a text, on standard output.
pub(crate) fn binary(path: &Path) -> ExitCode {
    let binary = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|text| wat::parse_bytes(&text).map(Cow::into_owned).map_err(|error| error.to_string()));
    match binary.and_then(|binary| std::io::stdout().write_all(&binary).map_err(|error| error.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shipote-plugins: read {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn judge(files: &[PathBuf], folder: Option<&Path>, json: bool) -> anyhow::Result<bool> {
    let policies = Policies::load(folder.unwrap_or(Path::new("/nonexistent")))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = true;
    for file in files {
        let verdict = runtime.block_on(verdict(file, &policies))?;
        all &= verdict.ok;
        let mut out = std::io::stdout().lock();
        if json {
            writeln!(out, "{}", serde_json::to_string(&verdict)?)?;
        } else if let (true, Some(metadata)) = (verdict.ok, &verdict.metadata) {
            let (name, version) = (&metadata.name, &metadata.version);
            let exports = counted(metadata.exports.len(), "export");
            writeln!(out, "{}: good: {name} {version}, {exports}", file.display())?;
        } else {
            writeln!(out, "{}: refused", file.display())?;
            for refusal in &verdict.refusals {
                writeln!(out, "  {refusal}")?;
            }
        }
    }
    Ok(all)
}

async fn verdict(path: &Path, policies: &Policies) -> anyhow::Result<Verdict> {
    let bounds = Bounds::default();
    let context = |error: std::io::Error| anyhow::anyhow!("check {}: {error}", path.display());
    let mut file = File::open(path).map_err(context)?;
    let metadata = file.metadata().map_err(context)?;
    if !metadata.is_file() {
        anyhow::bail!("check {}: not a file", path.display());
    }
    if metadata.len() <= bounds.size {
        let bytes = forge::content(&file).map_err(context)?;
        // Text is for development: it is turned into the binary form here, in the author's own process.
        if !bytes.starts_with(b"\0asm") && path.extension().is_some_and(|ending| ending == "wat") {
            let binary =
                wat::parse_bytes(&bytes).map_err(|error| anyhow::anyhow!("check {}: {error}", path.display()))?;
            file = forge::memfd("component")?;
            file.write_all(&binary).map_err(context)?;
        }
    }
    let digest = store::digest_of(&mut file).map_err(context)?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let policy = policies.of(&digest, &[stem]);
    let beside = path.with_file_name(format!("{}.minisig", path.file_name().unwrap_or_default().display()));
    let signature = std::fs::read_to_string(beside).ok();
    if let Err(refusal) = signature::check(&policy.signed_by, signature.as_deref(), &mut file) {
        return Ok(Verdict { file: path.to_owned(), ok: false, digest, metadata: None, refusals: vec![refusal] });
    }
    file.seek(SeekFrom::Start(0)).map_err(context)?;
    let (report, _) = forge::examine(file, &policy, false, bounds).await?;
    let Report { metadata, refusals, .. } = report;
    Ok(Verdict { file: path.to_owned(), ok: refusals.is_empty(), digest, metadata, refusals })
}
