//! `plugins`: what linking, the proxy's pool and policy, and a full store cost, each against the same without.
//!
//! Calls take some hundred nanoseconds, so they are measured in processes of their own that link nothing else:
//! `services/shared/link/beside` (a workspace of its own, for the crate that ours is put beside) and the proxy's example
//! `plugin_cost`. Each prints what every round took.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::harness::{Block, Claim, Figure, Row, Series, interleave};
use super::{Outcome, Setting, start};
use crate::vm::{host, repository};

const TYPED: &str = "wasmtime's typed call of a component";
const UNTYPED: &str = "wasmtime's untyped call of a component";
const WASM_LINK: &str = "wasm-link 0.1 on its wasmtime 41";

/// A claim, the case that it is about and the one that it is held against; with `+`, what a case takes beyond another.
const CLAIMS: &[(&str, &str, Claim)] = &[
    ("dispatch-typed", "wasmtime-typed", claim("dispatch-typed", "host to plugin, typed", TYPED, 1.2)),
    ("dispatch-typed", "wasm-link", claim("dispatch-typed-link", "host to plugin, typed", WASM_LINK, 0.4)),
    ("dispatch-untyped", "wasmtime-untyped", claim("dispatch-untyped", "host to plugin, untyped", UNTYPED, 1.2)),
    ("dispatch-untyped", "wasm-link", claim("dispatch-untyped-link", "host to plugin, untyped", WASM_LINK, 0.55)),
    ("chain-typed+dispatch-typed", "wasmtime-typed", claim("socket", "plugin to plugin through a socket", TYPED, 1.5)),
    (
        "chain-typed+dispatch-typed",
        "wasm-link-chain+wasm-link",
        claim("socket-link", "plugin to plugin through a socket", WASM_LINK, 0.35),
    ),
    (
        "request",
        "request-straight",
        claim("plugin-request", "a request of 20 headers and 1 KiB, through pool and policy", TYPED, 1.2),
    ),
    ("load", "load-straight", claim("plugin-load", "compiled code loaded by the proxy", "wasmtime's deserialize", 1.3)),
];

const fn claim(id: &'static str, what: &'static str, against: &'static str, target: f64) -> Claim {
    Claim { id, what, against, figure: Figure::Time, target }
}

/// What a process says of one case: nanoseconds of one in each round, the first of which warmed up.
#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let root = repository()?;
    let mut cases = HashMap::new();
    for case in beside(&root, setting.rounds)?.into_iter().chain(proxy(&root, setting.rounds)?) {
        cases.insert(case.id.clone(), case);
    }
    let mut rows = Vec::new();
    for (ours, theirs, claim) in CLAIMS {
        rows.push(judge(&cases, [ours, theirs], claim, setting.rounds)?);
    }
    let newer = series(&cases, &["wasmtime-untyped"], setting.rounds)?[0].wall();
    let older = series(&cases, &["wasmtime-41-untyped"], setting.rounds)?[0].wall();
    let mut notes = vec![format!(
        "wasmtime's own untyped call took {newer:?} in version 48 and {older:?} in version 41, which wasm-link 0.1 needs"
    )];
    let started = start::measure(setting)?;
    rows.extend(started.rows);
    notes.extend(started.notes);
    Ok(Outcome { rows, notes })
}

fn beside(root: &Path, rounds: u32) -> anyhow::Result<Vec<Case>> {
    let folder = root.join("services/shared/link/beside");
    let mut build = Command::new("cargo");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("beside");
    build.current_dir(&folder).env("CARGO_TARGET_DIR", &target);
    host::run(build.args(["build", "--release"]))?;
    cases(Command::new(target.join("release/shipote-link-beside")).arg(rounds.to_string()))
}

fn proxy(root: &Path, rounds: u32) -> anyhow::Result<Vec<Case>> {
    // The whole workspace, as a part of it has other features of its dependencies, and builds them anew.
    let words = ["build", "--release", "--workspace", "--example", "plugin_cost", "--message-format", "json"];
    let output = Command::new("cargo").current_dir(root).args(words).output().context("run cargo build")?;
    if !output.status.success() {
        bail!("cargo build of plugin_cost failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = built.filter(|message| message["target"]["name"] == "plugin_cost");
    let program = program.filter_map(|message| message["executable"].as_str().map(str::to_owned)).next_back();
    cases(Command::new(program.context("cargo names no plugin_cost")?).arg(rounds.to_string()))
}

fn cases(command: &mut Command) -> anyhow::Result<Vec<Case>> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let lines = String::from_utf8(output.stdout)?;
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("read {line}"))).collect()
}

fn judge(cases: &HashMap<String, Case>, which: [&str; 2], claim: &Claim, rounds: u32) -> anyhow::Result<Row> {
    let all = series(cases, &which, rounds)?;
    claim.judge(&all[0], &all[1])
}

/// The rounds of these cases, side by side.
fn series(cases: &HashMap<String, Case>, which: &[&str], rounds: u32) -> anyhow::Result<Vec<Series>> {
    let find = |id: &str| cases.get(id).with_context(|| format!("no case is called {id}"));
    let mut next = vec![0; which.len()];
    interleave(rounds, which.len(), |contender| {
        let (whole, part) = which[contender].split_once('+').map_or((which[contender], None), |(a, b)| (a, Some(b)));
        let round = next[contender];
        next[contender] += 1;
        let of = |case: &Case| Some((*case.wall.get(round)?, *case.cpu.get(round)?));
        let (mut wall, mut cpu) = of(find(whole)?).with_context(|| format!("{whole} has no round {round}"))?;
        if let Some(part) = part {
            let (less, less_cpu) = of(find(part)?).with_context(|| format!("{part} has no round {round}"))?;
            (wall, cpu) = (wall - less, cpu - less_cpu);
        }
        let time = |ns: f64| Duration::from_secs_f64(ns.max(0.0) / 1e9);
        Ok(Block { walls: vec![time(wall)], cpu: time(cpu) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_the_same_rounds_and_the_first_is_left_out() {
        let case =
            |id: &str, wall: [f64; 3]| (id.to_owned(), Case { id: id.to_owned(), wall: wall.into(), cpu: wall.into() });
        let cases = HashMap::from([case("a", [9.0, 300.0, 320.0]), case("b", [9.0, 100.0, 100.0])]);
        let row = judge(&cases, ["a+b", "b"], &claim("id", "what", "against", 1.5), 2).unwrap();
        assert!((row.ratio - 2.1).abs() < 0.001 && !row.met && row.samples == 2, "{row:?}");
        assert!(judge(&cases, ["a+c", "b"], &claim("id", "what", "against", 1.5), 2).is_err());
        assert!(judge(&cases, ["a", "b"], &claim("id", "what", "against", 1.5), 3).is_err(), "a round is missing");
    }
}
