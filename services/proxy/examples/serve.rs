//! The data plane alone, without the bus: `serve DIR [WORKERS]` serves the rules of a directory until it is killed.
//! Benchmarks and profilers use it.
#![allow(missing_docs, reason = "an example")]

use std::path::PathBuf;

use anyhow::Context as _;
use shipote_proxy::{Engine, Inherited, Settings};
use shipote_rules::{compile, load_dir};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().context("usage: serve DIR [WORKERS]")?);
    let workers = args.next().and_then(|w| w.to_str()?.parse().ok()).unwrap_or(1);
    let engine = Engine::start(Settings { workers, ..Settings::default() }, Inherited::default())?;
    engine.apply(compile(&load_dir(&dir)?)?)?;
    println!("ready");
    loop {
        std::thread::park();
    }
}
