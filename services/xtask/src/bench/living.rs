//! `living`: the service while a thousand commands live, and the memory it takes.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Builder;

use super::accounting::resident;
use super::harness::{Better, Block, Detail, Row, budget, interleave};
use super::run::Client;
use super::{Outcome, Setting};
use crate::appliance::{self, Appliance};

/// Commands that live meanwhile.
const LIVING: u32 = 1000;
/// New ones a second.
const RATE: u32 = 100;
/// Commands of a block; the 99th of a hundred of them is what is compared, so there must be many.
const UNITS: u32 = 200;

/// Bytes that the idle service, and each living command, may add.
const IDLE: f64 = 12.0 * 1024.0 * 1024.0;
const EACH: f64 = 64.0 * 1024.0;

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let binaries = match &setting.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build_shipped(&["shipote", "shipote-workspaces"])?,
    };
    // Two appliances, so that both are asked in turns in the same run.
    let start = || Appliance::start_services(binaries.clone(), true, &["workspaces"]);
    let (busy, idle) = (start()?, start()?);
    let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let clients =
        [runtime.block_on(Client::connect(&busy.address()))?, runtime.block_on(Client::connect(&idle.address()))?];
    let service = busy.service("workspaces")?;
    let before = resident(service)?;
    let begun = Instant::now();
    for number in 0..LIVING {
        runtime.block_on(clients[0].detach(&["sleep", "86400"]))?;
        pace(begun, number + 1);
    }
    let after = resident(service)?;

    let all = interleave(setting.rounds, 2, |contender| {
        let begun = Instant::now();
        let mut walls = Vec::new();
        for number in 0..UNITS {
            let asked = Instant::now();
            runtime.block_on(clients[contender].run(super::run::WORKSPACE))?;
            walls.push(asked.elapsed());
            pace(begun, number + 1);
        }
        Ok(Block { cpu: walls.iter().sum(), walls })
    })?;
    drop((clients, runtime));
    busy.stop()?;
    idle.stop()?;

    let (ours, theirs) = (all[0].tail(), all[1].tail());
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let late = Row {
        id: "living".into(),
        what: "Workspaces1.Run of `true`, 100 a second, 99th of 100, while 1,000 commands live".into(),
        against: "the same while none lives".into(),
        ratio,
        better: Better::Lower,
        target: 2.0,
        met: Better::Lower.met(ratio, 2.0),
        samples: (UNITS * setting.rounds) as usize,
        cpu_ratio: all[0].wall().as_secs_f64() / all[1].wall().as_secs_f64(),
        detail: Detail {
            median_ratio: ratio,
            best_ratio: all[0].best().as_secs_f64() / all[1].best().as_secs_f64(),
            ours,
            theirs,
        },
    };
    let each = after.saturating_sub(before) as f64 / f64::from(LIVING);
    let rows = vec![
        late,
        budget("memory-idle", "resident memory of the idle service", "12 MiB", before as f64 / IDLE, 1),
        budget(
            "memory-command",
            "resident memory that each living command adds to the service",
            "64 KiB",
            each / EACH,
            1,
        ),
    ];
    let notes = vec![
        format!(
            "proportional set size of shipote-workspaces: {:.1} MiB idle, {:.1} MiB with {LIVING} commands ({:.1} KiB each)",
            before as f64 / 1_048_576.0,
            after as f64 / 1_048_576.0,
            each / 1024.0
        ),
        "of `living` the CPU column is the ratio of the median wall times".to_owned(),
    ];
    Ok(Outcome { rows, notes })
}

/// Waits until as many commands as `count` are due.
fn pace(begun: Instant, count: u32) {
    let due = begun + Duration::from_secs(1) * count / RATE;
    std::thread::park_timeout(due.saturating_duration_since(Instant::now()));
}
