//! `cargo xtask fuzz`: every fuzz target of the repository, one after another.
//!
//! A crate that decodes what others send has a `fuzz/` beside it, a workspace of its own that cargo-fuzz builds. Its
//! `seeds/TARGET/` holds a few inputs to begin with, and whatever was found once; what a run finds goes to the target
//! folder, and an input that crashes to `fuzz/artifacts/`. Who mends what it shows adds it to the seeds and to the
//! crate's tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;

use crate::cargo::cargo;
use crate::vm::{host, repository};

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Seconds for each target; 0 runs the seeds only.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Print the targets and run none.
    #[arg(long)]
    list: bool,
    /// Only these; all of a crate by the crate's folder, one as CRATE/TARGET.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// One fuzz target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// The crate's folder, by its last name.
    of: String,
    name: String,
    /// The `fuzz` folder.
    folder: PathBuf,
}

/// Runs `cargo xtask fuzz`.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let root = repository()?;
    let all = find(&root.join("services"))?;
    let wanted = choose(&all, &args.targets)?;
    if args.list {
        for target in wanted {
            println!("{}/{}", target.of, target.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if host::find("cargo-fuzz").is_none() {
        eprintln!("fuzz: install cargo-fuzz from crates.io");
        host::run(cargo()?.args(["install", "--locked", "cargo-fuzz"]))?;
    }
    let mut failed = Vec::new();
    for target in wanted {
        eprintln!("== {}/{}", target.of, target.name);
        if !fuzz(&root, target, args.seconds)? {
            failed.push(format!("{}/{}", target.of, target.name));
        }
    }
    if !failed.is_empty() {
        bail!("{} found something; the inputs are in its fuzz/artifacts", failed.join(", "));
    }
    println!("{} targets, nothing found", wanted_count(&all, &args.targets));
    Ok(ExitCode::SUCCESS)
}

fn wanted_count(all: &[Target], words: &[String]) -> usize {
    choose(all, words).map_or(0, |chosen| chosen.len())
}

/// Runs one target; false where it found something.
fn fuzz(root: &Path, target: &Target, seconds: u64) -> anyhow::Result<bool> {
    let build = root.join("target/fuzz");
    let corpus = build.join("corpus").join(&target.of).join(&target.name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let seeds = target.folder.join("seeds").join(&target.name);
    let mut command = cargo()?;
    // The instrumentation is the compiler's own, but only nightly ones offer it without being told to.
    command.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run", "--fuzz-dir"]).arg(&target.folder);
    command.arg("--target-dir").arg(&build).arg(&target.name).arg(&corpus);
    if seeds.is_dir() {
        command.arg(&seeds);
    }
    let time = if seconds == 0 { "-runs=0".to_owned() } else { format!("-max_total_time={seconds}") };
    command.args(["--", "-rss_limit_mb=2048", "-timeout=10", "-print_final_stats=1"]).arg(time);
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    Ok(status.success())
}

/// The targets below a folder, in order.
fn find(below: &Path) -> anyhow::Result<Vec<Target>> {
    let mut found = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == "fuzz" && path.join("Cargo.toml").is_file() {
                let of = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                for target in targets(&path)? {
                    found.push(Target { of: of.clone(), name: target, folder: path.clone() });
                }
            } else if path.is_dir() && !matches!(name.as_str(), "src" | "tests" | "target") {
                folders.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Names of the targets in a `fuzz` folder: one file each.
fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let files = folder.join("fuzz_targets");
    let entries = std::fs::read_dir(&files).with_context(|| format!("read {}", files.display()))?;
    let names = entries.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "rs"));
    Ok(names.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect())
}

fn choose<'a>(all: &'a [Target], words: &[String]) -> anyhow::Result<Vec<&'a Target>> {
    for word in words {
        if !all.iter().any(|target| is(target, word)) {
            let known: Vec<String> = all.iter().map(|target| format!("{}/{}", target.of, target.name)).collect();
            bail!("no fuzz target {word:?}; there are {}", known.join(", "));
        }
    }
    Ok(all.iter().filter(|target| words.is_empty() || words.iter().any(|word| is(target, word))).collect())
}

fn is(target: &Target, word: &str) -> bool {
    word == target.of || word == format!("{}/{}", target.of, target.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fuzz_folder_is_found_with_seeds_to_begin_with() {
        let root = repository().unwrap();
        let all = find(&root.join("services")).unwrap();
        assert!(all.len() >= 5, "{all:?}");
        for target in &all {
            let manifest = std::fs::read_to_string(target.folder.join("Cargo.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{target:?}");
            let seeds = target.folder.join("seeds").join(&target.name);
            assert!(seeds.read_dir().is_ok_and(|mut seeds| seeds.next().is_some()), "no seeds in {}", seeds.display());
        }
    }

    #[test]
    fn targets_are_chosen_by_crate_or_by_name() {
        let target = |of: &str, name: &str| Target { of: of.into(), name: name.into(), folder: PathBuf::new() };
        let all = [target("a", "x"), target("a", "y"), target("b", "x")];
        let names = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            choose(&all, &words).map(|chosen| chosen.len()).map_err(|e| e.to_string())
        };
        assert_eq!(names(&[]), Ok(3));
        assert_eq!(names(&["a"]), Ok(2));
        assert_eq!(names(&["a/x", "b"]), Ok(2));
        assert!(names(&["c"]).unwrap_err().contains("a/x, a/y, b/x"));
    }
}
