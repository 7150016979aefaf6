//! `grown`: what a command costs when the process that asks for it holds much memory.
//!
//! A plain fork copies the page tables of the asking process; commands are made by a spawner that was forked when it was
//! small, so they should cost the same.

use std::time::{Duration, Instant};

use anyhow::Context;
use shipote_sandbox::{Keeper, SandboxSpec, Spawner, SpawnerConfig};
use tokio::runtime::Builder;

use super::harness::{Block, Claim, Figure, interleave};
use super::sandbox::command;
use super::{Outcome, Setting};

const UNITS: u32 = 100;
/// Resident memory of the two contenders.
const SMALL: usize = 10 << 20;
const LARGE: usize = 1 << 30;

const CLAIM: Claim = Claim {
    id: "grown",
    what: "a command in a living workspace, asked for by a process with 1 GiB resident",
    against: "the same with 10 MiB",
    figure: Figure::Time,
    target: 1.1,
};

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let spawner = Spawner::start(SpawnerConfig::default()).context("start the spawner")?;
    let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let (keeper, mut events): (Keeper, _) = runtime.block_on(spawner.workspace(&SandboxSpec::default()))?;
    let mut id = 0_u64;
    let all = interleave(setting.rounds, 2, |contender| {
        let held = resident(if contender == 0 { LARGE } else { SMALL });
        let mut walls = Vec::new();
        for _ in 0..UNITS {
            id += 1;
            let begun = Instant::now();
            runtime.block_on(command(&keeper, &mut events, id))?;
            walls.push(begun.elapsed());
        }
        drop(std::hint::black_box(held));
        // What commands used is known when their keeper has ended: wall time is what this entry is about.
        Ok(Block { cpu: walls.iter().sum(), walls })
    })?;
    runtime.block_on(keeper.end(Duration::ZERO))?;
    Ok(Outcome {
        rows: vec![CLAIM.judge(&all[0], &all[1])?],
        notes: vec!["the CPU column repeats wall time: a keeper's commands are accounted for when it ends".to_owned()],
    })
}

/// Memory with something in every page.
fn resident(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0_u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    memory
}
