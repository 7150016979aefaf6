//! `plugins`: what linking and the proxy's pool add to a plugin's call, beside wasmtime alone and the crate `wasm-link`;
//! and how long the registry takes to start.
//!
//! Calls are measured in programs of their own, one for each engine, which do a block when they are told to: the proxy's
//! and the linking library's examples, and a package with `wasm-link` and the older wasmtime that it needs.

mod program;
mod start;

use std::path::{Path, PathBuf};

use anyhow::bail;

use self::program::Program;
use super::harness::{Block, Claim, Figure, Series, interleave};
use super::{Outcome, Setting};
use crate::appliance::{cargo_build, target};

const LINK: &str = "link_cost";
const PROXY: &str = "plugin_cost";
const RIVAL: &str = "wasm-link-cost";

/// A case of a program.
type Case = (&'static str, &'static str);

/// What is measured, and how it is called in the table.
#[derive(Debug, Clone, Copy)]
struct Way {
    case: Case,
    what: &'static str,
}

const fn way(program: &'static str, case: &'static str, what: &'static str) -> Way {
    Way { case: (program, case), what }
}

const TYPED: Way = way(LINK, "typed", "root → plugin, u32 → u32, typed, 1,000 calls");
const UNTYPED: Way = way(LINK, "untyped", "root → plugin, u32 → u32, untyped, 1,000 calls");
const SOCKET: Way = way(LINK, "socket", "plugin → plugin through a socket, u32 → u32, 1,000 calls");
const REQUEST: Way =
    way(PROXY, "request", "l7-request, 20 headers and 1 KiB, typed, through pool and policy, 1,000 calls");
const LOAD: Way = way(PROXY, "load", "a compiled component loaded and linked, 1,000 times");

const YIELDING: Way = way(LINK, "yielding", "root → plugin, u32 → u32, typed, yielding, 1,000 calls");

const STRAIGHT_TYPED: Way = way(LINK, "typed-straight", "wasmtime's typed call");
const STRAIGHT_UNTYPED: Way = way(LINK, "untyped-straight", "wasmtime's untyped call");
const STRAIGHT_YIELDING: Way = way(LINK, "yielding-straight", "wasmtime's asynchronous typed call");
const STRAIGHT_REQUEST: Way = way(PROXY, "request-straight", "the same call straight on wasmtime");
const STRAIGHT_LOAD: Way = way(PROXY, "load-straight", "`Component::deserialize` of the same");
const RIVAL_DISPATCH: Way = way(RIVAL, "dispatch", "wasm-link 0.1, dispatch");
const RIVAL_SOCKET: Way = way(RIVAL, "socket", "wasm-link 0.1, plugin → plugin");

/// Ours, theirs, and the ratio that is the target.
const CLAIMS: [(&str, Way, Way, f64); 9] = [
    ("plugin-typed", TYPED, STRAIGHT_TYPED, 1.2),
    ("plugin-typed-wasm-link", TYPED, RIVAL_DISPATCH, 0.4),
    ("plugin-untyped", UNTYPED, STRAIGHT_UNTYPED, 1.2),
    ("plugin-untyped-wasm-link", UNTYPED, RIVAL_DISPATCH, 0.55),
    ("plugin-socket", SOCKET, STRAIGHT_TYPED, 1.5),
    ("plugin-socket-wasm-link", SOCKET, RIVAL_SOCKET, 0.35),
    ("plugin-yielding", YIELDING, STRAIGHT_YIELDING, 1.2),
    ("plugin-request", REQUEST, STRAIGHT_REQUEST, 1.2),
    ("plugin-load", LOAD, STRAIGHT_LOAD, 1.3),
];

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let mut notes = Vec::new();
    let binaries = setting.binaries.clone().map_or_else(build, Ok)?;
    let example = |name: &'static str| Program::start(name, &binaries.join("examples").join(name));
    let mut programs = vec![example(LINK)?, example(PROXY)?];
    match rival(setting) {
        Ok(program) => programs.push(program),
        Err(error) => notes.push(format!("wasm-link 0.1 is not measured: {error:#}")),
    }
    let mut cases: Vec<Case> = CLAIMS.iter().flat_map(|(_, ours, theirs, _)| [ours.case, theirs.case]).collect();
    cases.extend([(RIVAL, "typed-straight"), (RIVAL, "untyped-straight")]);
    cases.extend([(LINK, "socket-straight"), (LINK, "socket-untyped")]);
    cases.retain(|(program, _)| programs.iter().any(|known| known.name == *program));
    cases.sort_unstable();
    cases.dedup();
    let all = interleave(setting.rounds, cases.len(), |contender| block(&mut programs, cases[contender]))?;
    let of = |case: Case| cases.iter().position(|known| *known == case).map(|at| &all[at]);
    let mut rows = Vec::new();
    for (id, ours, theirs, target) in CLAIMS {
        let claim = Claim { id, what: ours.what, against: theirs.what, figure: Figure::Time, target };
        if let (Some(ours), Some(theirs)) = (of(ours.case), of(theirs.case)) {
            rows.push(claim.judge(ours, theirs)?);
        }
    }
    notes.push("calls are counted by the thousand: microseconds in the table are nanoseconds a call".to_owned());
    notes.extend(relative(of));
    drop(programs);
    start::measure(setting, &binaries, &mut rows, &mut notes)?;
    Ok(Outcome { rows, notes })
}

fn block(programs: &mut [Program], (name, case): Case) -> anyhow::Result<Block> {
    match programs.iter_mut().find(|program| program.name == name) {
        Some(program) => program.block(case),
        None => bail!("no program {name}"),
    }
}

/// What each way costs by the wasmtime that it runs on, as `wasm-link` 0.1 has an older one.
fn relative<'a>(of: impl Fn(Case) -> Option<&'a Series>) -> Vec<String> {
    let ways = [
        ("ours, untyped dispatch", (LINK, "untyped"), (LINK, "untyped-straight")),
        ("wasm-link 0.1, dispatch", (RIVAL, "dispatch"), (RIVAL, "untyped-straight")),
        ("from one store to another, wasmtime alone", (LINK, "socket-straight"), (LINK, "typed-straight")),
        ("ours, typed through a socket", (LINK, "socket"), (LINK, "typed-straight")),
        ("ours, typed through a socket", (LINK, "socket"), (LINK, "socket-straight")),
        ("ours, untyped through a socket", (LINK, "socket-untyped"), (LINK, "typed-straight")),
        ("wasm-link 0.1, through a socket", (RIVAL, "socket"), (RIVAL, "typed-straight")),
    ];
    let note = |(what, way, straight): (&str, Case, Case)| {
        let (ours, theirs) = (of(way)?.wall(), of(straight)?.wall());
        let (ratio, nanoseconds) = (ours.as_secs_f64() / theirs.as_secs_f64(), theirs.as_micros());
        Some(format!("{what}: {ratio:.2} × {} of its own wasmtime, {nanoseconds} ns", straight.1))
    };
    ways.into_iter().filter_map(note).collect()
}

/// What is measured of ours, built in one go, so that all of it has the same wasmtime.
fn build() -> anyhow::Result<PathBuf> {
    let packages = ["shipote", "shipote-link", "shipote-plugins", "shipote-proxy"];
    cargo_build("release", |cargo| {
        cargo.args(packages.iter().flat_map(|package| ["--package", package]));
        cargo.args(["--bins", "--example", LINK, "--example", PROXY])
    })?;
    Ok(target()?.join("release"))
}

/// The rival's, built if it is not among the binaries that are there.
fn rival(setting: &Setting) -> anyhow::Result<Program> {
    let there = setting.binaries.as_ref().map(|folder| folder.join(RIVAL)).filter(|program| program.exists());
    let program = match there {
        Some(program) => program,
        None => build_rival()?,
    };
    Program::start(RIVAL, &program)
}

fn build_rival() -> anyhow::Result<PathBuf> {
    let folder = target()?.join("wasm-link");
    let manifest = Path::new("services/xtask/bench/wasm-link/Cargo.toml");
    cargo_build("release", |cargo| cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&folder))?;
    Ok(folder.join("release").join(RIVAL))
}
